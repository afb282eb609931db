"""RMSprop."""

import dataclasses

import tensorflow as tf

from tf_slipstream.update_rules.update_rule import MomentumSteps, Slot, UpdateRule, decayed, power


@dataclasses.dataclass(frozen=True)
class RmsProp(UpdateRule):
    """`v = rho v + (1 - rho) grad^2; row -= learning_rate * grad / sqrt(v + epsilon)`.

    Tieleman & Hinton 2012. `centered` takes `v - a^2` for `v` under the root, with
    `a = rho a + (1 - rho) grad`; with `momentum`, `b = momentum * b + increment; row -= b`.

    A row that missed `k` steps first gets `v *= rho^k`, `a *= rho^k` and `b *= momentum^k`; it does
    not move for those steps.
    """

    rho: float
    momentum: float
    epsilon: float
    centered: bool

    name = "rmsprop"
    has_moments = True

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

    def update(self, rows, slots, grads, learning_rate, step, missed, batches):
        velocity = decayed(slots[0], self.rho, missed)
        k, kept = tf.cast(batches, tf.float32), power(self.rho, batches)
        keep, take = tf.cast(kept, tf.float32), tf.cast(1 - kept, tf.float32)
        mean = grads * (1 / k)
        velocity = keep * velocity + take * (tf.square(grads) * (1 / k))
        new_slots = [velocity]
        denominator = velocity + self.epsilon
        if self.centered:
            average = decayed(slots[1], self.rho, missed)
            average = keep * average + take * mean
            new_slots.append(average)
            denominator = velocity - tf.square(average) + self.epsilon
        increment = learning_rate * mean / tf.sqrt(denominator)
        if self.momentum == 0:
            return rows - increment * k, new_slots
        steps, b = (
            MomentumSteps(self.momentum, batches),
            decayed(slots[-1], self.momentum, missed),
        )
        new_slots.append(steps.power * b + steps.held * increment)
        return rows - (steps.from_m * b + steps.from_i * increment), new_slots
