"""RMSprop."""

import dataclasses

import tensorflow as tf

from tf_slipstream.update_rules.update_rule import (
    PlainMomentum,
    Slot,
    UpdateRule,
    power,
    to_float,
)


@dataclasses.dataclass(frozen=True)
class RmsProp(UpdateRule):
    """`v = rho v + (1 - rho) grad^2; row -= learning_rate * grad / sqrt(v + epsilon)`.

    Tieleman & Hinton 2012. `centered` takes `v - a^2` for `v` under the root, with
    `a = rho a + (1 - rho) grad`; with `momentum`, `b = momentum * b + increment; row -= b`. In a
    step without gradient `v`, `a` and `b` decay, and the row moves by `b`: it gets that at its
    touch.
    """

    rho: float
    momentum: float
    epsilon: float
    centered: bool

    name = "rmsprop"
    has_moments = True
    momentum_slots = ("momentum",)

    @classmethod
    def from_optimizer(cls, optimizer):
        return cls(
            float(optimizer.rho),
            float(optimizer.momentum),
            float(optimizer.epsilon),
            bool(optimizer.centered),
        )

    @property
    def correlation(self):
        return self.momentum

    @property
    def hyperparameters(self):
        return (self.rho, self.momentum, self.epsilon, float(self.centered))

    @property
    def slots(self):
        slots = [Slot("velocity")]
        if self.centered:
            slots.append(Slot("average_gradient"))
        if self.momentum > 0:
            slots.append(Slot("momentum"))
        return tuple(slots)

    @property
    def can_spend(self):
        return self._steps.can_spend

    @property
    def moves_when_missed(self):
        return self.momentum > 0

    @property
    def _steps(self):
        return PlainMomentum(self.momentum)

    def update(self, rows, slots, grads, settings, spends):
        velocity = self.rho * slots[0] + (1 - self.rho) * tf.square(grads)
        new_slots = [velocity]
        denominator = velocity + self.epsilon
        if self.centered:
            average = self.rho * slots[1] + (1 - self.rho) * grads
            new_slots.append(average)
            denominator = velocity - tf.square(average) + self.epsilon
        moved = settings.learning_rate * grads / tf.sqrt(denominator)
        if self.momentum > 0:
            moved = self.momentum * slots[-1] + moved
            new_slots.append(moved)
            moved += tf.where(spends, moved * self._steps.tail, 0.0)
        return rows - moved, new_slots

    def adjust(self, rows, slots, settings, touch):
        decay = to_float(power(self.rho, touch.num_missed))
        if self.momentum == 0:
            return rows, [slot * decay for slot in slots]
        moved, momentum_decay = self._steps.adjustment(touch)
        averages = [slot * decay for slot in slots[:-1]]
        return rows - slots[-1] * moved, [*averages, slots[-1] * momentum_decay]
