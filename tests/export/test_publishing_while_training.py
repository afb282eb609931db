"""Publishing while another thread trains: no row is lost, none comes twice."""

import threading

import numpy as np
import pytest
import tensorflow as tf

from tests.models import NUM_IDS, click_model, embedding_of, random_table, sleepy
from tf_slipstream import SlipstreamOptimizer, export
from tf_slipstream._compat import keras

NUM_ROWS = 400
NUM_DELTAS = 8


class Training(threading.Thread):
    """Trains steps on known rows until it is stopped.

    Attributes:
        num_steps: Steps done.
        rows: Rows that they looked up.
        error: What ended it, if anything did.
    """

    def __init__(self, model, num_rows=NUM_ROWS):
        super().__init__(daemon=True)
        self._model, self._num_rows, self._is_over = model, num_rows, threading.Event()
        self.num_steps, self.rows, self.error = 0, set(), None
        self.step = tf.function(self._step, autograph=False)

    def _step(self, ids, labels):
        variables = self._model.trainable_variables
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self._model(ids) - labels))
        self._model.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))

    def one_step(self):
        rng = np.random.default_rng(self.num_steps)
        # A few rows come in every step, so that they sleep; others once.
        ids = np.concatenate(
            [rng.integers(8, size=[8, NUM_IDS]), rng.integers(self._num_rows, size=[4, NUM_IDS])]
        )
        self.step(tf.constant(ids), tf.constant(rng.normal(size=[12, 1]), tf.float32))
        self.rows |= set(ids.ravel().tolist())
        self.num_steps += 1

    def run(self):
        try:
            while not self._is_over.is_set():
                self.one_step()
        except BaseException as error:
            self.error = error

    def stop(self):
        self._is_over.set()
        self.join(60)
        assert self.error is None and not self.is_alive()


def table_of(folder):
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    return reader.get_tensor("model_variables/0/.ATTRIBUTES/VARIABLE_VALUE")


@pytest.mark.parametrize("policy", [None, "sleepy"])
@pytest.mark.parametrize("inner", ["Adagrad", "Adam"])
def test_the_deltas_lead_to_the_final_table(inner, policy, tmp_path):
    layer = embedding_of(random_table(NUM_ROWS, 4), name="user")
    optimizer = SlipstreamOptimizer(
        getattr(keras.optimizers, inner)(0.0625), policy=None if policy is None else sleepy()
    )
    model = click_model(layer, optimizer)
    optimizer.build(model.trainable_variables)
    tracker = export.DeltaTracker(model)
    training = Training(model)
    training.one_step()
    export.save_version(model, tmp_path / "1")
    first = table_of(tmp_path / "1")
    training.start()
    published = []
    try:
        for version in range(2, 2 + NUM_DELTAS):
            seen = training.num_steps
            while training.num_steps < seen + 3 and training.is_alive():
                pass
            path = tmp_path / f"delta-{version}"
            published.append(export.save_delta(model, version - 1, path, version=version))
    finally:
        training.stop()
    assert training.num_steps > 3 * NUM_DELTAS
    last = 2 + NUM_DELTAS
    export.save_delta(model, last - 1, tmp_path / f"delta-{last}", version=last)
    for version in range(2, last + 1):
        paths = (
            tmp_path / str(version - 1),
            tmp_path / f"delta-{version}",
            tmp_path / str(version),
        )
        export.apply_delta(*paths)
    final = layer.get_weights()[0]
    np.testing.assert_array_equal(table_of(tmp_path / str(last)), final)
    # Nothing is published that no step touched.
    changed = set(np.flatnonzero((final != first).any(axis=1)).tolist())
    assert set(tracker.changed_rows(1)["user"].tolist()) <= training.rows
    assert changed <= training.rows and len(changed) > NUM_ROWS / 4
    sizes = [one.num_rows.get("user/embeddings", 0) for one in published]
    assert min(sizes) < NUM_ROWS  # the first; later ones are of as many steps as there was time for


@pytest.mark.parametrize("mark", ["rows", "all"])
def test_marking_rows_meanwhile_loses_none_that_a_step_marks(mark, tmp_path):
    num_rows = 100_000  # so that reading the bits and writing them take a while
    layer = embedding_of(random_table(num_rows, 1), name="user")
    model = click_model(layer, SlipstreamOptimizer(keras.optimizers.SGD(0.0625)))
    model.optimizer.build(model.trainable_variables)
    tracker = export.DeltaTracker(model)
    training = Training(model, num_rows)
    training.one_step()
    export.save_version(model, tmp_path / "1")
    training.rows.clear()
    rng, marked = np.random.default_rng(0), set()
    training.start()
    try:
        seen = training.num_steps
        while training.num_steps < seen + 300 and training.is_alive():
            ids = rng.integers(num_rows, size=2)
            tracker.mark_rows("user", ids)
            marked |= set(ids.tolist())
            if mark == "all":
                tracker.mark_all("user")
    finally:
        training.stop()
    expected = set(range(num_rows)) if mark == "all" else training.rows | marked
    assert set(tracker.changed_rows(1)["user"].tolist()) == expected
