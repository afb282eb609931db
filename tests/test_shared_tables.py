"""A table that several optimizers train: all of them are asked, whoever reads or writes it."""

import numpy as np
import pytest
import tensorflow as tf

from tests.models import (
    assert_all_equal,
    click_data,
    click_model,
    embedding_of,
    fit,
    in_turn,
    num_asleep,
    num_held,
    random_table,
    sleepy,
    train_steps,
)
from tf_slipstream import SkipHistory, SlipstreamOptimizer, export
from tf_slipstream._compat import keras

NUM_ROWS = 20
DATA = click_data(16 * 60, num_rows=NUM_ROWS)
OTHER_DATA = click_data(16 * 60, num_rows=NUM_ROWS, seed=1)
HELD_OUT = click_data(50, num_rows=NUM_ROWS, seed=2)


def two_models(inner="Adam"):
    """Returns models over one layer, each with an optimizer of its own."""
    layer = embedding_of(random_table(NUM_ROWS), name="user")
    optimizers = [
        SlipstreamOptimizer(getattr(keras.optimizers, inner)(0.0625), policy=sleepy())
        for _ in range(2)
    ]
    return [click_model(layer, optimizer) for optimizer in optimizers]


def both_hold(inner="Adam"):
    """Returns such models, both of whose optimizers hold something of the table."""
    models = two_models(inner)
    for step in range(16):
        train_steps(models[0], DATA, step, step + 1)
        train_steps(models[1], OTHER_DATA, step, step + 1)
    assert all(num_held(model.optimizer) for model in models)
    return models


def predictions_of(model):
    """Returns what the model predicts of its table as it is."""
    return np.asarray(tf.function(lambda: model(HELD_OUT[0]))())


def _evaluate(model, folder):
    model.evaluate(*HELD_OUT, verbose=0)


def _predict(model, folder):
    model.predict(HELD_OUT[0], verbose=0)


def _save(model, folder):
    model.save(folder / "model.keras")


def _save_weights(model, folder):
    model.save_weights(str(folder / "model.weights.h5"))


def _export(model, folder):
    model.export(str(folder / "exported"))


def _publish(model, folder):
    export.save_version(model, folder / "1")


READ = [_evaluate, _predict, _save, _save_weights, _export, _publish]


@pytest.mark.parametrize("read, who", in_turn(READ, [0, 1]))
def test_whoever_reads_one_model_has_what_both_hold_applied(read, who, tmp_path):
    models = both_hold()
    asleep = [num_asleep(model.optimizer) for model in models]
    before = [predictions_of(model) for model in models]
    read(models[who], tmp_path)
    assert [num_held(model.optimizer) for model in models] == [0, 0]
    assert [num_asleep(model.optimizer) for model in models] == asleep
    for model, old in zip(models, before):
        new = predictions_of(model)
        assert not np.array_equal(new, old)
        np.testing.assert_array_equal(model.predict(HELD_OUT[0], batch_size=50, verbose=0), new)


def test_the_file_of_one_has_what_both_held(tmp_path):
    models = both_hold()
    models[0].save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predictions_of(loaded), predictions_of(models[0]))
    assert_all_equal(loaded.get_weights(), models[0].get_weights())


def test_the_end_of_fit_of_one_wakes_the_rows_of_both():
    models = both_hold()
    fit(models[0], DATA)
    assert [num_asleep(model.optimizer) for model in models] == [0, 0]
    assert [num_held(model.optimizer) for model in models] == [0, 0]


@pytest.mark.parametrize("inner", ["Adagrad", "Adam"])
def test_values_that_were_set_are_not_moved_by_what_either_held(inner):
    models = both_hold(inner)
    table = random_table(NUM_ROWS, seed=5)
    models[0].layers[1].set_weights([table])
    for model in models:
        assert num_held(model.optimizer) == 0
        model.optimizer.wake_all()
    np.testing.assert_array_equal(models[1].layers[1].get_weights()[0], table)


@pytest.mark.parametrize("inner, who", in_turn(["Adagrad", "Adam"], [0, 1]))
def test_a_tracker_of_one_model_sees_rows_that_either_trained(who, inner, tmp_path):
    models = two_models(inner)
    for model in models:
        model.optimizer.build(model.trainable_variables)
    tracker = export.DeltaTracker(models[who])
    assert [len(table.states) for table in tracker.tables.values()] == [2]
    export.save_version(models[who], tmp_path / "1")
    before = models[0].layers[1].get_weights()[0]
    models[0].train_on_batch(np.full([16, 3], 3), np.ones([16, 1]))
    assert tracker.changed_rows(1)["user"].tolist() == [3]
    models[1].train_on_batch(np.full([16, 3], 7), np.ones([16, 1]))
    assert tracker.changed_rows(1)["user"].tolist() == [3, 7]
    export.save_delta(models[who], 1, tmp_path / "delta")
    export.apply_delta(tmp_path / "1", tmp_path / "delta", tmp_path / "2")
    reader = tf.train.load_checkpoint(str(tmp_path / "2" / "variables" / "variables"))
    published = reader.get_tensor("model_variables/0/.ATTRIBUTES/VARIABLE_VALUE")
    np.testing.assert_array_equal(published, models[0].layers[1].get_weights()[0])
    changed = np.flatnonzero((published != before).any(axis=1))
    assert changed.tolist() == [3, 7]
    assert tracker.changed_rows(2)["user"].tolist() == []


def test_an_optimizer_that_comes_later_is_tracked_too(tmp_path):
    models = two_models("Adagrad")
    models[0].optimizer.build(models[0].trainable_variables)
    tracker = export.DeltaTracker(models[0])
    train_steps(models[0], DATA, 0, 1)
    export.save_version(models[0], tmp_path / "1")
    models[1].train_on_batch(np.full([16, 3], 7), np.ones([16, 1]))
    assert tracker.changed_rows(1)["user"].tolist() == [7]
    export.save_delta(models[0], 1, tmp_path / "delta")
    models[1].train_on_batch(np.full([16, 3], 8), np.ones([16, 1]))
    assert tracker.changed_rows(2)["user"].tolist() == [8]
    assert tracker.changed_rows(1)["user"].tolist() == [7, 8]


def test_a_model_that_is_gone_is_asked_no_more():
    models = both_hold()
    optimizer = models[1].optimizer
    del models[1], optimizer
    keras.backend.clear_session()
    models[0].evaluate(*HELD_OUT, verbose=0)
    assert num_held(models[0].optimizer) == 0


def test_the_history_is_that_of_the_models_own_optimizer():
    models = both_hold()
    history = SkipHistory(every=20)
    fit(models[0], DATA, callbacks=[history])
    assert [record["step"] for record in history.history["user"]] == [36, 56, 76]
