"""Checks the distinct live ids of a step and the sums of their gradients."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings as hypothesis_settings

from tests.ops import tables
from tests.ops.tables import RULE_CASES, slices
from tests.reference import summed_rows
from tf_slipstream.ops import _library
from tf_slipstream.ops._tables import pool_arguments
from tf_slipstream.ops.live_slices import live_slices

SGD = RULE_CASES["sgd"].rule


def step_of(number):
    return tf.constant(number, tf.int64)


def expected_slices(ids, grads, is_live):
    """Returns distinct live ids by first appearance, and float32 sums in batch order."""
    distinct = list(dict.fromkeys(i for i in ids.tolist() if is_live(i)))
    sums = np.zeros([len(distinct), grads.shape[1]], np.float32)
    for row_id, grad in zip(ids.tolist(), grads):
        if is_live(row_id):
            sums[distinct.index(row_id)] += grad
    return np.array(distinct, ids.dtype), sums


@hypothesis_settings(max_examples=30)
@given(plan=tables.plans())
def test_each_live_id_comes_once_in_order_with_the_sum_of_its_gradients(plan):
    _check_each_live_id(plan, native=True)


@hypothesis_settings(max_examples=15)
@given(plan=tables.plans())
def test_each_id_comes_once_in_order_with_the_sum_of_its_gradients_in_the_fallback(plan):
    _check_each_live_id(dataclasses.replace(plan, wake_steps=None), native=False)


def _check_each_live_id(plan, native):
    state = tables.new_state(SGD, plan.values(), wake_steps=plan.wake_steps)
    with tables.native_or_fallback_ops(native):
        for step, ids, grads, _ in plan.steps():
            (live,) = live_slices([state], [slices(ids, grads)], step_of(step))
            live_ids = plan.live_ids(step)
            expected_ids, sums = expected_slices(ids, grads, live_ids.__contains__)
            assert live.indices.dtype == plan.index_dtype
            assert list(live.dense_shape) == [plan.num_rows, plan.dim]
            np.testing.assert_array_equal(live.indices.numpy(), expected_ids)
            np.testing.assert_array_equal(live.values.numpy(), sums)
    assert not state.counters.numpy().any()


@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
def test_many_lookups_are_summed_in_batch_order(native_or_fallback, index_dtype):
    """To the bit: NumPy in float32 adds the same numbers in the same order."""
    random = np.random.default_rng(0)
    ids = (random.zipf(1.2, 60_000) % 5_000).astype(index_dtype)
    grads = random.standard_normal([60_000, 8], np.float32)
    state = tables.new_state(SGD, np.zeros([5_000, 8]))
    (live,) = live_slices([state], [slices(ids, grads)], step_of(1))
    distinct_ids, exact_sums = summed_rows(ids, grads)
    np.testing.assert_array_equal(live.indices.numpy(), distinct_ids)
    sums = np.zeros([5_000, 8], np.float32)
    np.add.at(sums, ids, grads)
    np.testing.assert_array_equal(live.values.numpy(), sums[distinct_ids])
    # A sum of n terms rounds n - 1 times, by half an epsilon of at most the sum of their sizes.
    sizes = np.zeros([5_000, 8])
    np.add.at(sizes, ids, np.abs(grads))
    bound = tables.EPSILON / 2 * np.bincount(ids, minlength=5_000)[:, np.newaxis] * sizes
    assert (np.abs(live.values.numpy() - exact_sums) <= bound[distinct_ids]).all()


def test_several_tables_at_once_equal_one_by_one(native_or_fallback):
    random = np.random.default_rng(0)
    states, batches = [], []
    for num_rows, dim, num_lookups in [(5, 3, 8), (40, 17, 0), (700, 8, 9_000), (1, 1, 3)]:
        states.append(tables.new_state(SGD, np.zeros([num_rows, dim])))
        ids = random.integers(0, num_rows, num_lookups)
        batches.append(slices(ids, random.standard_normal([num_lookups, dim], np.float32)))
    together = live_slices(states, batches, step_of(1))
    for state, batch, live in zip(states, batches, together, strict=True):
        (alone,) = live_slices([state], [batch], step_of(1))
        assert live.indices.numpy().tobytes() == alone.indices.numpy().tobytes()
        assert live.values.numpy().tobytes() == alone.values.numpy().tobytes()
        assert live.values.shape == [len(np.unique(batch.indices)), state.table.shape[1]]


def test_in_a_function_the_results_are_those_of_eager_execution(native_or_fallback):
    is_native = native_or_fallback == "native"
    wake_steps = [0, 0, 9, 0, 2, 0] if is_native else None
    state = tables.new_state(SGD, np.zeros([6, 3]), wake_steps=wake_steps)
    ids = np.array([5, 2, 4, 5, 0, 4, 5])
    grads = np.random.default_rng(0).standard_normal([7, 3], np.float32)
    if is_native:
        grads[ids == 2] = np.nan

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, 3])])
    def in_function(ids, grads):
        (live,) = live_slices([state], [tf.IndexedSlices(grads, ids)], step_of(2))
        assert live.values.shape.as_list() == [None, 3]
        return live.indices, live.values

    (eager,) = live_slices([state], [slices(ids, grads)], step_of(2))
    live_ids, sums = in_function(ids, grads)
    expected_ids = [5, 4, 0] if is_native else [5, 2, 4, 0]
    np.testing.assert_array_equal(live_ids.numpy(), expected_ids)
    np.testing.assert_array_equal(live_ids.numpy(), eager.indices.numpy())
    np.testing.assert_array_equal(sums.numpy(), eager.values.numpy())


def _two_tables():
    return [tables.new_state(SGD, np.zeros([rows, 2]), name) for name, rows in [("a", 4), ("b", 6)]]


@pytest.mark.parametrize("bad_id, position", [(-1, 0), (6, 2), (2**40, 1)])
def test_an_id_outside_its_table_is_refused(native_or_fallback, bad_id, position):
    ids = np.array([5, 0, 0])
    ids[position] = bad_id
    ones = np.ones([3, 2], np.float32)
    message = tables.bad_id_message("b", bad_id, position, 6)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        live_slices(_two_tables(), [slices(np.zeros(3, int), ones), slices(ids, ones)], step_of(1))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_refused(native_or_fallback, value):
    ids, grads = np.array([0, 3, 3]), np.ones([3, 2], np.float32)
    bad = grads.copy()
    bad[2, 1] = value
    message = tables.bad_gradient_message("b", 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        live_slices(_two_tables(), [slices(ids, grads), slices(ids, bad)], step_of(1))


@pytest.mark.parametrize("grads_shape", [[3, 2], [1, 2], [2], [2, 2, 1]])
def test_gradients_of_another_shape_are_refused(grads_shape):
    batch = slices(np.zeros([2], np.int64), np.ones(grads_shape, np.float32))
    state = tables.new_state(SGD, np.zeros([4, 2]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected indices"):
        live_slices([state], [batch], step_of(1))


def test_a_step_that_is_no_scalar_is_refused_and_does_not_end_the_process():
    state = tables.new_state(SGD, np.zeros([6, 3]))
    one = tables.slices([1], np.ones([1, 3], np.float32))
    with pytest.raises(tf.errors.InvalidArgumentError, match="step must be a scalar"):
        live_slices([state], [one], step=tf.constant([1, 2], tf.int64))


def test_attributes_of_another_length_are_refused():
    state = tables.new_state(SGD, np.zeros([6, 3]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected 1 table_names"):
        _library.native_ops().slipstream_live_slices(
            **pool_arguments([state]),
            indices=[tf.constant([1])],
            grads=[tf.ones([1, 3])],
            step=tf.constant(1, tf.int64),
            table_names=["a", "b"],
            num_rows=[6, 6],
        )


@pytest.mark.parametrize("native", [True, False], ids=["native", "fallback"])
def test_a_function_can_return_live_slices(native):
    state = tables.new_state(SGD, np.zeros([6, 3]))
    one = tables.slices([4, 1, 4], np.ones([3, 3], np.float32))
    with tables.native_or_fallback_ops(native):
        (live,) = tf.function(lambda: live_slices([state], [one], tf.constant(1, tf.int64)))()
    assert live.indices.numpy().tolist() == [4, 1]
    assert live.dense_shape.numpy().tolist() == [6, 3]
