"""Save and restore in the middle of a sleep, continue: the same as never stopping."""

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
from tests.policy.training import RULES, Product, Stream, inner_of, policies
from tf_slipstream import SlipstreamOptimizer
from tf_slipstream._compat import keras

STREAM = Stream(num_steps=60, change_rate_at=45)
POLICY = policies(
    threshold=None, target_skip=0.5, max_threshold=2.0, max_sleep=16, refresh_every=50
)
STOP = 33


def checkpoint_of(product):
    return tf.train.Checkpoint(layer=product.layer, optimizer=product.optimizer)


@pytest.mark.parametrize("on_stale", ["defer", "skip"])
@pytest.mark.parametrize("name", RULES)
def test_a_checkpoint_continues_to_the_bit(name, on_stale, tmp_path):
    policy = policies(on_stale=on_stale, threshold=2.0, max_sleep=16, refresh_every=50)
    whole = Product(STREAM.values(), name, policy)
    for step, batch in enumerate(STREAM.steps(), start=1):
        whole.step(*batch)
        if step == STOP:
            whole.optimizer.set_strictness(0.75)
            path = checkpoint_of(whole).save(str(tmp_path / "checkpoint"))
            held = whole.arrays()
    _check_sleeps(held, on_stale)
    again = Product(np.zeros_like(STREAM.values()), name, policy)
    checkpoint_of(again).restore(path).assert_existing_objects_matched()
    _continue_and_compare(again, whole, held)


def test_the_values_of_its_variables_continue_to_the_bit():
    whole = Product(STREAM.values(), "adam", POLICY)
    for step, batch in enumerate(STREAM.steps(), start=1):
        whole.step(*batch)
        if step == STOP:
            held, weights = whole.arrays(), values_of(whole.optimizer.variables)
    again = Product(held["table"], "adam", POLICY)
    again.optimizer.set_weights(weights)
    _continue_and_compare(again, whole, held)


def _check_sleeps(arrays, on_stale):
    entries = arrays["pool_ints"]
    assert (entries[:, 1] > STOP + 1).any()
    assert entries[:, 4].any() == (on_stale == "defer")


def _continue_and_compare(again, whole, held):
    for name, array in again.arrays().items():
        assert array.tobytes() == held[name].tobytes(), name
    for step, batch in enumerate(STREAM.steps(), start=1):
        if step > STOP:
            again.step(*batch)
    expected = whole.arrays()
    for name, array in again.arrays().items():
        assert array.tobytes() == expected[name].tobytes(), name


def model_of(on_stale="defer", table=None):
    table = random_table() if table is None else table
    policy = policies(on_stale=on_stale, drift_metric="l2", threshold=1e30, max_sleep=16)
    optimizer = SlipstreamOptimizer(inner_of("amsgrad"), policy=policy)
    return click_model(embedding_of(table, name="user"), optimizer)


def train_some(model, num_steps, seed):
    ids, labels = click_data(16 * num_steps, seed=seed)
    for step in range(num_steps):
        batch = slice(16 * step, 16 * (step + 1))
        model.train_on_batch(ids[batch], labels[batch])


def state_of(model):
    return [np.array(w) for w in model.get_weights()] + values_of(model.optimizer.variables)


@pytest.mark.parametrize("on_stale", ["defer", "skip"])
def test_a_keras_file_continues_to_the_bit(on_stale, tmp_path):
    model = model_of(on_stale)
    train_some(model, 30, seed=1)
    assert model.optimizer.skip_stats()["user"].num_stale_rows > 0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert_all_equal(state_of(loaded), state_of(model))
    for one in (model, loaded):
        train_some(one, 30, seed=2)
    assert_all_equal(state_of(loaded), state_of(model))
    stats = loaded.optimizer.skip_stats()["user"]
    assert stats == model.optimizer.skip_stats()["user"]
    assert stats.num_deferred_lookups + stats.num_skipped_lookups > 0


@pytest.mark.parametrize("on_stale", ["defer", "skip"])
def test_a_model_continues_from_a_checkpoint_to_the_bit(on_stale, tmp_path):
    """A new process traces its model anew; that is no reason to wake a row."""
    model = model_of(on_stale)
    train_some(model, 30, seed=1)
    saved = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    path = saved.save(str(tmp_path / "checkpoint"))
    restored = model_of(on_stale, table=random_table(seed=9))
    restored.optimizer.build(restored.trainable_variables)
    tf.train.Checkpoint(model=restored, optimizer=restored.optimizer).restore(path)
    for one in (model, restored):
        train_some(one, 20, seed=2)
    assert_all_equal(state_of(restored), state_of(model))


class Interrupt(keras.callbacks.Callback):
    """Fails at the begin of an epoch, once."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise InterruptedError


def test_backup_and_restore_resumes_to_the_bit(tmp_path):
    def train(model, folder, *callbacks):
        backup = keras.callbacks.BackupAndRestore(str(tmp_path / folder))
        fit(model, click_data(256), epochs=4, callbacks=[backup, *callbacks])
        return state_of(model)

    expected = train(model_of(), "whole")
    with pytest.raises(InterruptedError):
        train(model_of(), "interrupted", Interrupt())
    assert_all_equal(train(model_of(table=random_table(seed=9)), "interrupted"), expected)
