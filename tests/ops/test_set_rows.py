"""Checks that rows are written, all or none, and that a dense read keeps its values."""

import numpy as np
import pytest
import tensorflow as tf

from tests.ops import tables
from tests.ops.tables import RULE_CASES
from tf_slipstream.ops.set_rows import set_rows

SGD = RULE_CASES["sgd"].rule


def state_of(dtype="float32", num_rows=5):
    state = tables.new_state(SGD, np.arange(num_rows * 3).reshape(num_rows, 3), "user")
    object.__setattr__(state, "table", tf.Variable(tf.cast(state.table, dtype)))
    return state


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ids", [[], [4], [3, 0], [4, 3, 2, 1, 0]])
def test_exactly_these_rows_are_set(native_or_fallback, ids, dtype):
    state = state_of(dtype)
    rows = tf.cast(-1.0 - np.arange(3 * len(ids)).reshape(-1, 3), dtype)
    expected = tf.cast(state.table, tf.float32).numpy()
    expected[ids] = tf.cast(rows, tf.float32)
    before = state.table.read_value()
    copy = tf.cast(before, tf.float32).numpy().copy()
    set_rows(state, tf.constant(ids, tf.int64), rows)
    np.testing.assert_array_equal(tf.cast(state.table, tf.float32), expected)
    np.testing.assert_array_equal(tf.cast(before, tf.float32), copy)


def test_in_a_function_it_does_the_same(native_or_fallback):
    state = state_of()
    tf.function(lambda: set_rows(state, tf.constant([2], tf.int64), tf.zeros([1, 3])))()
    assert state.table.numpy()[2].tolist() == [0, 0, 0]
    assert state.table.numpy()[1].tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    "ids, shape, message",
    [
        ([1, 5], [2, 3], tables.bad_id_message("user", 5, 1, 5)),
        ([-1], [1, 3], tables.bad_id_message("user", -1, 0, 5)),
        ([1], [2, 3], "table 'user'.*rows"),
        ([1], [1, 4], "table 'user'.*rows"),
        ([1], [3], "table 'user'.*rows"),
        ([[1]], [1, 3], "table 'user'.*ids"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(native_or_fallback, ids, shape, message):
    state = state_of()
    before = tables.arrays_of(state)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        set_rows(state, tf.constant(ids, tf.int64), -tf.ones(shape))
    tables.assert_same_bits(tables.arrays_of(state), before)


def test_rows_of_another_dtype_are_refused(native_or_fallback):
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected bfloat16, got float"):
        set_rows(state_of(), tf.constant([1], tf.int64), tf.zeros([1, 3], tf.bfloat16))


def test_it_writes_into_the_variables_own_memory():
    """A write that leaves the table copy-on-read would make each later read a copy."""
    state = state_of()

    def address():
        return np.asarray(memoryview(state.table.read_value())).__array_interface__["data"][0]

    set_rows(state, tf.constant([1], tf.int64), tf.zeros([1, 3]))
    before = address()
    set_rows(state, tf.constant([2], tf.int64), tf.zeros([1, 3]))
    assert address() == before
