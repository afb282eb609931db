"""Stochastic gradient descent, with and without momentum."""

import dataclasses

from tf_slipstream.update_rules.update_rule import Slot, UpdateRule, decayed


@dataclasses.dataclass(frozen=True)
class Sgd(UpdateRule):
    """`row -= learning_rate * grad`."""

    name = "sgd"
    hyperparameters = ()
    slots = ()

    def update(self, rows, slots, grads, learning_rate, step, missed):
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

    def update(self, rows, slots, grads, learning_rate, step, missed):
        m = decayed(slots[0], self.momentum, missed)
        m = m * self.momentum - grads * learning_rate
        moved = m * self.momentum - grads * learning_rate if self.nesterov else m
        return rows + moved, [m]


def sgd_rule(optimizer):
    """Returns the rule of a Keras `SGD`."""
    if optimizer.momentum:
        return Momentum(float(optimizer.momentum), bool(optimizer.nesterov))
    return Sgd()
