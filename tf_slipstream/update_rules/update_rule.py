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
        correlation: Of a row's movement in one step with that in the step before, where gradients
            are pure noise.
    """

    name: ClassVar[str]
    has_moments: ClassVar[bool] = False
    correlation: ClassVar[float] = 0.0

    @property
    @abc.abstractmethod
    def hyperparameters(self):
        """Floats, in the order that the native op expects."""

    @property
    @abc.abstractmethod
    def slots(self):
        """Tuple of `Slot`s."""

    @abc.abstractmethod
    def update(self, rows, slots, grads, learning_rate, step, missed, batches):
        """Returns new rows and slots, on plain TensorFlow ops.

        A row's gradient may be the sum over several batches, applied as docs/policy.md derives it;
        with one it is the plain rule, operation for operation.

        Args:
            rows: float32 `[num_rows, dim]`, the distinct rows to update.
            slots: One tensor per slot: `[num_rows, dim]`, or `[num_rows, 1]`.
            grads: Like `rows`, their summed gradients.
            learning_rate: float32 scalar.
            step: int64 scalar, 1 in the first step; this and the rest may be None for rules that
                do not use them, `row_wise_adagrad` say.
            missed: int32 `[num_rows, 1]`, the steps missed; None unless `has_moments`.
            batches: int32 `[num_rows, 1]`, how many batches each gradient is the sum of.

        Returns:
            New `rows`, and a list like `slots`.
        """


def decayed(moment, base, missed):
    """Returns `moment * base^missed`, with `missed` as in `UpdateRule.update`."""
    return moment * tf.cast(power(base, missed), moment.dtype)


def power(base, exponent):
    """Returns `base^exponent` in float64, of integers."""
    return tf.pow(tf.constant(base, tf.float64), tf.cast(exponent, tf.float64))


class MomentumSteps:
    """What `k` steps `m = base m + i` with a constant `i` make of `m`, and of its values' sum.

    `m_k = power m + held i` and `sum = from_m m + from_i i`; each float32 `[num_rows, 1]`.
    """

    def __init__(self, base, k):
        n, factor = tf.cast(k, tf.float64), power(base, k)
        held = n if base == 1 else (1 - factor) / (1 - base)
        from_m = base * held
        from_i = n * (n + 1) / 2 if base == 1 else (n - from_m) / (1 - base)
        values = (tf.cast(value, tf.float32) for value in (factor, held, from_m, from_i))
        self.power, self.held, self.from_m, self.from_i = values
