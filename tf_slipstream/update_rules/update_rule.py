"""What every update rule has."""

import abc
import dataclasses
from typing import ClassVar

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Slot:
    """State that a rule keeps for a table.

    Attributes:
        name: The variable's name.
        initial_value: Float that every element starts with.
        per_row: Whether a row has one value (`[num_rows, 1]`) instead of one per element.
    """

    name: str
    initial_value: float = 0.0
    per_row: bool = False


class UpdateRule(abc.ABC):
    """A rule to update rows from their summed gradients.

    The equations are Keras's: a row that is touched in every step gets, to the bit, what Keras's
    dense update gives it. A row that a step does not touch keeps its values and slots. Where a rule
    `has_moments`, a dense optimizer would go on moving such a row by its momentum; the row gets
    that movement as well, at a touch: docs/reference/rare_rows.md.

    Attributes:
        name: The rule's name in the native op.
        has_moments: Whether the rule needs to know the steps that a row missed.
        momentum_slots: Names of the slots that move a row in steps without a gradient.
        correlation: Of a row's movement in one step with that in the step before, where gradients
            are pure noise and every step has one.
        can_spend: Whether a row that misses steps gets the whole effect of its momentum at once.
        moves_when_missed: Whether a dense optimizer moves a row in a step without gradient.
        tails: float32 `[num_tails]`, as the native op has them; none but for Adam.
        mean_delay: After how many steps, on average, momentum has its effect.
    """

    name: ClassVar[str]
    has_moments: ClassVar[bool] = False
    momentum_slots: ClassVar[tuple] = ()
    correlation: ClassVar[float] = 0.0
    can_spend: ClassVar[bool] = False
    moves_when_missed: ClassVar[bool] = False
    tails: ClassVar[np.ndarray] = np.zeros([0], np.float32)
    mean_delay: ClassVar[float] = 0.0

    @property
    @abc.abstractmethod
    def hyperparameters(self):
        """Floats, in the order that the native op expects."""

    @property
    @abc.abstractmethod
    def slots(self):
        """Tuple of `Slot`s."""

    @abc.abstractmethod
    def update(self, rows, slots, grads, settings, spends):
        """Returns new rows and slots, on plain TensorFlow ops.

        Args:
            rows: float32 `[num_rows, dim]`, the distinct rows to update.
            slots: One tensor per slot: `[num_rows, dim]`, or `[num_rows, 1]`.
            grads: Like `rows`, their summed gradients.
            settings: `StepSettings`.
            spends: bool `[num_rows, 1]`, which rows get the whole effect of their momentum now;
                none unless `can_spend`.

        Returns:
            New `rows`, and a list like `slots`.
        """

    def adjust(self, rows, slots, settings, touch):
        """Returns rows and slots as they are in the step before this one.

        Args:
            rows, slots, settings: As in `update`.
            touch: `Touch`, when the rows were last touched.
        """
        return rows, list(slots)


def power(base, exponent):
    """Returns `base^exponent` in float64, of integers."""
    return tf.pow(tf.constant(base, tf.float64), tf.cast(exponent, tf.float64))


def geometric_sum(base, base_power, num):
    """Returns `base + base^2 + ... + base^num`, float64, given `base^num`."""
    if base == 1:
        return tf.cast(num, tf.float64)
    return base * (1 - base_power) / (1 - base)


def to_float(values):
    return tf.cast(values, tf.float32)


@dataclasses.dataclass(frozen=True)
class PlainMomentum:
    """A moment `m` that moves a row by `factor m` in each step and decays by `base`."""

    base: float
    factor: float = 1.0

    @property
    def can_spend(self):
        return 0 < self.base < 1

    @property
    def tail(self):
        """What a unit of `m` moves the row by in all steps to come."""
        return self.factor * self.base / (1 - self.base) if self.base < 1 else 0.0

    def adjustment(self, touch):
        """Returns what to move by per unit of the last touch's moment, and what that decays by."""
        decay = power(self.base, touch.num_missed)
        caught_up = self.factor * geometric_sum(self.base, decay, touch.num_missed)
        moved = tf.where(touch.was_spent, -self.tail * decay, caught_up)
        return to_float(moved), to_float(decay)
