"""Models that are not trained by the optimizer of `compile`, and those that have several."""

import importlib.util

import numpy as np
import pytest
import tensorflow as tf

from tests.models import (
    click_data,
    embedding_of,
    num_asleep,
    num_held,
    random_table,
    sleepy,
)
from tf_slipstream import SkipGuard, SkipHistory, SlipstreamEmbedding, SlipstreamOptimizer, export
from tf_slipstream._compat import IS_KERAS_3, keras

NUM_ROWS = 20
DATA = click_data(16 * 30, num_rows=NUM_ROWS)
HELD_OUT = click_data(50, num_rows=NUM_ROWS, seed=2)
LOSS = keras.losses.BinaryCrossentropy()


class Clicks(keras.Model):
    """A classifier whose optimizers are its own attributes.

    Args:
        is_split: Whether dense variables have an optimizer of their own.
        is_built: Whether the table is there before the first call.
    """

    def __init__(self, is_split=False, is_built=True):
        super().__init__()
        self.table = (
            embedding_of(random_table(NUM_ROWS), name="user")
            if is_built
            else SlipstreamEmbedding(NUM_ROWS, 3, name="user")
        )
        self.flatten = keras.layers.Flatten()
        self.output_layer = keras.layers.Dense(1, activation="sigmoid")
        self.opt = SlipstreamOptimizer(keras.optimizers.Adam(0.0625), policy=sleepy())
        self.dense_opt = keras.optimizers.SGD(0.25) if is_split else None
        self.mean_loss = keras.metrics.Mean(name="loss")

    def call(self, ids):
        return self.output_layer(self.flatten(self.table(ids)))

    def train_step(self, data):
        ids, labels = data[:2]
        with tf.GradientTape() as tape:
            loss = LOSS(labels, self(ids, training=True))
        tables, dense = self.table.trainable_variables, self.output_layer.trainable_variables
        grads = tape.gradient(loss, [*tables, *dense])
        if self.dense_opt is None:
            self.opt.apply_gradients(zip(grads, [*tables, *dense]))
        else:
            self.opt.apply_gradients(zip(grads[:1], tables))
            self.dense_opt.apply_gradients(zip(grads[1:], dense))
        self.mean_loss.update_state(loss)
        return {"loss": self.mean_loss.result()}

    def test_step(self, data):
        ids, labels = data[:2]
        self.mean_loss.update_state(LOSS(labels, self(ids)))
        return {"loss": self.mean_loss.result()}

    @property
    def metrics(self):
        return [self.mean_loss]


class Look(keras.callbacks.Callback):
    """Notes how many rows sleep at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(num_asleep(self.model.opt))


def fit(model, epochs=2, **options):
    return model.fit(*DATA, batch_size=16, shuffle=False, epochs=epochs, verbose=0, **options)


def made(**options):
    model = Clicks(**options)
    model.compile()
    return model


CASES = [
    {},
    {"is_split": True},
    {"is_built": False},
    {"is_split": True, "is_built": False},
]


@pytest.mark.parametrize("options", CASES, ids=str)
class TestAnOptimizerThatIsAnAttribute:
    def test_the_end_of_fit_applies_what_is_held_and_wakes_all(self, options):
        model, look = made(**options), Look()
        # The first `fit` builds the optimizer.
        for _ in range(2):
            fit(model, callbacks=[look])
            assert look.seen[-1] > 0
            assert num_asleep(model.opt) == num_held(model.opt) == 0

    def test_what_is_validated_is_what_is_evaluated(self, options):
        model = made(**options)
        data = {"validation_data": HELD_OUT, "validation_batch_size": 20}
        history = fit(model, **data).history
        found = model.evaluate(*HELD_OUT, batch_size=20, verbose=0, return_dict=True)
        assert found == {"loss": history["val_loss"][-1]}

    def test_callbacks_find_it(self, options):
        model, look = made(**options), Look()
        history, guard = SkipHistory(every=10), SkipGuard(monitor="loss", tolerance=0.0)
        fit(model, epochs=3, callbacks=[history, guard, look])
        records = history.history["user"]
        assert [record["step"] for record in records] == [10, 20, 30, 40, 50, 60, 70, 80, 90]
        assert records[-1]["num_deferred_lookups"] > 0
        assert [decision["step"] for decision in guard.history] == [30, 60, 90]
        assert guard.history[0]["action"] == "keep"

    def test_a_guard_wakes_rows_and_tightens(self, options):
        model = made(**options)
        asleep = []

        class Planted(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                logs["val_auc"] = [0.9, 0.5][epoch]
                asleep.append(num_asleep(model.opt))

        class After(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                asleep.append(num_asleep(model.opt))

        guard = SkipGuard(loss_tolerance=None)
        fit(model, callbacks=[Planted(), guard, After()])
        assert [number > 0 for number in asleep] == [True, True, True, False]
        assert model.opt.strictness == 0.5

    def test_what_is_saved_is_what_it_predicts(self, options, tmp_path):
        model = made(**options)
        for step in range(20):
            batch = slice(16 * step, 16 * step + 16)
            model.train_on_batch(DATA[0][batch], DATA[1][batch])
        assert num_held(model.opt)
        model.save_weights(str(tmp_path / "model.weights.h5"))
        assert num_held(model.opt) == 0 < num_asleep(model.opt)
        other = made(**options)
        other(HELD_OUT[0])
        if IS_KERAS_3:
            for optimizer in filter(None, (other.opt, other.dense_opt)):
                optimizer.build(other.trainable_variables)
        predictions = [model.predict(HELD_OUT[0], verbose=0)]
        other.table.set_weights(model.table.get_weights())
        other.output_layer.set_weights(model.output_layer.get_weights())
        predictions.append(other.predict(HELD_OUT[0], verbose=0))
        np.testing.assert_array_equal(*predictions)

    def test_a_tracker_finds_it(self, options, tmp_path):
        model = made(**options)
        tracker = export.DeltaTracker(model)
        model.train_on_batch(np.full([16, 3], 3), np.ones([16, 1]))
        assert set(tracker.tables) == {"user"}
        inputs = tf.TensorSpec([None, 3], tf.int64)
        export.save_version(model, tmp_path / "1", inputs=inputs)
        model.train_on_batch(np.full([16, 3], 7), np.ones([16, 1]))
        model.opt.settle()
        assert tracker.changed_rows(1)["user"].tolist() == [3, 7]


def test_a_table_that_another_optimizer_trains_is_left_alone():
    """A callback must not have the optimizer take what the step never gives it."""
    model = made(is_split=True)
    fit(model, callbacks=[SkipHistory(), SkipGuard(monitor="loss")])
    assert list(model.opt.tables) == ["user"]
    assert model.opt.engine.dense_variables == []


def test_a_callback_finds_the_optimizer_of_a_model_that_fit_builds():
    model = keras.Sequential(
        [SlipstreamEmbedding(NUM_ROWS, 3, name="user"), keras.layers.Lambda(tf.reduce_mean)]
        if not IS_KERAS_3
        else [SlipstreamEmbedding(NUM_ROWS, 3, name="user"), keras.layers.GlobalMaxPooling1D()]
    )
    model.compile(SlipstreamOptimizer("adam", policy=sleepy()), loss="mse")
    history = SkipHistory(every=10)
    fit(model, epochs=1, callbacks=[history])
    assert [record["step"] for record in history.history["user"]] == [10, 20, 30]


@pytest.mark.skipif(
    IS_KERAS_3 or importlib.util.find_spec("tensorflow_recommenders") is None,
    reason="TFRS 0.7.7 refuses Keras 3",
)
class TestCompositeOptimizer:
    def make(self):
        import tensorflow_recommenders as tfrs

        model = Clicks()
        model(HELD_OUT[0])
        composite = tfrs.experimental.optimizers.CompositeOptimizer(
            [
                (model.opt, lambda: model.table.trainable_variables),
                (keras.optimizers.SGD(0.25), lambda: model.output_layer.trainable_variables),
            ]
        )
        plain = keras.Sequential([model.table, model.flatten, model.output_layer])
        plain.compile(composite, loss="binary_crossentropy")
        plain.opt = model.opt
        return plain

    def test_the_end_of_fit_applies_what_is_held_and_callbacks_find_the_tables(self):
        model, look = self.make(), Look()
        history, guard = SkipHistory(every=10), SkipGuard(monitor="loss", tolerance=0.0)
        fit(model, epochs=1, callbacks=[history, guard, look])
        assert look.seen[0] > 0 == num_asleep(model.opt) == num_held(model.opt)
        assert [record["step"] for record in history.history["user"]] == [10, 20, 30]
        assert [decision["step"] for decision in guard.history] == [30]

    def test_what_is_validated_is_what_is_evaluated(self):
        model = self.make()
        data = {"validation_data": HELD_OUT, "validation_batch_size": 20}
        history = fit(model, **data).history
        found = model.evaluate(*HELD_OUT, batch_size=20, verbose=0, return_dict=True)
        assert found == {"loss": history["val_loss"][-1]}
        assert num_held(model.opt) == 0
