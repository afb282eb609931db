"""Checks the oracle against explicit steps, values worked out by hand, and its own claims."""

import numpy as np
import pytest

from tests.policy.drift import drift, noise
from tests.policy.held_sums import held_update
from tests.policy.reference import PolicyTable
from tests.policy.training import RULES, policies
from tests.reference import RULES as RULE_CLASSES
from tests.reference import Adam, Ftrl, ReferenceTable, RmsProp, Sgd

ROUNDING = 1e-12
LEARNING_RATE = 0.125
all_rules = pytest.mark.parametrize("name", RULES)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, ROUNDING, ROUNDING, equal_nan=False)


def some_state(rule, rng, dim=5):
    """Returns a row and its slots, none of them 0."""
    slots = {
        name: np.abs(rng.normal(size=np.shape(slot))) + 0.5
        for name, slot in rule.initial_slots(dim).items()
    }
    if "average_gradient" in slots:  # less than the velocity's root
        slots["average_gradient"] /= 8
    return rng.normal(size=dim), slots


def rule_of(name):
    return RULE_CLASSES[RULES[name].reference](**RULES[name].options)


@all_rules
def test_the_sum_of_one_batch_is_that_batch(name, rng):
    rule = rule_of(name)
    row, slots = some_state(rule, rng)
    grad = rng.normal(size=5)
    one = held_update(rule, row, slots, grad, 1, LEARNING_RATE, 7)
    other = rule.update(row, slots, grad, LEARNING_RATE, 7)
    close(one[0], other[0])
    for slot in slots:
        close(one[1][slot], other[1][slot])


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3, 17])
def test_momentum_has_the_closed_form_of_the_page(k, nesterov, rng):
    rule, mu, rate = Sgd(momentum=0.75, nesterov=nesterov), 0.75, LEARNING_RATE
    row, slots = some_state(rule, rng)
    m, held = slots["momentum"], rng.normal(size=5)
    decays = mu * (1 - mu**k) / (1 - mu)
    moved = m * decays - rate * (held / k) * (k - decays) / (1 - mu)
    new_m = mu**k * m - rate * (held / k) * (1 - mu**k) / (1 - mu)
    expected = row + (mu * moved - rate * held if nesterov else moved)
    actual, new_slots = held_update(rule, row, slots, held, k, rate, 7)
    close(actual, expected)
    close(new_slots["momentum"], new_m)


@pytest.mark.parametrize("k", [1, 2, 17])
def test_the_momentum_of_rmsprop_has_the_closed_form_of_the_page(k, rng):
    rule, mu = RmsProp(rho=0.75, momentum=0.5, epsilon=0.125, centered=True), 0.5
    row, slots = some_state(rule, rng)
    held = 0.1 * rng.normal(size=5)
    v = 0.75**k * slots["velocity"] + (1 - 0.75**k) * held**2 / k
    a = 0.75**k * slots["average_gradient"] + (1 - 0.75**k) * held / k
    i = LEARNING_RATE * (held / k) / np.sqrt(v - a**2 + 0.125)
    decays = mu * (1 - mu**k) / (1 - mu)
    moved = slots["momentum"] * decays + i * (k - decays) / (1 - mu)
    actual, new_slots = held_update(rule, row, slots, held, k, LEARNING_RATE, 7)
    close(actual, row - moved)
    close(new_slots["velocity"], v)
    close(new_slots["average_gradient"], a)
    close(new_slots["momentum"], mu**k * slots["momentum"] + i * (1 - mu**k) / (1 - mu))


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_rmsprop_moves_by_the_mean_gradient_in_each_of_the_batches(momentum, rng):
    rule = RmsProp(rho=0.75, momentum=momentum, epsilon=0.125)
    row, slots = some_state(rule, rng)
    slots["momentum"] = np.zeros(5)
    actual, new_slots = held_update(rule, row, slots, 4 * np.ones(5), 4, LEARNING_RATE, 7)
    increment = LEARNING_RATE / np.sqrt(new_slots["velocity"] + 0.125)
    # 1 + 1.5 + 1.75 + 1.875
    close(row - actual, increment * (4 if momentum == 0 else 6.125))


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("k", [1, 2, 6])
def test_adam_has_the_closed_form_of_the_page(k, amsgrad, rng):
    rule = Adam(beta_1=0.75, beta_2=0.875, epsilon=0.125, amsgrad=amsgrad)
    row, slots = some_state(rule, rng)
    m, v, held = slots["momentum"], slots["velocity"], rng.normal(size=5)
    from_m = 0.75 * (1 - 0.75**k) / 0.25
    moved = from_m * m + (k - from_m) * held / k
    new_v = v + (held**2 / k - v) * (1 - 0.875**k)
    used_v = np.maximum(new_v, slots["velocity_hat"]) if amsgrad else new_v
    alpha = LEARNING_RATE * np.sqrt(1 - 0.875**7) / (1 - 0.75**7)
    actual, new_slots = held_update(rule, row, slots, held, k, LEARNING_RATE, 7)
    close(actual, row - alpha * moved / (np.sqrt(used_v) + 0.125))
    close(new_slots["momentum"], m + (held / k - m) * (1 - 0.75**k))
    close(new_slots["velocity"], new_v)


def test_the_shrinkage_of_ftrl_counts_once_per_batch(rng):
    rule = Ftrl(l2_shrinkage_regularization_strength=0.25)
    row, slots = some_state(rule, rng)
    _, three = held_update(rule, row, slots, np.ones(5), 3, LEARNING_RATE, 7)
    _, one = held_update(rule, row, slots, np.ones(5), 1, LEARNING_RATE, 7)
    close(three["linear"] - one["linear"], 2 * 2 * 0.25 * row)
    close(three["accumulator"], one["accumulator"])


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("b", [0.0, 0.5, 0.9])
def test_noise_is_the_variance_of_a_sum_of_correlated_steps(n, b):
    covariance = [[b ** abs(i - j) for j in range(n)] for i in range(n)]
    close(noise(n, b), np.sum(covariance) / n)


def test_drift_by_hand():
    row, zero = np.array([3.0, -4.0]), np.zeros(2)
    assert drift("l2", row, zero, 0.0, 2, 0.0) == 5
    assert drift("mean_abs", row, zero, 0.0, 2, 0.0) == 3.5
    assert drift("relative_l2", row, -row, 0.0, 2, 0.0) == 2
    assert drift("relative_l2", row, zero, 0.0, 2, 0.0) == np.inf
    assert drift("relative_l2", zero, zero, 0.0, 2, 0.0) == 0
    assert drift("coherence", row, zero, 12.5, 2, 0.0) == 2
    assert drift("coherence", row, zero, 12.5, 2, 0.5) == 2 / 1.5
    assert drift("coherence", row, row, 0.0, 2, 0.5) == 0
    assert drift("loss", row, zero, 6.0, 4, 0.0) == 1.5
    assert drift("loss", row, zero, -6.0, 4, 0.0) == 0


@all_rules
def test_without_popular_rows_it_is_the_engines_reference(name, rng):
    case = RULES[name]
    values = rng.normal(size=[4, 3])
    options = {"weight_decay": 0.125, "clipvalue": 0.5}
    plain = case.reference_table(values, **options)
    asleep = PolicyTable(
        values, case.reference, policies(min_updates=99), **options, **case.options
    )
    for step in range(30):
        ids, rate = rng.integers(4, size=step % 6), [0.125, 0.25][step % 2]
        grads = rng.normal(size=[len(ids), 3])
        plain.step(ids, grads, rate)
        asleep.step(ids, grads, rate)
    assert isinstance(plain, ReferenceTable)
    close(asleep.values, plain.values)
    for slot, value in plain.slots.items():
        close(asleep.slots[slot], value)
    assert asleep.last_step.tolist() == plain.last_step.tolist()
    assert asleep.counters["num_lookups"] == plain.num_lookups
    assert asleep.counters["num_row_updates"] == plain.num_row_updates


def changing_steps(table, num_steps):
    """Returns in which of some steps with gradients 1 the row 0 changes."""
    changing = []
    for step in range(1, num_steps + 1):
        before = table.values[0, 0]
        table.step([0], np.ones([1, 1]), 0.5)
        if table.values[0, 0] != before:
            changing.append(step)
    return changing


# At rest whenever it is judged. In `test_sleep.py` is the same of the product.
ALWAYS_AT_REST = {
    "drift_metric": "l2",
    "threshold": 1e30,
    "min_updates": 1,
    "window": 2,
    "probe": 2,
    "first_sleep": 2,
    "max_sleep": 8,
    "updates_per_sleep": 1,
}


def test_sleeps_double_up_to_the_limit():
    defer = PolicyTable(np.zeros([1, 1]), "sgd", policies(**ALWAYS_AT_REST))
    # A sleep of a new length ends where its length divides the step (the row has entry 0).
    assert changing_steps(defer, 47) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40]
    assert defer.values[0, 0] == -0.5 * 40
    defer.wake_all(0.5)
    assert defer.values[0, 0] == -0.5 * 47
    skip = PolicyTable(np.zeros([1, 1]), "sgd", policies(on_stale="skip", **ALWAYS_AT_REST))
    # The third sleep is of 7 batches, not 8: the row has had 7 updates.
    assert changing_steps(skip, 33) == [1, 2, 3, 6, 7, 12, 13, 21, 22, 31, 32]
    assert skip.counters["num_skipped_row_updates"] == 33 - 11


def test_what_is_held_is_applied_once():
    rng = np.random.default_rng(1)
    table = PolicyTable(np.zeros([5, 2]), "sgd", policies(**ALWAYS_AT_REST))
    total = np.zeros([5, 2])
    for _ in range(200):
        ids = np.flatnonzero(rng.random(5) < [1, 0.9, 0.5, 0.2, 0.05])
        grads = rng.integers(-8, 9, [len(ids), 2])
        table.step(ids, grads, 0.5)
        np.add.at(total, ids, grads)
    assert table.counters["num_deferred_row_updates"] > 200
    table.wake_all(0.5)
    close(table.values, -0.5 * total)


def test_settling_applies_what_is_held_and_the_row_sleeps_on():
    table = PolicyTable(np.zeros([1, 1]), "sgd", policies(**ALWAYS_AT_REST))
    changing_steps(table, 18)
    (entry,) = table.pool
    assert (entry.held_steps, entry.wake_step) == (2, 24)
    table.settle(0.5)
    assert table.values[0, 0] == -0.5 * 18
    assert (entry.held_steps, entry.wake_step, entry.live_step) == (0, 24, 18)
    table.settle(0.5)
    assert table.values[0, 0] == -0.5 * 18
    assert changing_steps(table, 6) == [6]


def test_where_the_counter_is_set_back_rows_are_live_and_time_stands_still():
    table = PolicyTable(np.zeros([1, 1]), "sgd", policies(**ALWAYS_AT_REST), momentum=0.5)
    changing_steps(table, 18)
    table.set_back(3)
    assert changing_steps(table, 1) == [1]
    assert table.pool[0].live_step == table.last_step[0] == 4
    # Three batches in no time: three steps, one after the other, and then what is to come.
    assert table.is_spent.tolist() == [True]
    table.wake_all(0.5)
    close(table.values, -0.5 * 19 * 2)


def test_an_idle_row_gives_its_entry_to_one_that_comes_often():
    policy = policies(**ALWAYS_AT_REST | {"popular_share": 0.5})
    table = PolicyTable(np.zeros([2, 1]), "sgd", policy, least_capacity=1)
    changing_steps(table, 18)
    assert table.pool[0].held_steps == 2
    # Awake again in step 24, idle from 1,024 on.
    for step, entries in [(1_022, [0]), (1_023, [1])]:
        table.set_back(step)
        table.step([1], np.ones([1, 1]), 0.5)
        assert [entry.row for entry in table.pool] == entries
    assert table.counts.tolist() == [18, 2]
    close(table.values, [[-0.5 * 18], [-0.5 * 2]])
