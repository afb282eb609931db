"""Checks what an update rule takes from its Keras optimizer, and what it asks of a table."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.ops.tables import RULE_CASES
from tests.reference import RULES as RULE_CLASSES
from tf_slipstream import RowWiseAdagrad, update_rules
from tf_slipstream._compat import keras
from tf_slipstream.update_rules import Slot, rules_by_optimizer
from tf_slipstream.update_rules.update_rule import geometric_sum, power

optimizers = keras.optimizers
ZERO_SLOTS = {name: Slot(name, 0.0, per_row=False) for name in ("momentum", "velocity")}
MOMENTUM, VELOCITY = ZERO_SLOTS["momentum"], ZERO_SLOTS["velocity"]


@dataclasses.dataclass(frozen=True)
class Expected:
    """A rule as it should come from an optimizer, with the native op's hyperparameters."""

    rule: update_rules.UpdateRule
    hyperparameters: tuple
    slots: tuple


ADAM_OPTIONS = {"beta_1": 0.5, "beta_2": 0.75, "epsilon": 0.25}
RMSPROP_OPTIONS = {"rho": 0.75, "epsilon": 0.25}
FTRL_OPTIONS = {
    "learning_rate_power": -0.75,
    "initial_accumulator_value": 0.25,
    "l1_regularization_strength": 1.0,
    "l2_regularization_strength": 2.0,
    "l2_shrinkage_regularization_strength": 3.0,
    "beta": 4.0,
}
RULES = {
    "sgd": (optimizers.SGD, {}, Expected(update_rules.Sgd(), (), ())),
    "momentum": (
        optimizers.SGD,
        {"momentum": 0.5},
        Expected(update_rules.Momentum(momentum=0.5, nesterov=False), (0.5, 0.0), (MOMENTUM,)),
    ),
    "nesterov": (
        optimizers.SGD,
        {"momentum": 0.5, "nesterov": True},
        Expected(update_rules.Momentum(momentum=0.5, nesterov=True), (0.5, 1.0), (MOMENTUM,)),
    ),
    # Without momentum, Nesterov's step is the plain one.
    "nesterov_without_momentum": (
        optimizers.SGD,
        {"nesterov": True},
        Expected(update_rules.Sgd(), (), ()),
    ),
    "adagrad": (
        optimizers.Adagrad,
        {"initial_accumulator_value": 0.5, "epsilon": 0.25},
        Expected(
            update_rules.Adagrad(initial_accumulator_value=0.5, epsilon=0.25),
            (0.25,),
            (Slot("accumulator", 0.5),),
        ),
    ),
    "row_wise_adagrad": (
        RowWiseAdagrad,
        {"initial_accumulator_value": 0.5, "epsilon": 0.25},
        Expected(
            update_rules.RowWiseAdagrad(initial_accumulator_value=0.5, epsilon=0.25),
            (0.25,),
            (Slot("accumulator", 0.5, per_row=True),),
        ),
    ),
    "adam": (
        optimizers.Adam,
        ADAM_OPTIONS,
        Expected(
            update_rules.Adam(**ADAM_OPTIONS, amsgrad=False),
            (0.5, 0.75, 0.25, 0.0),
            (MOMENTUM, VELOCITY),
        ),
    ),
    "amsgrad": (
        optimizers.AdamW,
        ADAM_OPTIONS | {"amsgrad": True},
        Expected(
            update_rules.Adam(**ADAM_OPTIONS, amsgrad=True),
            (0.5, 0.75, 0.25, 1.0),
            (MOMENTUM, VELOCITY, Slot("velocity_hat")),
        ),
    ),
    "rmsprop": (
        optimizers.RMSprop,
        RMSPROP_OPTIONS,
        Expected(
            update_rules.RmsProp(**RMSPROP_OPTIONS, momentum=0.0, centered=False),
            (0.75, 0.0, 0.25, 0.0),
            (VELOCITY,),
        ),
    ),
    "rmsprop_momentum": (
        optimizers.RMSprop,
        RMSPROP_OPTIONS | {"momentum": 0.5},
        Expected(
            update_rules.RmsProp(**RMSPROP_OPTIONS, momentum=0.5, centered=False),
            (0.75, 0.5, 0.25, 0.0),
            (VELOCITY, MOMENTUM),
        ),
    ),
    "rmsprop_centered_momentum": (
        optimizers.RMSprop,
        RMSPROP_OPTIONS | {"momentum": 0.5, "centered": True},
        Expected(
            update_rules.RmsProp(**RMSPROP_OPTIONS, momentum=0.5, centered=True),
            (0.75, 0.5, 0.25, 1.0),
            (VELOCITY, Slot("average_gradient"), MOMENTUM),
        ),
    ),
    "ftrl": (
        optimizers.Ftrl,
        FTRL_OPTIONS,
        Expected(
            update_rules.Ftrl(-0.75, 0.25, l1=1.0, l2=2.0, l2_shrinkage=3.0, beta=4.0),
            (-0.75, 1.0, 2.0, 3.0, 4.0),
            (Slot("accumulator", 0.25), Slot("linear")),
        ),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_has_its_optimizers_hyperparameters_and_slots(name):
    make_optimizer, options, expected = RULES[name]
    optimizer = make_optimizer(0.5, **options)
    rule = rules_by_optimizer()[type(optimizer).__name__](optimizer)
    assert rule == expected.rule
    assert rule.hyperparameters == expected.hyperparameters
    assert all(type(value) is float for value in rule.hyperparameters)
    assert rule.slots == expected.slots


def test_every_optimizer_with_a_rule_is_tested():
    tested = {make_optimizer.__name__ for make_optimizer, *_ in RULES.values()}
    assert tested == set(rules_by_optimizer())


def after_a_step_without_gradient(case):
    """Returns a row and its slots, before and after, of the reference."""
    rule = case.reference_table(np.zeros([1, 1])).rule
    slots = {name: np.full(1, 0.5) for name in rule.initial_slots(1)}
    row, after = rule.update(np.ones(1), slots, np.zeros(1), 0.125, 7)
    names = {slot.name for slot in case.rule.slots}
    return row, {name: value for name, value in after.items() if name in names}


@pytest.mark.parametrize("name", RULE_CASES)
def test_a_rule_says_what_a_step_without_gradient_changes(name):
    """As the reference does it."""
    case, rule = RULE_CASES[name], RULE_CASES[name].rule
    row, slots = after_a_step_without_gradient(case)
    moves = bool(row != 1) and not name.startswith("ftrl")  # which is a function of its slots
    assert rule.moves_when_missed == moves
    changed = {slot for slot, value in slots.items() if value != 0.5}
    assert rule.has_moments == bool(changed) or name.startswith("ftrl")
    assert set(rule.momentum_slots) & set(slots) == ({"momentum"} if moves else set())


@pytest.mark.parametrize("name", RULE_CASES)
def test_a_rule_can_spend_what_the_reference_can(name):
    rule = RULE_CASES[name].reference_table(np.zeros([1, 1])).rule
    assert RULE_CASES[name].rule.can_spend == rule.can_spend()


@pytest.mark.parametrize(
    "beta_1, beta_2, amsgrad, can_spend",
    [
        (0.9, 0.999, False, True),
        (0.9, 0.999, True, True),
        (0.0, 0.999, False, False),
        # m over the root of v grows, or falls so slowly that a row would get far ahead.
        (0.9, 0.8, False, False),
        (0.9, 0.9, False, False),
        (0.9, 0.91, False, True),
        (0.9, 0.8, True, True),
    ],
)
def test_adam_can_spend_where_its_steps_without_gradient_fall_fast(
    beta_1, beta_2, amsgrad, can_spend
):
    rule = update_rules.Adam(beta_1, beta_2, 1e-7, amsgrad)
    assert rule.can_spend == can_spend
    assert RULE_CLASSES["adam"](beta_1, beta_2, 1e-7, amsgrad).can_spend() == can_spend
    assert rule.tails.dtype == np.float32
    assert bool(len(rule.tails)) == can_spend == (rule.mean_delay > 0)


@pytest.mark.parametrize("beta_2", [0.95, 0.999])
def test_the_tails_of_adam_are_the_steps_without_gradient_summed(beta_2):
    rule = update_rules.Adam(0.9, beta_2, 1e-7, False)
    r = 0.9 / np.sqrt(beta_2)
    for step in (0, 1, 2, 10, len(rule.tails) - 1):
        later = step + np.arange(1, 1_000, dtype=np.float64)
        corrections = np.sqrt(1 - beta_2**later) / (1 - 0.9**later)
        expected = np.sum(r ** (later - step) * corrections)
        np.testing.assert_allclose(rule.tails[step], expected, rtol=1e-6)
    # From there on all is as in the last.
    np.testing.assert_allclose(rule.tails[-1], r / (1 - r), rtol=1e-3)


def test_powers_and_their_sums_are_exact_in_float64():
    missed = np.array([0, 1, 10, 1_000_000, 2_000_000_000])
    powers = power(0.9, tf.constant(missed)).numpy()
    np.testing.assert_allclose(powers, 0.9 ** missed.astype(np.float64), rtol=1e-14)
    assert powers[0] == 1 and (powers[3:] == 0).all()
    sums = geometric_sum(0.9, powers, missed)
    np.testing.assert_allclose(sums[:3], [0, 0.9, sum(0.9**i for i in range(1, 11))], rtol=1e-14)
    np.testing.assert_allclose(sums[3:], 9.0, rtol=1e-14)
    np.testing.assert_array_equal(geometric_sum(1, 1.0, missed), missed)
