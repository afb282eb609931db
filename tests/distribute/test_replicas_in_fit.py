"""Checks `fit` over replicas: validation, saving and loading have all that replicas hold."""

import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.replicas import strategy_of
from tests.models import (
    assert_all_equal,
    click_data,
    click_model,
    embedding_of,
    num_asleep,
    random_table,
    sleepy,
    train_steps,
)
from tf_slipstream import SlipstreamOptimizer
from tf_slipstream._compat import IS_KERAS_3, keras

DATA = click_data(16 * 40, num_rows=20)
HELD_OUT = click_data(64, num_rows=20, seed=1)
# tf_keras cannot read metrics of replicas from an .h5 file.
SUFFIX = ".weights.h5" if IS_KERAS_3 else ""


# Policies, and as many steps that rows sleep after twice as many.
POLICIES = {
    "none": (None, 20),
    "defer": (sleepy(), 40),
    "skip": (sleepy(on_stale="skip"), 40),
    "conservative": ("conservative", 290),
    "balanced": ("balanced", 180),
    "aggressive": ("aggressive", 80),
}


def make(seed=0, policy="defer"):
    with strategy_of(2).scope():
        rule = keras.optimizers.Adam(0.0625)
        optimizer = SlipstreamOptimizer(rule, policy=POLICIES[policy][0])
        layer = embedding_of(random_table(20, seed=seed), name="user")
        return click_model(layer, optimizer, metrics=["accuracy"])


def asleep(num_steps=20, seed=0):
    """Returns a model whose replicas hold something."""
    model = make(seed)
    train_steps(model, DATA, 0, num_steps)
    assert num_asleep(model.optimizer) and num_held(model)
    return model


def num_held(model):
    held = model.optimizer.tables["user"].local_held
    if held is None:
        return 0
    return sum(np.count_nonzero(one) for one in strategy_of(2).experimental_local_results(held))


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_validated_is_what_is_evaluated(policy):
    model, seen = make(policy=policy), []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((num_asleep(model.optimizer) > 0, num_held(model)))

    data = {"validation_data": HELD_OUT, "validation_batch_size": 16}
    ids, labels = click_data(8 * POLICIES[policy][1], num_rows=20)
    batches = {"batch_size": 8, "shuffle": False, "epochs": 2}
    history = model.fit(ids, labels, callbacks=[Look()], verbose=0, **batches, **data).history
    found = model.evaluate(*HELD_OUT, batch_size=16, verbose=0, return_dict=True)
    assert found == {name: history[f"val_{name}"][-1] for name in ("loss", "accuracy")}
    assert seen[-1] == (policy != "none", 0)
    assert num_asleep(model.optimizer) == num_held(model) == 0


def test_the_file_predicts_what_the_model_predicts(tmp_path):
    model = asleep()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert num_held(model) == 0 < num_asleep(model.optimizer)
    predictions = [one.predict(HELD_OUT[0], batch_size=64, verbose=0) for one in (model, loaded)]
    np.testing.assert_array_equal(*predictions)
    assert_all_equal(loaded.get_weights(), model.get_weights())


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_weights_that_were_loaded_stay_on_all_replicas(with_optimizer, tmp_path):
    path = str(tmp_path / f"model{SUFFIX}")
    if with_optimizer:
        other = asleep(seed=5)
    else:
        layer = embedding_of(random_table(20, seed=5), name="user")
        other = click_model(layer, "sgd", metrics=["accuracy"])
        other.test_on_batch(*HELD_OUT)
    other.save_weights(path)
    model = asleep()
    model.load_weights(path)
    assert num_held(model) == 0
    state = model.optimizer.tables["user"]
    momentum = state.slots[0].numpy()
    assert bool(momentum.any()) == with_optimizer
    if with_optimizer:
        np.testing.assert_array_equal(momentum, other.optimizer.tables["user"].slots[0].numpy())
    model.optimizer.wake_all()
    for table in strategy_of(2).experimental_local_results(state.table):
        np.testing.assert_array_equal(tf.convert_to_tensor(table), other.get_weights()[0])
