"""Save, restore, continue equals never stopping.

Run as a module it is the process that one of the tests kills:
`python -m tests.test_saving FOLDER`.
"""

import functools
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.models import (
    assert_all_equal,
    click_data,
    click_model,
    embedding_of,
    fit,
    random_table,
    values_of,
)
from tf_slipstream import RowWiseAdagrad, SlipstreamEmbedding, SlipstreamOptimizer, stored_rows
from tf_slipstream._compat import IS_KERAS_3, keras
from tf_slipstream.state import schema

INNER = {
    "adagrad": lambda: keras.optimizers.Adagrad(0.25),
    "row_wise_adagrad": lambda: RowWiseAdagrad(0.25),
    "adam": lambda: keras.optimizers.Adam(0.125, amsgrad=True, weight_decay=0.125),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.125, momentum=0.5, centered=True),
}
FIRST, SECOND = click_data(seed=1), click_data(seed=2)


def make_model(name, table=None):
    table = random_table() if table is None else table
    return click_model(embedding_of(table, name="user"), SlipstreamOptimizer(INNER[name]()))


def state_of(model):
    """Returns the values of a model's and its optimizer's variables."""
    return [np.array(w) for w in model.get_weights()] + values_of(model.optimizer.variables)


@functools.cache
def state_without_stopping(name):
    model = make_model(name)
    fit(model, FIRST)
    fit(model, SECOND)
    return state_of(model)


def checkpoint_of(model):
    return tf.train.Checkpoint(model=model, optimizer=model.optimizer)


@pytest.mark.parametrize("suffix", [".weights.h5", *([] if IS_KERAS_3 else [""])])
def test_weights_are_loaded_as_they_were_saved(suffix, tmp_path):
    model = make_model("adagrad")
    fit(model, FIRST)
    model.save_weights(str(tmp_path / f"model{suffix}"))
    other = make_model("adagrad", table=random_table(seed=9))
    fit(other, SECOND)
    other.load_weights(str(tmp_path / f"model{suffix}"))
    assert_all_equal(other.get_weights(), model.get_weights())


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
@pytest.mark.parametrize("name", INNER)
def test_a_file_continues_as_if_never_stopped(name, file, tmp_path):
    if file == "model.h5" and IS_KERAS_3:
        pytest.skip("Keras 3 restores no optimizer from an .h5 file, its own neither")
    model = make_model(name)
    fit(model, FIRST)
    model.save(tmp_path / file)
    loaded = keras.models.load_model(tmp_path / file)
    assert type(loaded.layers[1]) is SlipstreamEmbedding
    assert type(loaded.optimizer) is SlipstreamOptimizer
    assert_all_equal(state_of(loaded), state_of(model))
    assert loaded.optimizer.skip_stats() == model.optimizer.skip_stats()
    fit(loaded, SECOND)
    assert_all_equal(state_of(loaded), state_without_stopping(name))


class UsersAdam(keras.optimizers.Adam):
    pass


class UsersEmbedding(SlipstreamEmbedding):
    pass


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
@pytest.mark.parametrize("as_table_optimizer", [False, True], ids=["inner", "table_optimizer"])
def test_classes_of_the_user_are_loaded_within_ours(as_table_optimizer, file, tmp_path):
    """Nested in a SlipstreamOptimizer, where tf_keras's .h5 files leave their module out."""
    if file == "model.h5" and IS_KERAS_3:
        pytest.skip("Keras 3 restores no optimizer from an .h5 file, its own neither")
    schedule = keras.optimizers.schedules.ExponentialDecay(0.125, decay_steps=10, decay_rate=0.5)
    users = UsersAdam(schedule)
    optimizer = (
        SlipstreamOptimizer("sgd", table_optimizer=users, policy="balanced")
        if as_table_optimizer
        else SlipstreamOptimizer(users, policy="balanced")
    )
    layer = UsersEmbedding(10, 3, embeddings_constraint="non_neg", policy="aggressive", name="user")
    model = click_model(layer, optimizer)
    fit(model, FIRST)
    model.save(tmp_path / file)
    classes = {"UsersAdam": UsersAdam, "UsersEmbedding": UsersEmbedding}
    loaded = keras.models.load_model(tmp_path / file, custom_objects=classes)
    assert type(loaded.layers[1]) is UsersEmbedding
    assert loaded.layers[1].policy == layer.policy
    assert loaded.optimizer.get_config() == optimizer.get_config()
    place = "table_optimizer" if as_table_optimizer else "inner_optimizer"
    assert type(getattr(loaded.optimizer, place)) is UsersAdam
    for one in (model, loaded):
        fit(one, SECOND)
    assert_all_equal(state_of(loaded), state_of(model))


def test_a_keras_file_keeps_a_loss_scale_optimizer(tmp_path):
    scaling = keras.mixed_precision.LossScaleOptimizer(SlipstreamOptimizer(INNER["adagrad"]()))
    model = click_model(embedding_of(random_table(), name="user"), scaling)
    fit(model, FIRST)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer.inner_optimizer) is SlipstreamOptimizer
    for one in (model, loaded):
        fit(one, SECOND)
    assert_all_equal(state_of(loaded), state_of(model))


class TestCheckpoint:
    @pytest.mark.parametrize("name", INNER)
    def test_every_variable_of_the_optimizer_is_in_it(self, name, tmp_path):
        model = make_model(name)
        fit(model, FIRST)
        # A value of its own for each, so that none can stand for another.
        variables = [*model.weights, *model.optimizer.variables]
        for number, variable in enumerate(variables):
            variable.assign(tf.cast(tf.fill(variable.shape, number), variable.dtype))
        path = checkpoint_of(model).save(str(tmp_path / "checkpoint"))
        restored = make_model(name)
        restored.optimizer.build(restored.trainable_variables)
        checkpoint_of(restored).restore(path).assert_existing_objects_matched()
        for number, variable in enumerate([*restored.weights, *restored.optimizer.variables]):
            np.testing.assert_array_equal(variable.numpy(), number, err_msg=variable.name)

    @pytest.mark.parametrize("built", [True, False], ids=["built before", "built by fit"])
    @pytest.mark.parametrize("name", ["adagrad", "adam"])
    def test_it_continues_as_if_never_stopped(self, name, built, tmp_path):
        model = make_model(name)
        fit(model, FIRST)
        path = checkpoint_of(model).save(str(tmp_path / "checkpoint"))
        restored = make_model(name, table=random_table(seed=9))
        if built:
            restored.optimizer.build(restored.trainable_variables)
        status = checkpoint_of(restored).restore(path)
        fit(restored, SECOND)
        status.assert_consumed()
        assert_all_equal(state_of(restored), state_without_stopping(name))


class Interrupt(keras.callbacks.Callback):
    """Fails at the begin of an epoch, once."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            self.epoch = None
            raise InterruptedError


@pytest.mark.parametrize("name", ["adagrad", "adam"])
def test_backup_and_restore_resumes_as_if_never_stopped(name, tmp_path):
    def train(model, *callbacks):
        fit(model, FIRST, epochs=4, callbacks=callbacks)
        return state_of(model)

    expected = train(make_model(name))
    backup = str(tmp_path / "backup")
    with pytest.raises(InterruptedError):
        train(make_model(name), keras.callbacks.BackupAndRestore(backup), Interrupt(2))
    # Another start: what the backup does not hold makes a difference.
    model = make_model(name, table=random_table(seed=9))
    seen_epochs = []
    seen = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, _: seen_epochs.append(epoch))
    resumed = train(model, keras.callbacks.BackupAndRestore(backup), seen)
    assert seen_epochs == [2, 3]
    assert_all_equal(resumed, expected)


NUM_STEPS, CHECKPOINT_STEP, KILLED_STEP = 12, 5, 8
KILLED_NAMES = ["adagrad", "adam"]


def train_steps(model, num_steps):
    """Trains from the optimizer's step on, one batch of 8 examples a step."""
    ids, labels = click_data(8 * NUM_STEPS)
    for step in range(int(model.optimizer.iterations), num_steps):
        batch = slice(8 * step, 8 * (step + 1))
        model.train_on_batch(ids[batch], labels[batch])


def train_until_killed(folder):
    models = {name: make_model(name) for name in KILLED_NAMES}
    for num_steps in (CHECKPOINT_STEP, KILLED_STEP):
        for name, model in models.items():
            train_steps(model, num_steps)
            if num_steps == CHECKPOINT_STEP:
                checkpoint_of(model).write(os.path.join(folder, name))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_continues_from_its_checkpoint_as_if_never_killed(tmp_path):
    killed = subprocess.run(
        [sys.executable, "-m", "tests.test_saving", str(tmp_path)],
        cwd=pathlib.Path(__file__).parent.parent,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    for name in KILLED_NAMES:
        whole, restored = make_model(name), make_model(name, table=random_table(seed=9))
        restored.optimizer.build(restored.trainable_variables)
        checkpoint_of(restored).read(str(tmp_path / name)).assert_existing_objects_matched()
        assert int(restored.optimizer.iterations) == CHECKPOINT_STEP
        for model in (whole, restored):
            train_steps(model, NUM_STEPS)
        assert_all_equal(state_of(restored), state_of(whole))


if __name__ == "__main__":
    train_until_killed(sys.argv[1])


def _as_keras(model, folder):
    model.save(folder / "m.keras")
    return lambda: keras.models.load_model(folder / "m.keras")


def _as_weights(model, folder):
    model.save_weights(folder / "m.weights.h5")
    other = make_model("adam")
    other.optimizer.build(other.trainable_variables)
    return lambda: other.load_weights(folder / "m.weights.h5")


def _as_checkpoint(model, folder):
    path = checkpoint_of(model).save(folder / "c")
    return lambda: checkpoint_of(make_model("adam")).restore(path)


WAYS = {
    "keras": _as_keras,
    # In tf_keras such a file has the optimizer as well.
    "weights": _as_weights,
    "checkpoint": _as_checkpoint,
}


@pytest.mark.parametrize("way", WAYS)
def test_state_of_another_version_of_the_schema_is_refused(way, tmp_path, monkeypatch):
    model = make_model("adam")
    fit(model, FIRST)
    load = WAYS[way](model, tmp_path)
    load()
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    with pytest.raises(
        ValueError, match=rf"version {schema.VERSION - 1} of tf_slipstream's schema"
    ):
        load()


def test_a_checkpoint_of_another_version_changes_nothing(tmp_path, monkeypatch):
    saved, model = make_model("adam"), make_model("adam")
    fit(saved, FIRST)
    fit(model, SECOND)
    before = state_of(model)
    path = checkpoint_of(saved).save(tmp_path / "c")
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    with pytest.raises(ValueError, match="schema"):
        checkpoint_of(model).restore(path)
    assert_all_equal(state_of(model), before)


def test_optimizer_state_without_a_version_is_refused(tmp_path, monkeypatch):
    model = make_model("adam")
    fit(model, FIRST)
    monkeypatch.setattr(stored_rows, "write_version", lambda store: None)
    load = _as_keras(model, tmp_path)
    with pytest.raises(ValueError, match="version 1 of tf_slipstream's schema"):
        load()


def test_a_checkpoint_without_a_version_is_refused_and_changes_nothing(tmp_path):
    saved, model = make_model("adam"), make_model("adam")
    fit(saved, FIRST)
    fit(model, SECOND)
    before = state_of(model)
    checkpoint = tf.train.Checkpoint(model=saved, optimizer=saved.optimizer)
    # As an optimizer of an earlier release has none.
    del saved.optimizer._schema_version
    path = checkpoint.save(tmp_path / "c")
    with pytest.raises(ValueError, match="version 1 of tf_slipstream's schema"):
        tf.train.Checkpoint(model=model, optimizer=model.optimizer).restore(path)
    assert_all_equal(state_of(model), before)


def test_weights_of_a_stock_optimizer_are_none_of_ours(tmp_path):
    """Keras leaves its state out, with a warning of its own; the weights are read."""
    stock = make_model("adam")
    stock.compile(keras.optimizers.Adam(0.125), loss="binary_crossentropy")
    fit(stock, FIRST)
    stock.save_weights(tmp_path / "m.weights.h5")
    model = make_model("adam")
    model.optimizer.build(model.trainable_variables)
    model.load_weights(tmp_path / "m.weights.h5")
    assert_all_equal(model.get_weights(), stock.get_weights())


def test_a_saved_model_has_no_version_of_ours(tmp_path):
    model = make_model("adam")
    fit(model, FIRST)
    tf.saved_model.save(model, tmp_path / "m")
    reader = tf.train.load_checkpoint(str(tmp_path / "m" / "variables" / "variables"))
    assert not [name for name in reader.get_variable_to_shape_map() if "_schema_version" in name]
    tf.saved_model.load(tmp_path / "m")
    other = make_model("adam", table=random_table(seed=9))
    tf.train.Checkpoint(other).restore(str(tmp_path / "m")).expect_partial()
    assert_all_equal(other.get_weights(), model.get_weights())
