"""Stochastic gradient descent, with and without momentum."""

import dataclasses

import tensorflow as tf

from tf_slipstream.update_rules.update_rule import MomentumSteps, Slot, UpdateRule, decayed


@dataclasses.dataclass(frozen=True)
class Sgd(UpdateRule):
    """`row -= learning_rate * grad`."""

    name = "sgd"
    hyperparameters = ()
    slots = ()

    def update(self, rows, slots, grads, learning_rate, step, missed, batches):
        return rows - grads * learning_rate, []


@dataclasses.dataclass(frozen=True)
class Momentum(UpdateRule):
    """`m = momentum * m - learning_rate * grad; row += m`.

    With `nesterov`, `row += momentum * m - learning_rate * grad` instead. A row that missed `k`
    steps first gets `m *= momentum^k`; it does not move for those steps.
    """

    momentum: float
    nesterov: bool

    name = "momentum"
    has_moments = True
    slots = (Slot("momentum"),)

    @property
    def hyperparameters(self):
        return (self.momentum, float(self.nesterov))

    @property
    def correlation(self):
        return self.momentum

    def update(self, rows, slots, grads, learning_rate, step, missed, batches):
        m = decayed(slots[0], self.momentum, missed)
        steps = MomentumSteps(self.momentum, batches)
        increment = -(grads * (learning_rate / tf.cast(batches, tf.float32)))
        moved = steps.from_m * m + steps.from_i * increment
        if self.nesterov:
            moved = moved * self.momentum - grads * learning_rate
        return rows + moved, [steps.power * m + steps.held * increment]


def sgd_rule(optimizer):
    """Returns the rule of a Keras `SGD`."""
    if optimizer.momentum:
        return Momentum(float(optimizer.momentum), bool(optimizer.nesterov))
    return Sgd()
