"""Checks what settling does to rows that are behind and to what is held, against the reference."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.ops import tables
from tests.ops.tables import RULE_CASES, Plan
from tf_slipstream import StalenessPolicy
from tf_slipstream.ops.apply_rows import apply_rows
from tf_slipstream.ops.settle_rows import settle_rows
from tf_slipstream.state.schema import POLICY_STATE, POOL_INTS

SGD = RULE_CASES["sgd"].rule

# Row 0 is touched in every step; 1 has two steps running and then none, so that it is behind; 2 is
# touched in 3, after it missed two, so that it got all at once; 3 never; 4 in the last step.
PLAN = Plan(
    num_rows=5,
    dim=5,
    batches=[[0, 1], [1, 0, 1], [0, 2], [0], [], [0, 4]],
    settles=(6,),
)


@st.composite
def settled_plans(draw, **fields):
    """Plans that are settled in the end, and maybe before; some end with empty batches."""
    plan = dataclasses.replace(draw(tables.plans()), **fields)
    batches = plan.batches + [[]] * draw(st.integers(0, 3))
    settles = draw(st.sets(st.integers(1, len(batches)), max_size=2))
    return dataclasses.replace(plan, batches=batches, settles=(*settles, len(batches)))


@pytest.mark.parametrize("name", RULE_CASES)
@hypothesis_settings(max_examples=15)
@given(plan=settled_plans())
def test_native_settling_matches_the_reference(name, plan):
    case = RULE_CASES[name]
    history = tables.train(case.rule, plan, native=True)
    tables.assert_matches_reference(case, plan, history[-1])


@pytest.mark.parametrize("name", RULE_CASES)
@hypothesis_settings(max_examples=4)
@given(plan=settled_plans(wake_steps=None))
def test_fallback_settling_matches_the_reference(name, plan):
    case = RULE_CASES[name]
    history = tables.train(case.rule, plan, native=False)
    tables.assert_matches_reference(case, plan, history[-1])


def trained(rule, plan, native=True):
    """Returns the state after a plan's steps, not settled, and the settings of its last step."""
    state = tables.new_state(rule, plan.values(), wake_steps=plan.wake_steps)
    with tables.native_or_fallback_ops(native):
        for step, ids, grads, rate in plan.steps():
            now = tables.settings(step, rate)
            apply_rows(
                rule, [state], [tables.slices(ids, grads)], now, weight_decays=[plan.weight_decay]
            )
    return state, now


@pytest.mark.parametrize("native", [True, False], ids=["native", "fallback"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.125])
@pytest.mark.parametrize("name", RULE_CASES)
def test_rows_that_are_up_to_date_keep_their_bits_and_again_all_do(name, weight_decay, native):
    plan = dataclasses.replace(PLAN, weight_decay=weight_decay)
    rule, moves = RULE_CASES[name].rule, RULE_CASES[name].rule.moves_when_missed
    with tables.native_or_fallback_ops(native):
        state, now = trained(rule, plan, native)
        before = tables.arrays_of(state)
        settle_rows(rule, [state], now, [weight_decay], wake=False)
        settled = tables.arrays_of(state)
        settle_rows(rule, [state], now, [weight_decay], wake=False)
        tables.assert_same_bits(tables.arrays_of(state), settled)
    behind = {1: moves or weight_decay, 2: (moves and not rule.can_spend) or weight_decay}
    behind = {row for row, is_behind in behind.items() if is_behind}
    tables.assert_same_bits(
        tables.without_rows(settled, behind), tables.without_rows(before, behind)
    )
    for row in behind:
        assert settled["table"][row].tobytes() != before["table"][row].tobytes()
    assert settled["counters"].tobytes() == before["counters"].tobytes()


@pytest.mark.parametrize("native", [True, False], ids=["native", "fallback"])
def test_exactly_the_rows_written_are_marked_as_changed(native):
    state, now = trained(RULE_CASES["momentum"].rule, PLAN)
    state.changed_rows.assign(tf.zeros_like(state.changed_rows))
    with tables.native_or_fallback_ops(native):
        settle_rows(RULE_CASES["momentum"].rule, [state], now, [0.0], wake=False)
    assert np.flatnonzero(tables.changed(state.changed_rows.numpy(), 5)).tolist() == [1]


@pytest.mark.parametrize("name", RULE_CASES)
def test_native_and_fallback_agree(name):
    rule, plan = RULE_CASES[name].rule, dataclasses.replace(PLAN, weight_decay=0.125)
    arrays = []
    for native in (True, False):
        state, now = trained(rule, plan)
        with tables.native_or_fallback_ops(native):
            settle_rows(rule, [state], now, [plan.weight_decay], wake=False)
        arrays.append(tables.arrays_of(state))
    for variable, array in arrays[0].items():
        np.testing.assert_allclose(
            array, arrays[1][variable], rtol=0, atol=8 * tables.EPSILON, err_msg=variable
        )


@pytest.mark.parametrize("native", [True, False], ids=["native", "fallback"])
@pytest.mark.parametrize("name", ["momentum", "amsgrad", "rmsprop_centered_momentum"])
def test_in_a_function_it_does_what_it_does_eagerly(name, native):
    rule, arrays = RULE_CASES[name].rule, []

    def settle(state, now):
        settle_rows(rule, [state], now, [0.125], wake=False)

    for wrap in (lambda function: function, tf.function):
        state, now = trained(rule, PLAN)
        with tables.native_or_fallback_ops(native):
            wrap(functools.partial(settle, state, now))()
        arrays.append(tables.arrays_of(state))
    if native:
        tables.assert_same_bits(arrays[1], arrays[0])
    for variable, array in arrays[0].items():
        np.testing.assert_allclose(array, arrays[1][variable], rtol=0, atol=8 * tables.EPSILON)


@pytest.mark.parametrize("native", [True, False], ids=["native", "fallback"])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_several_tables_at_once_equal_one_by_one(name, native):
    rule = RULE_CASES[name].rule
    plans = [
        PLAN,
        dataclasses.replace(PLAN, dim=17, weight_decay=0.25, seed=1),
        Plan(700, 3, [[i * i % 700 for i in range(900)]] * 2 + [[]] * 4, seed=2),
    ]
    decays, results = [plan.weight_decay for plan in plans], []
    with tables.native_or_fallback_ops(native):
        for together in (True, False):
            states, now = zip(*(trained(rule, plan) for plan in plans))
            if together:
                settle_rows(rule, states, now[0], decays, wake=False)
            for state, decay in () if together else zip(states, decays):
                settle_rows(rule, [state], now[0], [decay], wake=False)
            results.append([tables.arrays_of(state) for state in states])
    for one, other in zip(*results, strict=True):
        tables.assert_same_bits(one, other)


# Around the rows that a task of the kernel looks at (16384).
@pytest.mark.parametrize("num_rows", [16_383, 16_384, 16_385, 40_000])
def test_every_row_is_settled_once_at_the_edges_of_a_share_of_work(num_rows):
    state = tables.new_state(SGD, np.ones([num_rows, 1]))
    ids = np.random.default_rng(0).permutation(num_rows)
    apply_rows(SGD, [state], [tables.slices(ids, np.zeros([num_rows, 1], "f"))], tables.settings())
    settle_rows(SGD, [state], tables.settings(2), [0.5], wake=False)
    np.testing.assert_array_equal(state.table.numpy(), np.full([num_rows, 1], 0.5))


def test_a_rule_without_moments_and_decay_has_nothing_to_settle(native_or_fallback):
    state = dataclasses.replace(tables.new_state(SGD, np.ones([3, 2])), last_steps=None)
    before = tables.arrays_of(state)
    settle_rows(SGD, [state], tables.settings(9), [0.0], wake=True)
    tables.assert_same_bits(tables.arrays_of(state), before)
    assert settle_rows(SGD, [], tables.settings(), [], wake=True) == []


@pytest.mark.parametrize("wake", [False, True])
def test_before_the_first_step_nothing_changes(native_or_fallback, wake):
    rule = RULE_CASES["adam"].rule
    state = tables.new_state(rule, np.ones([3, 2]))
    before = tables.arrays_of(state)
    settle_rows(rule, [state], tables.settings(1), [0.125], wake=wake)
    tables.assert_same_bits(tables.arrays_of(state), before)


class TestBfloat16:
    """Rows are rounded stochastically, by other bits than those of the step to come."""

    @pytest.mark.parametrize("name, weight_decay", [("sgd", 0.125), ("momentum", 0.0)])
    def test_native_and_fallback_agree_to_the_bit(self, name, weight_decay):
        rule = RULE_CASES[name].rule
        plan = Plan(40, 5, [[*range(40)], [*range(30)], [], [3]], weight_decay=weight_decay)
        bits = []
        for native in (True, False):
            state, now = trained(rule, plan)
            before = tf.cast(state.table, tf.bfloat16)
            state = dataclasses.replace(state, table=tf.Variable(before))
            with tables.native_or_fallback_ops(native):
                settle_rows(rule, [state], now, [weight_decay], wake=False)
            bits.append(tf.bitcast(state.table, tf.uint16).numpy())
        np.testing.assert_array_equal(*bits)
        changed = (bits[0] != tf.bitcast(before, tf.uint16).numpy()).any(axis=1)
        # Row 3 had a batch in the last step.
        assert not changed[3] and changed.sum() > 30

    def test_it_is_right_on_average(self, native_or_fallback):
        """A decay that is a hundredth of what bfloat16 can tell from 1."""
        state = tables.new_state(SGD, np.ones([2_000, 50]))
        state = dataclasses.replace(state, table=tf.Variable(tf.ones([2_000, 50], tf.bfloat16)))
        state.last_steps.assign(tf.ones([2_000], tf.int32))
        decay = 2.0**-15
        settle_rows(SGD, [state], tables.settings(2), [decay], wake=False)
        rows = state.table.numpy().astype(np.float64)
        low, high = 1 - 2.0**-8, 1.0
        assert set(np.unique(rows)) == {low, high}
        share, num = decay / 2.0**-8, rows.size
        assert abs(np.mean(rows == low) - share) < 5 * np.sqrt(share / num)


# Rows of a table with a policy, by what they are: asleep with two batches held; asleep with none;
# asleep and skipped; awake with one batch held; awake.
DEFERRED, EMPTY, SKIPPED, WAKING, AWAKE = range(5)
STEP, WAKE_STEP = 7, 20


def sleeping_state(name="table"):
    """Returns the state of such a table of ones, whose row 5 is not popular."""
    state = tables.new_state(SGD, np.ones([6, 3]), name, wake_steps=[0] * 6)
    ints = np.zeros([5, len(POOL_INTS)], np.int64)
    columns = {column: number for number, column in enumerate(POOL_INTS)}
    ints[:, columns["row"]] = np.arange(5)
    ints[:, columns["live_step"]] = 4
    ints[:, columns["num_updates"]] = 50
    ints[:, columns["period"]] = 8
    ints[[DEFERRED, EMPTY, SKIPPED], columns["wake_step"]] = WAKE_STEP
    ints[SKIPPED, columns["is_skipped"]] = 1
    ints[[DEFERRED, WAKING], columns["held_steps"]] = [2, 1]
    floats = np.zeros([5, 7], np.float32)
    floats[[DEFERRED, WAKING], :3] = [[2, 4, 8], [1, 1, 1]]
    numbers = dict.fromkeys(POLICY_STATE, 0.0)
    numbers |= {"num_entries": 5, "num_sleeping": 3, "learning_rate": 0.125}
    numbers |= {"strictness": 1.0, "threshold": 3.0, "woken_at": 2}
    state.last_steps.assign([4] * 6)
    policy = StalenessPolicy(refresh_every=0, min_updates=100)
    return dataclasses.replace(
        state,
        policy=policy,
        row_states=tf.Variable([-1, -2, -3, -4, -5, 3]),
        pool_ints=tf.Variable(ints),
        pool_floats=tf.Variable(floats),
        policy_state=tf.Variable([*numbers.values()], dtype=tf.float64),
    )


@pytest.mark.parametrize("wake", [False, True])
def test_what_is_held_is_applied_and_rows_sleep_on_or_wake(wake):
    state = sleeping_state()
    before = tables.arrays_of(state)
    settle_rows(SGD, [state], tables.settings(STEP, 0.125), [0.0], wake)
    after = tables.arrays_of(state)
    expected = np.ones([6, 3])
    expected[DEFERRED] -= [0.25, 0.5, 1.0]
    expected[WAKING] -= 0.125
    np.testing.assert_array_equal(after["table"], expected)
    ints = before["pool_ints"].copy()
    columns = {column: number for number, column in enumerate(POOL_INTS)}
    for row in (DEFERRED, WAKING):
        ints[row, columns["live_step"]] = STEP
        ints[row, columns["held_steps"]] = 0
        ints[row, columns["window_updates"]] = 1
    if wake:
        ints[:, columns["wake_step"]] = 0
    np.testing.assert_array_equal(after["pool_ints"], ints)
    assert not after["pool_floats"][:, :3].any()
    policy_state = dict(zip(POLICY_STATE, before["policy_state"]))
    policy_state |= {"num_sleeping": 0, "woken_at": STEP} if wake else {}
    assert dict(zip(POLICY_STATE, after["policy_state"])) == policy_state
    for name in ("row_states", "counters"):
        assert after[name].tobytes() == before[name].tobytes()

    step = tables.settings(STEP + 1, 0.125)
    ids, ones = np.arange(6), np.ones([6, 3], np.float32)
    apply_rows(SGD, [state], [tables.slices(ids, ones)], step)
    sleeps = np.isin(ids, [] if wake else [DEFERRED, EMPTY, SKIPPED])
    changed = (state.table.numpy() != expected).all(axis=1)
    np.testing.assert_array_equal(changed, ~sleeps)
    held = state.pool_floats.numpy()[:, :3].any(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(held), [] if wake else [DEFERRED, EMPTY])


def test_settling_again_changes_nothing_of_a_policy():
    state = sleeping_state()
    for wake in (False, True):
        settle_rows(SGD, [state], tables.settings(STEP, 0.125), [0.0], wake)
        before = tables.arrays_of(state)
        settle_rows(SGD, [state], tables.settings(STEP, 0.125), [0.0], wake)
        tables.assert_same_bits(tables.arrays_of(state), before)


def entry_with(state, entry, **columns):
    for column, value in columns.items():
        state.pool_ints[entry, POOL_INTS.index(column)].assign(value)


DAMAGES = {
    "a row past the table": lambda state: entry_with(state, 3, row=6),
    "a row far past the table": lambda state: entry_with(state, 3, row=2**40),
    "a negative row": lambda state: entry_with(state, 3, row=-1),
    "the row of another entry": lambda state: entry_with(state, 3, row=1),
    "a row that is not popular": lambda state: state.row_states[WAKING].assign(7),
    "a row of another entry": lambda state: state.row_states[WAKING].assign(-2),
    "less than nothing held": lambda state: entry_with(state, 3, held_steps=-1),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("how", ["settle", "wake", "refresh"])
def test_a_pool_that_was_not_restored_whole_is_refused_and_nothing_changes(how, damage):
    states = [sleeping_state("users"), sleeping_state("items")]
    if how == "refresh":
        policy = StalenessPolicy(refresh_every=STEP)
        states = [dataclasses.replace(state, policy=policy) for state in states]
    DAMAGES[damage](states[1])
    before = [tables.arrays_of(state) for state in states]
    now = tables.settings(STEP, 0.125)
    message = "table 'items': entry 3 of the optimizer's pool makes no sense"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        if how == "refresh":
            one = tables.slices([5], np.ones([1, 3], np.float32))
            apply_rows(SGD, states, [one, one], now)
        else:
            settle_rows(SGD, states, now, [0.5, 0.5], wake=how == "wake")
    for state, arrays in zip(states, before, strict=True):
        tables.assert_same_bits(tables.arrays_of(state), arrays)


def test_a_step_refuses_an_entry_that_holds_less_than_nothing():
    state = sleeping_state("items")
    entry_with(state, 3, held_steps=-1)
    before = tables.arrays_of(state)
    one = tables.slices([WAKING], np.ones([1, 3], np.float32))
    with pytest.raises(tf.errors.InvalidArgumentError, match="state of row .* makes no sense"):
        apply_rows(SGD, [state], [one], tables.settings(STEP, 0.125))
    tables.assert_same_bits(tables.arrays_of(state), before)


@pytest.mark.parametrize(
    "columns", [{"period": 0, "is_skipped": 1}, {"window_updates": 2**40}, {"period": -(2**62)}]
)
def test_whatever_an_entry_says_a_step_ends(columns):
    state = sleeping_state("items")
    entry_with(state, 3, **columns)
    one = tables.slices([WAKING], np.ones([1, 3], np.float32))
    apply_rows(SGD, [state], [one], tables.settings(STEP, 0.125))
    assert np.isfinite(state.table.numpy()).all()


@pytest.mark.parametrize("num_entries", [6, -1, np.nan])
def test_a_pool_with_more_entries_than_it_has_is_refused(num_entries):
    state = sleeping_state("items")
    state.policy_state[POLICY_STATE.index("num_entries")].assign(num_entries)
    with pytest.raises(tf.errors.InvalidArgumentError, match="'items': a pool of 5 entries has"):
        settle_rows(SGD, [state], tables.settings(STEP), [0.0], wake=True)


@pytest.mark.parametrize("step", [0, -3])
def test_a_step_before_the_first_is_refused(step):
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"at least 1, got {step}"):
        settle_rows(SGD, [sleeping_state()], tables.settings(step), [0.0], wake=True)
