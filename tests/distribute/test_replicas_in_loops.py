"""Checks what goes with training over replicas: checkpoints, clipping, errors, custom loops."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.replicas import (
    DIM,
    NUM_ROWS,
    Batch,
    Replicated,
    alone,
    assert_same,
    batches,
    strategy_of,
)
from tests.policy.training import policies
from tf_slipstream import SlipstreamEmbedding, SlipstreamOptimizer, _compat
from tf_slipstream._compat import keras
from tf_slipstream.engine import tables as engine_tables

DEFER = policies(threshold=1e9)


def asleep_after(num_steps, num_replicas=2, name="sgd"):
    """Returns a training whose replicas hold gradients, and the batches that come next."""
    replicated = Replicated(num_replicas, name, DEFER)
    stream = list(batches(num_replicas, num_steps + 30))
    for batch in stream[:num_steps]:
        replicated.step(batch)
    assert replicated.local_held().any(axis=(1, 2)).all()
    return replicated, stream[num_steps:]


@pytest.mark.parametrize("num_replicas,num_restored", [(2, 2), (2, 4)])
def test_a_checkpoint_has_what_all_replicas_hold(tmp_path, num_replicas, num_restored):
    replicated, coming = asleep_after(40, num_replicas)
    before = replicated.arrays()
    checkpoint = tf.train.Checkpoint(layer=replicated.layer, optimizer=replicated.optimizer)
    path = checkpoint.save(str(tmp_path / "training"))
    restored = Replicated(num_restored, "sgd", DEFER)
    tf.train.Checkpoint(layer=restored.layer, optimizer=restored.optimizer).restore(path)
    for name, array in restored.arrays().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    for batch in coming:
        replicated.step(batch)
        # The other replicas, if any, look nothing up.
        last = np.repeat(batch.splits[-1:], num_restored - num_replicas)
        restored.step(dataclasses.replace(batch, splits=np.append(batch.splits, last)))
    np.testing.assert_equal(restored.arrays(), replicated.arrays())


def test_a_checkpoint_of_one_device_goes_on_over_replicas(tmp_path):
    stream = list(batches(2, 70))
    single = alone("sgd", DEFER)
    for batch in stream[:40]:
        single.step(batch.ids, batch.grads)
    assert single.num_held()
    path = tf.train.Checkpoint(layer=single.layer, optimizer=single.optimizer).save(
        str(tmp_path / "training")
    )
    restored = Replicated(2, "sgd", DEFER)
    tf.train.Checkpoint(layer=restored.layer, optimizer=restored.optimizer).restore(path)
    for batch in stream[40:]:
        single.step(batch.ids, batch.grads)
        restored.step(batch)
    assert_same(restored, single)


def test_loading_saved_variables_forgets_what_was_held(tmp_path):
    replicated, coming = asleep_after(40)
    store = {}
    replicated.optimizer.save_own_variables(store)
    store = {key: np.array(value) for key, value in store.items()}
    table = replicated.state.table.numpy()
    assert not replicated.local_held().any()
    for batch in coming:
        replicated.step(batch)
    assert replicated.local_held().any()
    replicated.optimizer.load_own_variables(store)
    assert not replicated.local_held().any()
    restored = Replicated(2, "sgd", DEFER)
    restored.optimizer.load_own_variables(store)
    for one in (replicated, restored):
        one.layer.set_weights([table])
        for batch in coming:
            one.step(batch)
    assert_same(restored, replicated)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_settling_and_waking_trace_nothing_anew(name, monkeypatch):
    replicated, coming = asleep_after(40, name=name)
    settle_rows, traced = engine_tables.settle_rows, []

    def traced_settle_rows(rule, states, settings, weight_decays, wake):
        traced.append(wake)
        return settle_rows(rule, states, settings, weight_decays, wake)

    monkeypatch.setattr(engine_tables, "settle_rows", traced_settle_rows)
    for number, batch in enumerate(coming):
        replicated.step(batch)
        if number % 3 == 0:
            replicated.optimizer.settle()
        if number % 6 == 0:
            replicated.optimizer.wake_all()
            assert not replicated.optimizer.skip_stats()["user"].num_stale_rows
        if number == 0:
            num_traced = len(traced)
    # Two replicas each, for either.
    assert sorted(traced) == [False] * 2 + [True] * 2 and len(traced) == num_traced


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_settling_applies_what_all_replicas_hold_and_wakes_nothing(name):
    replicated, _ = asleep_after(40, name=name)
    single = alone(name, DEFER)
    for batch in list(batches(2, 70))[:40]:
        single.step(batch.ids, batch.grads)
    num_asleep = replicated.optimizer.skip_stats()["user"].num_stale_rows
    before = replicated.state.table.numpy()
    for one in (replicated, single):
        one.optimizer.settle()
    assert_same(replicated, single)
    assert not replicated.local_held().any()
    assert replicated.optimizer.skip_stats()["user"].num_stale_rows == num_asleep > 0
    assert not np.array_equal(replicated.state.table.numpy(), before)


def test_values_that_were_set_stay_on_all_replicas():
    replicated, coming = asleep_after(40, name="adam")
    values = np.full([NUM_ROWS, DIM], 0.5, np.float32)
    replicated.layer.set_weights([values])
    assert not replicated.local_held().any()
    replicated.optimizer.wake_all()
    for table in (one["table"] for one in replicated.replica_arrays()):
        np.testing.assert_array_equal(table, values)
    for batch in coming:
        replicated.step(batch)
    replicated.arrays()


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_clipping_is_that_of_the_sums_over_replicas(clip):
    options = {clip: 0.5}
    replicated = Replicated(2, "sgd", DEFER, **options)
    single = alone("sgd", DEFER, **options)
    assert replicated.state.local_held is None
    for batch in batches(2, 60):
        replicated.step(batch)
        single.step(batch.ids, batch.grads)
    actual, expected = replicated.arrays(), single.arrays()
    np.testing.assert_array_equal(actual["pool_ints"], expected["pool_ints"])
    # Norms are rounded sums of exact squares, in another order.
    tolerance = 60 * NUM_ROWS * np.finfo(np.float32).eps
    np.testing.assert_allclose(actual["table"], expected["table"], rtol=0, atol=tolerance)
    assert replicated.optimizer.skip_stats()["user"].num_deferred_lookups > 50


def test_any_gradients_train_as_on_one_device_but_for_rounding():
    replicated, single = Replicated(2, "adam", None), alone("adam", None)
    random = np.random.default_rng(3)
    for batch in batches(2, 40):
        grads = random.normal(size=batch.grads.shape).astype(np.float32)
        replicated.step(Batch(batch.ids, grads, batch.splits))
        single.step(batch.ids, grads)
    actual = replicated.arrays()["table"]
    # A sum of n terms errs by n eps of their size; a step of Adam is at most about the rate, and
    # passes a relative error on.
    tolerance = 40 * 22 * np.finfo(np.float32).eps * 0.125 * 10
    np.testing.assert_allclose(actual, single.arrays()["table"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("bad", ["id", "gradient"])
def test_what_is_wrong_on_one_replica_stops_all_before_any_change(bad):
    replicated, (batch, *_) = asleep_after(30)
    before, held = replicated.arrays(), replicated.local_held()
    ids, grads = np.arange(6), np.ones([6, DIM], np.float32)
    if bad == "id":
        ids[5] = NUM_ROWS
    else:
        grads[5] = np.nan
    with pytest.raises(tf.errors.InvalidArgumentError, match="table .*user"):
        replicated.step(Batch(ids, grads, np.array([0, 3, 6])))
    for name, array in replicated.arrays().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    np.testing.assert_array_equal(replicated.local_held(), held)
    replicated.step(batch)


def test_a_custom_loop_may_build_the_optimizer_in_its_first_step():
    strategy = strategy_of(2)
    with strategy.scope():
        layer = SlipstreamEmbedding(NUM_ROWS, DIM, "ones", name="user")
        dense = keras.layers.Dense(1, kernel_initializer="ones")
        layer.build()
        dense.build([None, DIM])
        inner = keras.optimizers.SGD(0.125, global_clipnorm=0.25)
        optimizer = SlipstreamOptimizer(inner, policy=DEFER)
        if keras.__name__ == "keras":
            optimizer.build([*layer.trainable_variables, *dense.trainable_variables])

    @tf.function
    def step(ids):
        def replica_step():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            with tf.GradientTape() as tape:
                outputs = dense(layer(ids[replica]))
                loss = tf.reduce_sum(outputs * tf.cast(replica + 1, tf.float32))
            variables = [*layer.trainable_variables, *dense.trainable_variables]
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))

        strategy.run(replica_step)

    variables = [*layer.trainable_variables, *dense.trainable_variables]
    before = [np.asarray(variable) for variable in variables]
    for _ in range(3):
        step(tf.constant([[1, 2, 2], [2, 3, 3]]))
    squares = 0.0
    for variable, start in zip(variables, before):
        copies = strategy.experimental_local_results(_compat.tf_variable(variable))
        first, second = (copy.numpy() for copy in copies)
        np.testing.assert_array_equal(first, second)
        assert (first != start).any()
        squares += np.sum((first - start) ** 2)
    # Three steps in one direction, each as long as the bound on the norm allows.
    np.testing.assert_allclose(np.sqrt(squares), 3 * 0.125 * 0.25, rtol=1e-3)
