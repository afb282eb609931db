"""The oracle's rules: what the sum of a row's gradients in some batches does to the row.

In NumPy, around the rules of `tests/reference.py`: as many steps as there were batches, each with
the mean gradient. The product has these sums in closed form. A rule that is not here takes the sum
as the gradient of one batch.
"""

import dataclasses
import functools
import math

import numpy as np

from tests import reference


@functools.singledispatch
def held_update(rule, row, slots, held, num_batches, learning_rate, step_number):
    """Updates a row with the sum of its gradients in some batches.

    Args:
        rule: A `Rule` of `tests/reference.py`.
        row, slots: As `Rule.update` has them; missed steps are already accounted for.
        held: The sum, `[dim]`.
        num_batches: How many batches it is of, `k`.
        learning_rate, step_number: As in `Rule.update`.

    Returns:
        The row and its slots; no argument changes.
    """
    return rule.update(row, slots, held, learning_rate, step_number)


@held_update.register
def _(rule: reference.Sgd, row, slots, held, num_batches, learning_rate, step_number):
    for _ in range(num_batches):
        row, slots = rule.update(row, slots, held / num_batches, learning_rate, step_number)
    return row, slots


@held_update.register
def _(rule: reference.Adam, row, slots, held, num_batches, learning_rate, step_number):
    mean, square = held / num_batches, held**2 / num_batches
    momentum, velocity = slots["momentum"], slots["velocity"]
    sum_of_momenta = np.zeros_like(momentum)
    for _ in range(num_batches):
        momentum = momentum + (1 - rule.beta_1) * (mean - momentum)
        # Gradients of pure noise add up to a sum whose square is as many times one's.
        velocity = velocity + (1 - rule.beta_2) * (square - velocity)
        sum_of_momenta = sum_of_momenta + momentum
    velocity_hat = np.maximum(slots["velocity_hat"], velocity)
    alpha = learning_rate * math.sqrt(1 - rule.beta_2**step_number)
    alpha /= 1 - rule.beta_1**step_number
    used_velocity = velocity_hat if rule.amsgrad else velocity
    row = row - alpha * sum_of_momenta / (np.sqrt(used_velocity) + rule.epsilon)
    return row, {"momentum": momentum, "velocity": velocity, "velocity_hat": velocity_hat}


@held_update.register
def _(rule: reference.RmsProp, row, slots, held, num_batches, learning_rate, step_number):
    mean, square = held / num_batches, held**2 / num_batches
    velocity, average = slots["velocity"], slots["average_gradient"]
    for _ in range(num_batches):
        velocity = rule.rho * velocity + (1 - rule.rho) * square
        average = rule.rho * average + (1 - rule.rho) * mean
    variance = velocity - average**2 if rule.centered else velocity
    increment = learning_rate * mean / np.sqrt(variance + rule.epsilon)
    momentum = slots["momentum"]
    for _ in range(num_batches):
        momentum = rule.momentum * momentum + increment
        row = row - momentum
    return row, {"velocity": velocity, "momentum": momentum, "average_gradient": average}


@held_update.register
def _(rule: reference.Ftrl, row, slots, held, num_batches, learning_rate, step_number):
    shrinkage = num_batches * rule.l2_shrinkage_regularization_strength
    rule = dataclasses.replace(rule, l2_shrinkage_regularization_strength=shrinkage)
    return rule.update(row, slots, held, learning_rate, step_number)


def correlation(rule):
    """Returns how much of a rule's step is the step before."""
    if isinstance(rule, reference.Adam):
        return rule.beta_1
    return rule.momentum if isinstance(rule, (reference.Sgd, reference.RmsProp)) else 0.0
