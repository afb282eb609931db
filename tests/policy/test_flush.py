"""Whatever reads a model's weights gets them with all that is held; the end of `fit` wakes rows."""

import numpy as np
import pytest
import tensorflow as tf

from tests.models import click_data, click_model, embedding_of, fit, in_turn, random_table
from tests.policy.test_saving import train_some
from tests.policy.training import inner_of, policies
from tf_slipstream import SlipstreamEmbedding, SlipstreamOptimizer, _compat
from tf_slipstream._compat import IS_KERAS_3, keras

IDS = np.array([[0, 1, 2], [9, 8, 7], [3, 3, 4], [5, 6, 0]])


def make_model(table=None, policy=None, name="sgd"):
    table = random_table() if table is None else table
    policy = policy or policies(drift_metric="l2", threshold=1e30, max_sleep=64)
    optimizer = SlipstreamOptimizer(inner_of(name), policy=policy)
    return click_model(embedding_of(table, name="user"), optimizer)


def held(model):
    """Returns how many batches the rows of a model's table hold."""
    return int(model.optimizer.tables["user"].pool_ints.numpy()[:, 4].sum())


def table_of(model):
    """Returns a copy of a model's table as it is, whatever is held."""
    return np.array(_compat.tf_variable(model.layers[1].embeddings).numpy())


def num_stale(model):
    return model.optimizer.skip_stats()["user"].num_stale_rows


def half_trained_model(name="sgd"):
    """Returns a model that holds gradients, and a copy of its table once they are applied."""
    made = []
    for _ in range(2):
        model = make_model(name=name)
        train_some(model, 40, seed=1)
        assert held(model) > 0
        made.append(model)
    model, twin = made
    before = table_of(model)
    twin.optimizer.wake_all()
    applied = table_of(twin)
    assert (before != applied).any()
    return model, applied


READERS = {
    "evaluate": lambda model: model.evaluate(IDS, np.ones([len(IDS), 1]), verbose=0),
    "predict": lambda model: model.predict(IDS, verbose=0),
    "test_on_batch": lambda model: model.test_on_batch(IDS, np.ones([len(IDS), 1])),
    "predict_on_batch": lambda model: model.predict_on_batch(IDS),
    "get_weights": lambda model: model.get_weights(),
    "get_weights of the layer": lambda model: model.layers[1].get_weights(),
    "settle": lambda model: model.optimizer.settle(),
}


@pytest.mark.parametrize("reader, name", in_turn(READERS, ["sgd", "adam"]))
def test_a_reader_sees_all_that_is_held_and_wakes_no_row(reader, name):
    model, applied = half_trained_model(name)
    sleeping = num_stale(model)
    READERS[reader](model)
    np.testing.assert_array_equal(table_of(model), applied)
    assert held(model) == 0 and num_stale(model) == sleeping > 0
    READERS[reader](model)
    np.testing.assert_array_equal(table_of(model), applied)
    train_some(model, 1, seed=2)  # and rows sleep on
    assert held(model) > 0


def test_training_on_after_validation_holds_what_it_held_before():
    """No row wakes because of a validation: as much is deferred as without any."""
    models = [make_model(), make_model()]
    for model in models:
        train_some(model, 40, seed=1)
    deferred = []
    for step in range(10):
        for model in models:
            train_some(model, 1, seed=step)
        models[1].evaluate(IDS, np.ones([len(IDS), 1]), verbose=0)
    for model in models:
        deferred.append(model.optimizer.skip_stats()["user"].num_deferred_lookups)
    # A row that held some of a period's batches begins to count them anew.
    assert deferred[1] >= deferred[0]


@pytest.mark.parametrize("suffix", [".weights.h5"])
def test_saved_weights_are_those_with_all_that_is_held(suffix, tmp_path):
    model, applied = half_trained_model()
    model.save_weights(str(tmp_path / f"model{suffix}"))
    other = make_model(random_table(seed=9))
    other.load_weights(str(tmp_path / f"model{suffix}"))
    np.testing.assert_array_equal(table_of(other), applied)
    assert num_stale(model) > 0


# Not .h5: tf_keras cannot save any model of ours so, and Keras 3 asks no layer before it does.
@pytest.mark.parametrize("suffix", [".keras"])
def test_a_saved_model_has_all_that_was_held(suffix, tmp_path):
    model, applied = half_trained_model()
    model.save(str(tmp_path / f"model{suffix}"))
    loaded = keras.models.load_model(str(tmp_path / f"model{suffix}"))
    np.testing.assert_array_equal(table_of(loaded), applied)
    np.testing.assert_array_equal(table_of(model), applied)
    assert held(model) == held(loaded) == 0
    assert num_stale(model) == num_stale(loaded) > 0


@pytest.mark.parametrize("how", ["model.export", "tf.saved_model.save"])
def test_an_exported_model_has_all_that_was_held(how, tmp_path):
    model, applied = half_trained_model()
    folder = str(tmp_path / "model")
    if how == "model.export":
        model.export(folder)
        exported = tf.saved_model.load(folder)
        served = exported.serve(tf.constant(IDS))
    else:
        tf.saved_model.save(model, folder)
        exported = tf.saved_model.load(folder)
        (served,) = exported.signatures["serving_default"](tf.constant(IDS)).values()
    np.testing.assert_allclose(served, outputs_with(model, applied), rtol=1e-6)


def outputs_with(model, table):
    """Returns what a model of this dense part and this table makes of `IDS`."""
    other = make_model(table)
    other.layers[-1].set_weights(model.layers[-1].get_weights())
    return np.array(other(tf.constant(IDS)))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_after_fit_nothing_is_held(name):
    model = make_model(name=name)
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs=None: seen.append(held(model))
    )
    fit(model, click_data(16 * 40), epochs=2, callbacks=[watch])
    assert max(seen) > 0 and held(model) == 0
    stats = model.optimizer.skip_stats()["user"]
    assert stats.num_deferred_lookups > 0 and stats.num_stale_rows == 0


@pytest.mark.skipif(not IS_KERAS_3, reason="tf_keras's model checkpoints are tested by saving")
def test_a_model_checkpoint_within_fit_has_all_that_was_held(tmp_path):
    model, applied = make_model(), []
    path = str(tmp_path / "{epoch}.weights.h5")
    save = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    copy = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs=None: applied.append(
            (held(model), model.layers[1].get_weights()[0])
        )
    )
    fit(model, click_data(16 * 31), epochs=2, callbacks=[save, copy])
    for epoch, (num_held, table) in enumerate(applied, start=1):
        assert num_held == 0  # applied before it was saved
        other = make_model(random_table(seed=9))
        other.load_weights(str(tmp_path / f"{epoch}.weights.h5"))
        np.testing.assert_array_equal(other.layers[1].get_weights()[0], table)


def test_a_model_of_several_tables_is_flushed_whole(tmp_path):
    inputs = keras.Input([2], dtype="int64")
    layers = [SlipstreamEmbedding(10, 2, name=name) for name in ("user", "item")]
    rows = [layer(inputs[:, number]) for number, layer in enumerate(layers)]
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()(rows)))
    policy = policies(drift_metric="l2", threshold=1e30)
    model.compile(SlipstreamOptimizer(inner_of("adam"), policy=policy), loss="mse")
    ids, labels = click_data(16 * 40)
    for start in range(0, len(ids), 16):
        model.train_on_batch(ids[start : start + 16, :2], labels[start : start + 16])
    tables = model.optimizer.tables.values()
    assert all(state.pool_ints.numpy()[:, 4].any() for state in tables)
    model.save(str(tmp_path / "model.keras"))
    assert not any(state.pool_ints.numpy()[:, 4].any() for state in tables)


class TestForward:
    """Reading rows is no reason to wake them."""

    def test_a_call_between_steps_changes_nothing(self):
        model = make_model()
        train_some(model, 40, seed=1)
        num_held, table = held(model), table_of(model)
        assert num_held > 0
        model(tf.constant(IDS))
        assert held(model) == num_held
        np.testing.assert_array_equal(table_of(model), table)

    def test_rows_sleep_in_an_eager_loop_too(self):
        layer = embedding_of(random_table(), name="user")
        policy = policies(drift_metric="l2", threshold=1e30)
        optimizer = SlipstreamOptimizer(inner_of("sgd"), policy=policy)
        table = _compat.tf_variable(layer.embeddings)
        for _ in range(30):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(tf.constant([0, 1, 2])) ** 2)
            optimizer.apply_gradients([(tape.gradient(loss, table), layer.embeddings)])
        assert optimizer.skip_stats()["user"].num_deferred_lookups > 30
