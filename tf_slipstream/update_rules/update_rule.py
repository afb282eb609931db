"""What every update rule has."""

import abc
import dataclasses
from typing import ClassVar

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

    The equations are Keras's, so that a batch that touches every row gives what Keras's dense
    update gives. A row that a step does not touch keeps its values and slots. Where a rule
    `has_moments`, they are first decayed for the steps that the row missed when it is next touched,
    as if the gradient of those steps had been zero.

    Attributes:
        name: The rule's name in the native op.
        has_moments: Whether the rule needs to know the steps that a row missed.
    """

    name: ClassVar[str]
    has_moments: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def hyperparameters(self):
        """Floats, in the order that the native op expects."""

    @property
    @abc.abstractmethod
    def slots(self):
        """Tuple of `Slot`s."""

    @abc.abstractmethod
    def update(self, rows, slots, grads, learning_rate, step, missed):
        """Returns new rows and slots, on plain TensorFlow ops.

        Args:
            rows: float32 `[num_rows, dim]`, the distinct rows to update.
            slots: One tensor per slot: `[num_rows, dim]`, or `[num_rows, 1]`.
            grads: Like `rows`, their summed gradients.
            learning_rate: float32 scalar.
            step: int64 scalar, 1 in the first step.
            missed: int32 `[num_rows, 1]`, the steps missed; None unless `has_moments`.

        Returns:
            New `rows`, and a list like `slots`.
        """


def decayed(moment, base, missed):
    """Returns `moment * base^missed`, with `missed` as in `UpdateRule.update`."""
    factor = tf.pow(tf.constant(base, tf.float64), tf.cast(missed, tf.float64))
    return moment * tf.cast(factor, moment.dtype)
