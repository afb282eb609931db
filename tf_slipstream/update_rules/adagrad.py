"""Adagrad."""

import dataclasses

import tensorflow as tf

from tf_slipstream.update_rules.update_rule import Slot, UpdateRule


@dataclasses.dataclass(frozen=True)
class Adagrad(UpdateRule):
    """`a += grad^2; row -= learning_rate * grad / sqrt(a + epsilon)`.

    Duchi et al. 2011, with Keras's place for epsilon. A row that a step does not touch does not
    change.
    """

    initial_accumulator_value: float
    epsilon: float

    name = "adagrad"

    @classmethod
    def from_optimizer(cls, optimizer):
        return cls(float(optimizer.initial_accumulator_value), float(optimizer.epsilon))

    @property
    def hyperparameters(self):
        return (self.epsilon,)

    @property
    def slots(self):
        return (Slot("accumulator", self.initial_accumulator_value),)

    def update(self, rows, slots, grads, settings, spends):
        learning_rate = settings.learning_rate
        accumulator = slots[0] + tf.square(grads)
        rows -= learning_rate * grads / tf.sqrt(accumulator + self.epsilon)
        return rows, [accumulator]
