"""Stochastic gradient descent, with and without momentum."""

import dataclasses

import tensorflow as tf

from tf_slipstream.update_rules.update_rule import PlainMomentum, Slot, UpdateRule


@dataclasses.dataclass(frozen=True)
class Sgd(UpdateRule):
    """`row -= learning_rate * grad`."""

    name = "sgd"
    hyperparameters = ()
    slots = ()

    def update(self, rows, slots, grads, settings, spends):
        return rows - grads * settings.learning_rate, []


@dataclasses.dataclass(frozen=True)
class Momentum(UpdateRule):
    """`m = momentum * m - learning_rate * grad; row += m`.

    With `nesterov`, `row += momentum * m - learning_rate * grad` instead. In a step without
    gradient the row moves by what its `m` has become; a row that misses steps gets all of
    that at its touch.
    """

    momentum: float
    nesterov: bool

    name = "momentum"
    has_moments = True
    momentum_slots = ("momentum",)
    moves_when_missed = True
    slots = (Slot("momentum"),)

    @property
    def hyperparameters(self):
        return (self.momentum, float(self.nesterov))

    @property
    def correlation(self):
        return self.momentum

    @property
    def can_spend(self):
        return self._steps.can_spend

    @property
    def _steps(self):
        return PlainMomentum(self.momentum, self.momentum if self.nesterov else 1.0)

    def update(self, rows, slots, grads, settings, spends):
        m = slots[0] * self.momentum - grads * settings.learning_rate
        moved = m * self.momentum - grads * settings.learning_rate if self.nesterov else m
        return rows + moved + tf.where(spends, m * self._steps.tail, 0.0), [m]

    def adjust(self, rows, slots, settings, touch):
        moved, decay = self._steps.adjustment(touch)
        return rows + slots[0] * moved, [slots[0] * decay]


def sgd_rule(optimizer):
    """Returns the rule of a Keras `SGD`."""
    if optimizer.momentum:
        return Momentum(float(optimizer.momentum), bool(optimizer.nesterov))
    return Sgd()
