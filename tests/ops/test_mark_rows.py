"""Checks that bits of `changed_rows` are set and cleared, and no others, whatever runs beside."""

import dataclasses
import threading

import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.replicas import strategy_of
from tests.ops import tables
from tests.ops.tables import RULE_CASES
from tf_slipstream.ops.mark_rows import mark_all_changed, mark_rows

SGD = RULE_CASES["sgd"].rule
NUM_ROWS = 100


def state_of(words, dtype="int32", num_rows=NUM_ROWS):
    """Returns a state with these words of `changed_rows`, as a variable of this type."""
    state = tables.new_state(SGD, np.zeros([num_rows, 3]), "user")
    values = np.asarray(words, np.int32).view(dtype)
    return dataclasses.replace(state, changed_rows=tf.Variable(values))


def words_of(state):
    return state.changed_rows.numpy().view(np.int32)


@pytest.mark.parametrize("dtype", ["int32", "uint32"])
def test_bits_are_set_and_others_stay(native_or_fallback, dtype):
    before = np.array([1, -1, 0, 0x50], np.int32)
    state = state_of(before, dtype)
    new = np.array([2, 5, -1, 0x30], np.int32)
    mark_rows(state, new)
    np.testing.assert_array_equal(words_of(state), before | new)


@pytest.mark.parametrize("dtype", ["int32", "uint32"])
def test_bits_are_cleared_and_others_stay(native_or_fallback, dtype):
    before = np.array([3, -1, np.iinfo(np.int32).min, 0x50], np.int32)
    state = state_of(before, dtype)
    old = np.array([1, np.iinfo(np.int32).min, np.iinfo(np.int32).min, 0], np.int32)
    mark_rows(state, old, clear=True)
    np.testing.assert_array_equal(words_of(state), before & ~old)


@pytest.mark.parametrize("shape", [[], [3], [5], [4, 1]])
def test_words_of_another_shape_are_refused(shape):
    state = state_of(np.arange(4))
    with pytest.raises(tf.errors.InvalidArgumentError, match="`words` must have the shape"):
        mark_rows(state, np.ones(shape, np.int32))
    np.testing.assert_array_equal(words_of(state), np.arange(4))


@pytest.mark.parametrize("clear", [False, True])
def test_every_replica_has_them(clear, native_or_fallback):
    strategy = strategy_of(2)
    with strategy.scope():
        words = tf.Variable(np.full(4, 3, np.int32))
    state = dataclasses.replace(state_of(np.zeros(4)), changed_rows=words)
    mark_rows(state, np.full(4, 2, np.int32), clear)
    for one in strategy.experimental_local_results(words):
        np.testing.assert_array_equal(one.numpy(), 1 if clear else 3)


def test_a_value_that_was_read_stays_as_it_was():
    state = state_of(np.zeros(4))
    before = state.changed_rows.read_value()
    mark_rows(state, np.full(4, -1, np.int32))
    assert not before.numpy().any()
    assert words_of(state).all()


def test_threads_lose_nothing_of_each_other():
    num_words, num_bits = 4096, 32
    state = state_of(np.zeros(num_words), num_rows=32 * num_words)
    # Every even bit is set to begin with, and cleared by one thread; another sets the odd ones.
    mark_rows(state, np.full(num_words, 0x55555555, np.int32))
    start = threading.Barrier(2)

    def run(first, clear):
        start.wait()
        for bit in range(first, num_bits, 2):
            mark_rows(state, np.full(num_words, 1 << bit, np.uint32).view(np.int32), clear)

    threads = [threading.Thread(target=run, args=args) for args in ((0, True), (1, False))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(words_of(state).view(np.uint32).tolist()) == {0xAAAAAAAA}


@pytest.mark.parametrize("num_rows", [1, 31, 32, 33])
@pytest.mark.parametrize("dtype", ["int32", "uint32"])
def test_all_rows_can_be_marked_as_changed(num_rows, dtype):
    state = state_of(np.zeros(-(-num_rows // 32)), dtype, num_rows)
    mark_all_changed(state)
    assert tables.changed(words_of(state), num_rows).all()
