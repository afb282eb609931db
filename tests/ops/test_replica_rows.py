"""Checks what a replica sends of its step, and what it holds back, against NumPy."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.ops import tables
from tests.ops.tables import RULE_CASES, slices
from tf_slipstream.ops import _library
from tf_slipstream.ops._tables import StepSettings, pool_arguments
from tf_slipstream.ops.apply_rows import apply_rows
from tf_slipstream.ops.replica_rows import add_held, hold, replica_rows, take_held
from tf_slipstream.state.schema import POOL_INTS

RULE = RULE_CASES["sgd"].rule
NUM_ROWS, DIM, STEP = 60, 5, 7


def kind_of(row):
    """Rows take turns: asleep and deferred, asleep and skipped, awake with held sums, awake.

    Of the rows that wake, half have reached their wake step and half have held all the batches of
    their period.
    """
    return ("deferred", "skipped", "waking", "awake")[row % 4]


def state_of(holds=True):
    kinds = np.array([kind_of(row) for row in range(NUM_ROWS)])
    holds_its_period = (kinds == "waking") & (np.arange(NUM_ROWS) % 8 < 4)
    sleeps = np.isin(kinds, ["deferred", "skipped"]) | holds_its_period
    state = tables.new_state(RULE, np.zeros([NUM_ROWS, DIM]), wake_steps=np.where(sleeps, 99, 0))
    ints = state.pool_ints.numpy()
    ints[:, POOL_INTS.index("period")] = np.where(holds_its_period, 4, 5)
    ints[:, POOL_INTS.index("is_skipped")] = kinds == "skipped"
    ints[:, POOL_INTS.index("held_steps")] = 3 * np.isin(kinds, ["deferred", "waking"])
    state.pool_ints.assign(ints)
    held = np.random.default_rng(1).integers(1, 9, [NUM_ROWS, DIM]).astype(np.float32)
    held[~np.isin(kinds, ["deferred", "waking"])] = 0
    return dataclasses.replace(state, local_held=tf.Variable(held) if holds else None)


def lookups(index_dtype=np.int64):
    random = np.random.default_rng(0)
    ids = (random.zipf(1.3, 6_000) % (NUM_ROWS - 8)).astype(index_dtype)
    grads = random.integers(-8, 9, [len(ids), DIM]).astype(np.float32)
    grads[[kind_of(i) == "skipped" for i in ids]] = np.nan
    return ids, grads


def settings_of(step=STEP):
    return StepSettings(tf.constant(step, tf.int64), tf.constant(0.125))


def distinct(ids, *kinds):
    """Returns ids of these kinds by first appearance."""
    return [i for i in dict.fromkeys(ids.tolist()) if kind_of(i) in kinds]


def sums_of(ids, grads, rows):
    return np.array([grads[ids == row].sum(axis=0) for row in rows]).reshape([-1, DIM])


@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
def test_awake_rows_are_sent_with_what_was_held_and_others_held_back(index_dtype):
    state, (ids, grads) = state_of(), lookups(index_dtype)
    held = state.local_held.numpy()
    (rows,) = replica_rows([state], [slices(ids, grads)], settings_of())
    sent = distinct(ids, "waking", "awake")
    np.testing.assert_array_equal(rows.sent.indices, np.array(sent, index_dtype))
    assert rows.sent.indices.dtype == rows.stale_ids.dtype == index_dtype
    expected = sums_of(ids, grads, sent) + [held[i] * (kind_of(i) == "waking") for i in sent]
    np.testing.assert_array_equal(rows.sent.values, expected)
    deferred = distinct(ids, "deferred")
    np.testing.assert_array_equal(rows.stale_ids, deferred + distinct(ids, "skipped"))
    np.testing.assert_array_equal(rows.deferred.indices, deferred)
    np.testing.assert_array_equal(rows.deferred.values, sums_of(ids, grads, deferred))
    np.testing.assert_array_equal(rows.released, distinct(ids, "waking"))
    kinds = [kind_of(i) for i in ids]
    counts = [len(ids), kinds.count("skipped"), kinds.count("deferred")]
    np.testing.assert_array_equal(rows.num_lookups, counts)
    np.testing.assert_array_equal(state.local_held, held)


def test_holding_adds_frees_and_hands_over_what_others_wake():
    state, (ids, grads) = state_of(), lookups()
    expected = state.local_held.numpy()
    (rows,) = replica_rows([state], [slices(ids, grads)], settings_of())
    others = [i for i in range(NUM_ROWS) if kind_of(i) == "waking" and i not in ids]
    live_ids = tf.concat([rows.sent.indices, others, others, [3, 7]], axis=0)
    entries, held = hold(state, rows, live_ids, settings_of())
    np.testing.assert_array_equal(np.sort(entries), others)
    np.testing.assert_array_equal(held, expected[entries])
    for row in range(NUM_ROWS):
        if kind_of(row) == "waking" and (row in ids or row in others):
            expected[row] = 0
        elif kind_of(row) == "deferred":
            expected[row] += grads[ids == row].sum(axis=0)
    np.testing.assert_array_equal(state.local_held, expected)
    before = state.pool_floats.numpy()
    add_held(state, entries, held)
    before[entries.numpy(), :DIM] += held.numpy()
    np.testing.assert_array_equal(state.pool_floats, before)


@pytest.mark.parametrize("step", [STEP, STEP + 1])
def test_a_refresh_hands_over_all_that_is_held(step):
    policy = dataclasses.replace(state_of().policy, refresh_every=STEP)
    state = dataclasses.replace(state_of(), policy=policy)
    nothing = slices(np.zeros([0], np.int64), np.zeros([0, DIM], np.float32))
    before = state.local_held.numpy()
    (rows,) = replica_rows([state], [nothing], settings_of(step))
    entries, held = hold(state, rows, tf.zeros([0], tf.int64), settings_of(step))
    if step == STEP:
        _assert_all_is_handed_over(state, before, entries, held)
    else:
        assert tf.size(entries) == 0
        np.testing.assert_array_equal(state.local_held, before)


def test_between_steps_all_that_is_held_can_be_taken():
    state = state_of()
    before = state.local_held.numpy()
    _assert_all_is_handed_over(state, before, *take_held(state))
    entries, held = take_held(state)
    assert tf.size(entries) == tf.size(held) == 0


def _assert_all_is_handed_over(state, before, entries, held):
    np.testing.assert_array_equal(entries, np.flatnonzero(before.any(axis=1)))
    np.testing.assert_array_equal(held, before[entries])
    assert not state.local_held.numpy().any()


def test_without_native_ops_every_row_travels():
    """Rows that sleep are the native library's: here is no policy."""
    ids, grads = lookups()
    grads = np.nan_to_num(grads)
    state = tables.new_state(RULE, np.zeros([NUM_ROWS, DIM]))
    with _library.fallback():
        (rows,) = replica_rows([state], [slices(ids, grads)], settings_of())
    sent = list(dict.fromkeys(ids.tolist()))
    np.testing.assert_array_equal(rows.sent.indices, sent)
    np.testing.assert_array_equal(rows.sent.values, sums_of(ids, grads, sent))
    np.testing.assert_array_equal(rows.num_lookups, [len(ids), 0, 0])
    nothing = (rows.stale_ids, rows.deferred.indices, rows.released)
    assert all(tf.size(one) == 0 for one in nothing)


def test_deferred_rows_travel_where_a_replica_does_not_hold():
    state, (ids, grads) = state_of(holds=False), lookups()
    (rows,) = replica_rows([state], [slices(ids, grads)], settings_of())
    sent = distinct(ids, "deferred", "waking", "awake")
    np.testing.assert_array_equal(rows.sent.indices, sent)
    np.testing.assert_array_equal(rows.sent.values, sums_of(ids, grads, sent))
    np.testing.assert_array_equal(rows.stale_ids, distinct(ids, "skipped"))
    assert tf.size(rows.released) == tf.size(rows.deferred.indices) == 0


def test_lookups_are_counted_as_told(native_or_fallback):
    state = tables.new_state(RULE, np.zeros([NUM_ROWS, DIM]))
    counts = tf.constant([9, 1, 2], tf.int64)
    one = slices([1, 2], np.ones([2, DIM], np.float32))
    apply_rows(RULE, [state], [one], settings_of(), num_lookups=[counts])
    np.testing.assert_array_equal(state.counters, [9, 1, 2, 2, 0, 0, 0, 0, 0])


def test_the_native_op_refuses_what_does_not_fit():
    native, state = _library.native_ops(), state_of()
    ids, grads = lookups()
    arguments = dict(
        pool_arguments([state]),
        local_held=[state.local_held.handle],
        woken_at=[tf.constant(0, tf.int64)],
        indices=[tf.constant(ids)],
        grads=[tf.constant(grads)],
        step=tf.constant(STEP, tf.int64),
        holding_tables=[0],
        table_names=["user"],
        num_rows=[NUM_ROWS],
        num_fields=[0],
        row_ends=[],
    )
    native.slipstream_replica_rows(**arguments)
    bad_held = tf.Variable(tf.zeros([NUM_ROWS, DIM + 1]))
    for name, value, message in (
        ("local_held", [bad_held.handle], "local_held has shape"),
        ("woken_at", [tf.zeros([2], tf.int64)], "woken_at"),
        ("step", tf.zeros([2], tf.int64), "step must be a scalar"),
        ("holding_tables", [1], "no table 1"),
        ("table_names", [], "table_names"),
        ("num_fields", [1], "as many row_ends as num_fields say"),
        ("indices", [tf.constant(ids) + NUM_ROWS], "is not in"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            native.slipstream_replica_rows(**arguments | {name: value})


def test_the_native_update_refuses_counts_that_do_not_fit():
    state = tables.new_state(RULE, np.zeros([NUM_ROWS, DIM]))
    one = slices([1], np.ones([1, DIM], np.float32))
    with pytest.raises(tf.errors.InvalidArgumentError, match="num_lookups of table .* must be"):
        apply_rows(RULE, [state], [one], settings_of(), num_lookups=[tf.zeros([2], tf.int64)])
    assert not state.table.numpy().any()
