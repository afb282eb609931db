"""Follow the regularized leader."""

import dataclasses

import tensorflow as tf

from tf_slipstream.update_rules.update_rule import Slot, UpdateRule


@dataclasses.dataclass(frozen=True)
class Ftrl(UpdateRule):
    """FTRL-Proximal (McMahan et al. 2013), with Keras's shrinkage and beta.

    With `p = -learning_rate_power` and `a' = a + grad^2`:
    `z += grad + 2 l2_shrinkage row - (a'^p - a^p) / learning_rate * row`, then
    `row = (clip(z, -l1, l1) - z) / (a'^p / learning_rate + 2 l2 + beta / learning_rate)`.

    A row that a step does not touch does not change.
    """

    learning_rate_power: float
    initial_accumulator_value: float
    l1: float
    l2: float
    l2_shrinkage: float
    beta: float

    name = "ftrl"

    @classmethod
    def from_optimizer(cls, optimizer):
        return cls(
            float(optimizer.learning_rate_power),
            float(optimizer.initial_accumulator_value),
            float(optimizer.l1_regularization_strength),
            float(optimizer.l2_regularization_strength),
            float(optimizer.l2_shrinkage_regularization_strength),
            float(optimizer.beta),
        )

    @property
    def hyperparameters(self):
        return (self.learning_rate_power, self.l1, self.l2, self.l2_shrinkage, self.beta)

    @property
    def slots(self):
        return (Slot("accumulator", self.initial_accumulator_value), Slot("linear"))

    def update(self, rows, slots, grads, settings, spends):
        learning_rate = settings.learning_rate
        accumulator, linear = slots
        new_accumulator = accumulator + tf.square(grads)
        new_power = self._power(new_accumulator)
        linear += (
            grads
            + 2 * self.l2_shrinkage * rows
            - (new_power - self._power(accumulator)) / learning_rate * rows
        )
        l2 = self.l2 + self.beta / (2 * learning_rate)
        clipped = tf.clip_by_value(linear, -self.l1, self.l1)
        rows = (clipped - linear) / (new_power / learning_rate + 2 * l2)
        return rows, [new_accumulator, linear]

    def _power(self, x):
        return (
            tf.sqrt(x) if self.learning_rate_power == -0.5 else tf.pow(x, -self.learning_rate_power)
        )
