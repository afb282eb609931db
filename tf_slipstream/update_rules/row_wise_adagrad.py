"""Adagrad with one accumulator per row."""

import dataclasses

import tensorflow as tf

from tf_slipstream.update_rules.update_rule import Slot, UpdateRule


@dataclasses.dataclass(frozen=True)
class RowWiseAdagrad(UpdateRule):
    """`a += mean(grad^2); row -= learning_rate * grad / (sqrt(a) + epsilon)`.

    The mean is taken over the row.

    FBGEMM's row-wise Adagrad (EXACT_ROWWISE_ADAGRAD). A row that a step does not touch does not
    change.
    """

    initial_accumulator_value: float
    epsilon: float

    name = "row_wise_adagrad"

    @classmethod
    def from_optimizer(cls, optimizer):
        return cls(float(optimizer.initial_accumulator_value), float(optimizer.epsilon))

    @property
    def hyperparameters(self):
        return (self.epsilon,)

    @property
    def slots(self):
        return (Slot("accumulator", self.initial_accumulator_value, per_row=True),)

    def update(self, rows, slots, grads, settings, spends):
        learning_rate = settings.learning_rate
        accumulator = slots[0] + tf.reduce_mean(tf.square(grads), axis=1, keepdims=True)
        rows -= learning_rate * grads / (tf.sqrt(accumulator) + self.epsilon)
        return rows, [accumulator]
