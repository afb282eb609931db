"""Checks what an update rule takes from its Keras optimizer, and what it asks of a table."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.ops.tables import RULE_CASES
from tf_slipstream import RowWiseAdagrad, update_rules
from tf_slipstream._keras import keras
from tf_slipstream.update_rules import Slot, rules_by_optimizer
from tf_slipstream.update_rules.update_rule import decayed

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


def test_only_rules_with_moments_need_the_steps_that_a_row_missed():
    """A rule has moments if the reference decays a slot of it for a step without gradient."""
    for name, case in RULE_CASES.items():
        reference = case.reference_table(np.zeros([1, 1]))
        decays = [
            slot.name
            for slot in case.rule.slots
            if slot.name in reference.rule.missed_step_decays()
        ]
        assert case.rule.has_moments == bool(decays), name


def test_a_moment_decays_by_a_power_of_its_base():
    moment = tf.constant([[1.0], [-3.0], [2.0], [5.0], [7.0]])
    missed = tf.constant([[0], [1], [10], [1_000_000], [2_000_000_000]])
    result = decayed(moment, 0.9, missed).numpy()
    expected = moment.numpy() * (0.9 ** missed.numpy().astype(np.float64)).astype(np.float32)
    np.testing.assert_array_max_ulp(result, expected, 1)
    assert result[0] == 1 and (result[3:] == 0).all()
