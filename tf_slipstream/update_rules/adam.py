"""Adam and AdamW."""

import dataclasses

import tensorflow as tf

from tf_slipstream.update_rules.update_rule import Slot, UpdateRule, decayed, power


@dataclasses.dataclass(frozen=True)
class Adam(UpdateRule):
    """`row -= alpha m / (sqrt(v) + epsilon)`.

    Here `m += (1 - beta_1)(grad - m)` and `v += (1 - beta_2)(grad^2 - v)`.

    Kingma & Ba 2014, with `alpha = learning_rate * sqrt(1 - beta_2^t) / (1 - beta_1^t)` and `t` the
    number of the step, the same for all rows. With `amsgrad`, the largest `v` so far takes its
    place. AdamW is the same rule after a weight decay, which rows get in the steps that touch them.

    A gradient of `k` batches counts as one batch `k` times as large, by the scaling rule of Malladi
    et al. 2022: `grad / k` and `grad^2 / k` with `beta^k`, and `k alpha`.

    A row that missed `k` steps first gets `m *= beta_1^k` and `v *= beta_2^k`; it does not move for
    those steps.
    """

    beta_1: float
    beta_2: float
    epsilon: float
    amsgrad: bool

    name = "adam"
    has_moments = True

    @classmethod
    def from_optimizer(cls, optimizer):
        return cls(
            float(optimizer.beta_1),
            float(optimizer.beta_2),
            float(optimizer.epsilon),
            bool(optimizer.amsgrad),
        )

    @property
    def correlation(self):
        return self.beta_1

    @property
    def hyperparameters(self):
        return (self.beta_1, self.beta_2, self.epsilon, float(self.amsgrad))

    @property
    def slots(self):
        slots = (Slot("momentum"), Slot("velocity"))
        return slots + (Slot("velocity_hat"),) if self.amsgrad else slots

    def update(self, rows, slots, grads, learning_rate, step, missed, batches):
        step = tf.cast(step, tf.float64)
        bias_correction = tf.sqrt(1 - self.beta_2**step) / (1 - self.beta_1**step)
        alpha = tf.cast(tf.cast(learning_rate, tf.float64) * bias_correction, rows.dtype)
        m = decayed(slots[0], self.beta_1, missed)
        v = decayed(slots[1], self.beta_2, missed)
        k = tf.cast(batches, tf.float32)
        m += (grads * (1 / k) - m) * tf.cast(1 - power(self.beta_1, batches), tf.float32)
        v += (tf.square(grads) * (1 / k) - v) * tf.cast(1 - power(self.beta_2, batches), tf.float32)
        largest = [tf.maximum(slots[2], v)] if self.amsgrad else []
        scale = largest[0] if self.amsgrad else v
        return rows - m * (alpha * k) / (tf.sqrt(scale) + self.epsilon), [m, v, *largest]
