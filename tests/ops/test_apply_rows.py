"""Checks what a step does to rows, slots and counters, against the reference."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.ops import tables
from tests.ops.tables import RULE_CASES, Plan
from tf_slipstream.ops.apply_rows import apply_rows

SGD = RULE_CASES["sgd"].rule

# Repeats, the first row and the last, rows that miss steps or are stale at first, an empty batch.
PLAN = Plan(
    num_rows=6,
    dim=5,
    batches=[[5, 0, 5, 2, 0], [0], [], [3, 2, 1, 3, 3], [5, 4, 0, 1, 2]],
    wake_steps=[0, 5, 0, 0, 6, 0],
    weight_decay=0.125,
    clip_value=0.5,
    grad_scale=0.75,
)


def awake(plan):
    """Returns a plan without a policy, which the fallback does not know."""
    return dataclasses.replace(plan, wake_steps=None)


# One per rule of the native op, with as many slots as it can have.
RULES_OF_EACH_KIND = (
    "sgd",
    "momentum",
    "adagrad",
    "row_wise_adagrad",
    "amsgrad",
    "rmsprop_centered_momentum",
    "ftrl_all",
)


@pytest.mark.parametrize("name", RULE_CASES)
@hypothesis_settings(max_examples=15)
@given(plan=tables.plans())
def test_native_steps_match_the_reference(name, plan):
    case = RULE_CASES[name]
    history = tables.train(case.rule, plan, native=True)
    tables.assert_matches_reference(case, plan, history[-1])


@pytest.mark.parametrize("name", RULE_CASES)
@hypothesis_settings(max_examples=4)
@given(plan=tables.plans())
def test_fallback_steps_match_the_reference(name, plan):
    case, plan = RULE_CASES[name], awake(plan)
    history = tables.train(case.rule, plan, native=False)
    tables.assert_matches_reference(case, plan, history[-1])


@pytest.mark.parametrize("name", RULE_CASES)
def test_every_vector_width_matches_the_reference(name):
    case = RULE_CASES[name]
    for dim in tables.DIMS:
        plan = dataclasses.replace(PLAN, dim=dim)
        history = tables.train(case.rule, plan, native=True)
        tables.assert_matches_reference(case, plan, history[-1])


@pytest.mark.parametrize("name", RULE_CASES)
def test_native_and_fallback_agree(name):
    rule = RULE_CASES[name].rule
    native = tables.train(rule, awake(PLAN), native=True)[-1]
    assert_close_to_native(tables.train(rule, awake(PLAN), native=False)[-1], native)


@pytest.mark.parametrize("name", RULES_OF_EACH_KIND)
def test_in_a_function_native_and_fallback_do_what_they_do_eagerly(name):
    rule = RULE_CASES[name].rule
    eager = tables.train(rule, PLAN, native=True)[-1]
    tables.assert_same_bits(tables.train(rule, PLAN, native=True, in_function=True)[-1], eager)
    eager = tables.train(rule, awake(PLAN), native=True)[-1]
    fallback = tables.train(rule, awake(PLAN), native=False, in_function=True)[-1]
    assert_close_to_native(fallback, eager)


def assert_close_to_native(fallback, native):
    # The same operations in the same order. What may differ is the mean of squares and the power,
    # and, in a function, x / sqrt(y) that TensorFlow turns into x * rsqrt(y): once per step each.
    largest = max(1.0, *(np.abs(a).max() for name, a in native.items() if name != "counters"))
    tolerance = 4 * tables.EPSILON * len(PLAN.batches) * largest
    assert fallback.keys() == native.keys()
    for name, array in fallback.items():
        np.testing.assert_allclose(array, native[name], rtol=0, atol=tolerance, err_msg=name)


@hypothesis_settings(max_examples=60)
@given(name=st.sampled_from(sorted(RULE_CASES)), plan=tables.plans())
def test_rows_not_looked_up_and_stale_rows_keep_their_bits(name, plan):
    _assert_only_live_rows_change(RULE_CASES[name].rule, plan, native=True)


@hypothesis_settings(max_examples=15)
@given(name=st.sampled_from(sorted(RULE_CASES)), plan=tables.plans())
def test_rows_not_looked_up_and_stale_rows_keep_their_bits_in_the_fallback(name, plan):
    _assert_only_live_rows_change(RULE_CASES[name].rule, awake(plan), native=False)


def _assert_only_live_rows_change(rule, plan, native):
    history = tables.train(rule, plan, native=native)
    for step in range(1, len(history)):
        live = plan.live_ids(step)
        tables.assert_same_bits(
            tables.without_rows(history[step], live), tables.without_rows(history[step - 1], live)
        )


def test_a_row_wakes_exactly_at_its_wake_step():
    wake_steps = [0, 3, 5]
    state = tables.new_state(SGD, np.zeros([3, 2]), wake_steps=wake_steps)
    ids = np.array([2, 0, 1, 1])
    for step in range(1, 6):
        apply_rows(SGD, [state], [tables.slices(ids, np.ones([4, 2], "f"))], tables.settings(step))
        live_steps = [max(0, step - max(wake, 1) + 1) for wake in wake_steps]
        expected = np.multiply(live_steps, [-1, -2, -1])[:, np.newaxis]  # row 1 comes twice
        np.testing.assert_array_equal(state.table.numpy(), np.broadcast_to(expected, [3, 2]))
    np.testing.assert_array_equal(
        state.counters.numpy(),
        tables.counters(
            num_lookups=5 * 4,
            num_skipped_lookups=2 * 2 + 4,
            num_row_updates=5 * 3,
            num_skipped_row_updates=2 + 4,
        ),
    )


def test_a_live_row_may_become_stale_again():
    state = tables.new_state(SGD, np.zeros([2, 1]), wake_steps=[0, 0])
    one = tables.slices(np.array([0, 1]), np.ones([2, 1], "f"))
    apply_rows(SGD, [state], [one], tables.settings(1))
    tables.sleep(state, 1, wake_step=3)
    apply_rows(SGD, [state], [one], tables.settings(2))
    np.testing.assert_array_equal(state.table.numpy(), [[-2], [-1]])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_gradient_of_a_stale_row_is_never_read(value):
    state = tables.new_state(SGD, np.zeros([3, 2]), wake_steps=[0, 9, 9])
    grads = np.array([[1, 1], [value, 1], [value, value], [1, 1], [-value, 0]], np.float32)
    apply_rows(SGD, [state], [tables.slices(np.array([0, 1, 2, 0, 1]), grads)], tables.settings(8))
    np.testing.assert_array_equal(state.table.numpy(), [[-2, -2], [0, 0], [0, 0]])


@pytest.mark.parametrize("num_rows, dim", [(1, 1), (1, 8), (4, 1)])
def test_an_empty_batch_changes_nothing(native_or_fallback, num_rows, dim):
    rule = RULE_CASES["adam"].rule
    state = tables.new_state(rule, np.ones([num_rows, dim]))
    before = tables.arrays_of(state)
    nothing = tables.slices(np.zeros([0], np.int64), np.zeros([0, dim], np.float32))
    apply_rows(rule, [state], [nothing], tables.settings())
    tables.assert_same_bits(tables.arrays_of(state), before)


# Different sizes; no lookup at all; enough lookups for several buckets beside tables with one.
TABLE_PLANS = [
    Plan(5, 3, [[4, 0, 0, 2], [2, 4]], seed=1, weight_decay=0.25, grad_scale=0.5),
    Plan(40, 17, [[], []], seed=2),
    Plan(700, 8, [[i * i % 700 for i in range(9000)], [699]], seed=3, grad_scale=2.0),
    Plan(1, 1, [[0, 0, 0], [0]], seed=4, weight_decay=0.125),
    Plan(9, 33, [[8], [1, 8]], seed=5, wake_steps=[2] * 9),
]


@pytest.mark.parametrize("name", RULE_CASES)
def test_several_tables_at_once_equal_one_by_one(name):
    rule = RULE_CASES[name].rule
    _assert_tables_at_once_equal_one_by_one(rule)


@pytest.mark.parametrize("name", ["sgd", "amsgrad"])
def test_several_tables_at_once_equal_one_by_one_in_the_fallback(name):
    with tables.native_or_fallback_ops(native=False):
        plans = [awake(plan) for plan in TABLE_PLANS]
        _assert_tables_at_once_equal_one_by_one(RULE_CASES[name].rule, plans)


def _assert_tables_at_once_equal_one_by_one(rule, plans=TABLE_PLANS):
    together, alone = (
        [
            tables.new_state(rule, plan.values(), f"table_{i}", plan.wake_steps)
            for i, plan in enumerate(plans)
        ]
        for _ in range(2)
    )
    scales = [tf.constant(plan.grad_scale) for plan in plans]
    decays = [plan.weight_decay for plan in plans]
    for steps in zip(*(plan.steps() for plan in plans)):
        settings = tables.settings(steps[0][0], learning_rate=0.125, clip_value=0.75)
        batches = [tables.slices(ids, grads) for _, ids, grads, _ in steps]
        apply_rows(rule, together, batches, settings, scales, decays)
        for state, batch, scale, decay in zip(alone, batches, scales, decays):
            apply_rows(rule, [state], [batch], settings, [scale], [decay])
    for one, other in zip(together, alone):
        tables.assert_same_bits(tables.arrays_of(one), tables.arrays_of(other))


def zipf_plan(num_lookups, num_rows, num_steps=1, **fields):
    """A plan whose lookups fall on a few rows mostly, and on all parts of the table."""
    random = np.random.default_rng(0)
    batches = []
    for _ in range(num_steps):
        ranks = random.zipf(1.2, num_lookups) % num_rows
        batches.append((ranks * 2654435761 % num_rows).tolist())
    return Plan(num_rows, 8, batches, **fields)


def test_many_lookups_are_summed_as_numpy_sums_them(native_or_fallback):
    plan = zipf_plan(60_000, 5_000)
    ((_, ids, grads, _),) = plan.steps()
    state = tables.new_state(SGD, plan.values())
    apply_rows(SGD, [state], [tables.slices(ids, grads)], tables.settings())
    sums, terms = np.zeros([2, 5_000, 8])
    np.add.at(sums, ids, grads.astype(np.float64))
    np.add.at(terms, ids, np.abs(grads))
    # A sum of n terms rounds n - 1 times, by half an epsilon of at most the sum of their sizes;
    # the subtraction from the row rounds once more.
    num_terms = np.bincount(ids, minlength=5_000)[:, np.newaxis]
    bound = tables.EPSILON / 2 * (num_terms + 1) * (terms + 1)
    assert (np.abs(state.table.numpy() - (plan.values() - sums)) <= bound).all()


# Around the kernels' rows per task (512), and lookups per bucket and per chunk (4096).
@pytest.mark.parametrize("num_rows", [511, 512, 513, 1_025, 4_095, 4_096, 4_097, 8_193])
def test_every_row_is_updated_once_at_the_edges_of_a_share_of_work(num_rows):
    state = tables.new_state(SGD, np.zeros([num_rows, 1]))
    ids = np.random.default_rng(0).permutation(num_rows)
    ones = np.ones([num_rows, 1], np.float32)
    apply_rows(SGD, [state], [tables.slices(ids, ones)], tables.settings())
    np.testing.assert_array_equal(state.table.numpy(), -ones)


@pytest.mark.parametrize("name", ["adam", "row_wise_adagrad"])
def test_many_lookups_match_the_reference(name):
    wake_steps = np.where(np.arange(3_000) % 7 == 0, 2, 0).tolist()
    plan = zipf_plan(20_000, 3_000, num_steps=2, wake_steps=wake_steps, weight_decay=0.125)
    case = RULE_CASES[name]
    tables.assert_matches_reference(case, plan, tables.train(case.rule, plan, native=True)[-1])


def test_a_table_that_gets_huge_pages_keeps_its_values():
    """From 16 MB on, the first step asks for huge pages behind the table."""
    values = np.random.default_rng(0).random([530_000, 8], np.float32)
    state = tables.new_state(SGD, values)
    ids = np.array([529_999, 0, 260_000])
    apply_rows(SGD, [state], [tables.slices(ids, np.ones([3, 8], "f"))], tables.settings())
    values[ids] -= 1
    assert state.table.numpy().tobytes() == values.tobytes()


@pytest.mark.parametrize("native", [True, False], ids=["native", "fallback"])
def test_exactly_the_rows_written_are_marked_as_changed(native):
    wake_steps = [9 * (i == 40) for i in range(100)] if native else None
    state = tables.new_state(SGD, np.zeros([100, 2]), wake_steps=wake_steps)
    ids = np.array([99, 0, 31, 32, 0, 40, 99], np.int32)
    with tables.native_or_fallback_ops(native):
        for step in (1, 2):  # a bit that is set stays set
            apply_rows(
                SGD,
                [state],
                [tables.slices(ids, np.ones([7, 2], np.float32))],
                tables.settings(step),
            )
    marked = tables.changed(state.changed_rows.numpy(), 100)
    assert np.flatnonzero(marked).tolist() == [0, 31, 32, *([] if native else [40]), 99]


@pytest.mark.parametrize("native", [True, False], ids=["native", "fallback"])
def test_a_step_without_tables_does_nothing(native):
    with tables.native_or_fallback_ops(native):
        assert apply_rows(SGD, [], [], tables.settings()) == []
