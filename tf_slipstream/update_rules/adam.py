"""Adam and AdamW."""

import dataclasses
import functools
import math

import numpy as np
import tensorflow as tf

from tf_slipstream.update_rules.update_rule import (
    Slot,
    UpdateRule,
    geometric_sum,
    power,
    to_float,
)

# From the step on in which the bias of `v` is below this, its correction counts as constant.
_LEAST_BIAS = 1e-3
_MAX_TAILS = 1 << 16


@dataclasses.dataclass(frozen=True)
class Adam(UpdateRule):
    """`row -= alpha m / (sqrt(v) + epsilon)`.

    Here `m += (1 - beta_1)(grad - m)` and `v += (1 - beta_2)(grad^2 - v)`.

    Kingma & Ba 2014, with `alpha = learning_rate * sqrt(1 - beta_2^t) / (1 - beta_1^t)` and `t` the
    number of the step, the same for all rows. With `amsgrad`, the largest `v` so far takes its
    place. AdamW is the same rule after a weight decay.

    In a step without gradient a dense Adam moves a row by `alpha m / (sqrt(v) + epsilon)`, with `m`
    and `v` decayed: by a factor `r = beta_1 / sqrt(beta_2)` less than in the step before. Such a
    row gets all of that at its touch; docs/reference/rare_rows.md has the sums.
    """

    beta_1: float
    beta_2: float
    epsilon: float
    amsgrad: bool

    name = "adam"
    has_moments = True
    momentum_slots = ("momentum",)

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

    @property
    def moves_when_missed(self):
        return self.beta_1 > 0

    @property
    def can_spend(self):
        # Where v decays as fast as m^2 does, a row would get far ahead of a dense optimizer's.
        return 0 < self._r < 1 and _all_steps(self._r) <= 2 * _all_steps(self.beta_1)

    @property
    def mean_delay(self):
        return 1 / (1 - self._r) if self.can_spend else 0.0

    @property
    def tails(self):
        """`sum_j r^j correction(t + j)` for `t = 0, 1, ...`, until the bias is gone."""
        if not self.can_spend:
            return UpdateRule.tails
        return _tails(self.beta_1, self.beta_2, self._r)

    @property
    def _r(self):
        return self.beta_1 / self._root_decay

    @property
    def _root_decay(self):
        return 1.0 if self.amsgrad else math.sqrt(self.beta_2)

    def update(self, rows, slots, grads, settings, spends):
        m = slots[0] + (grads - slots[0]) * float(np.float32(1 - self.beta_1))
        v = slots[1] + (tf.square(grads) - slots[1]) * float(np.float32(1 - self.beta_2))
        largest = [tf.maximum(slots[2], v)] if self.amsgrad else []
        root = tf.sqrt(largest[0] if self.amsgrad else v)
        rate = alpha = to_float(self._alpha(settings))
        ratio = tf.ones_like(alpha)
        if self.can_spend:
            after = self._tail(settings, settings.step) * self._tail_rate(settings, 1)
            of_all = tf.cast(alpha, tf.float64) + self._ratio * after
            rate = tf.where(spends, alpha + to_float(self._ratio * after), alpha)
            ratio = tf.where(spends, to_float(of_all / (tf.cast(alpha, tf.float64) + after)), ratio)
        return rows - m * rate / (root * ratio + self.epsilon), [m, v, *largest]

    def adjust(self, rows, slots, settings, touch):
        power_1, power_2 = (
            power(self.beta_1, touch.num_missed),
            power(self.beta_2, touch.num_missed),
        )
        root = tf.sqrt(slots[2] if self.amsgrad else slots[1])
        root_power = tf.ones_like(power_2) if self.amsgrad else tf.sqrt(power_2)
        if self.beta_1 > 0:
            rate, ratio = self._catch_up(settings, touch.num_missed, power_1, root_power)
            if self.can_spend:
                before = self._tail(settings, settings.step - 1) * self._tail_rate(settings, 0)
                rate = tf.where(touch.was_spent, -self._ratio * before * power_1, rate)
                ratio = tf.where(touch.was_spent, self._ratio * root_power, ratio)
            moved = slots[0] * to_float(rate) / (root * to_float(ratio) + self.epsilon)
            rows -= tf.where(touch.is_first | (rate == 0), 0.0, moved)
        return rows, [slots[0] * to_float(power_1), slots[1] * to_float(power_2), *slots[2:]]

    def _catch_up(self, settings, num_missed, power_1, root_power):
        """Returns rate and ratio of the movement in missed steps, float64 `[num_rows, 1]`."""
        power_r = tf.math.divide_no_nan(power_1, root_power)
        sum_1 = geometric_sum(self.beta_1, power_1, num_missed)
        sum_r = geometric_sum(self._r, power_r, num_missed)
        if self.can_spend:
            first = self._tail(settings, settings.step - 1 - num_missed)
            steps = first - power_r * self._tail(settings, settings.step - 1)
        else:
            sum_r = tf.where((sum_r > 0) & (sum_r < 2 * sum_1), sum_r, 2 * sum_1)
            steps = self._correction(settings) * sum_r
        ratio = tf.math.divide_no_nan(sum_1, sum_r)
        return tf.cast(settings.learning_rate, tf.float64) * steps * ratio, ratio

    def _correction(self, settings):
        step = tf.cast(settings.step, tf.float64)
        return tf.sqrt(1 - self.beta_2**step) / (1 - self.beta_1**step)

    def _alpha(self, settings):
        return tf.cast(settings.learning_rate, tf.float64) * self._correction(settings)

    @property
    def _ratio(self):
        return _all_steps(self.beta_1) / _all_steps(self._r)

    def _tail(self, settings, step):
        tails = tf.constant(self.tails, tf.float64)
        last = self._correction(settings) * _all_steps(self._r)
        step = tf.cast(step, tf.int64)
        inside = tf.clip_by_value(step, 0, len(self.tails) - 1)
        return tf.where(step < len(self.tails), tf.gather(tails, inside), last)

    def _tail_rate(self, settings, place):
        rates = settings.tail_rates or (settings.learning_rate, settings.learning_rate)
        return tf.cast(rates[place], tf.float64)


def _all_steps(base):
    """Returns `base + base^2 + ...`."""
    return base / (1 - base)


@functools.cache
def _tails(beta_1, beta_2, r):
    num = min(_MAX_TAILS, math.ceil(math.log(_LEAST_BIAS) / math.log(beta_2)))
    # What comes later than so many steps is nothing.
    steps = np.arange(1, num + math.ceil(math.log(1e-12) / math.log(r)) + 1, dtype=np.float64)
    corrections = np.sqrt(1 - beta_2**steps) / (1 - beta_1**steps)
    tails = np.zeros(len(steps) + 1)
    tails[-1] = corrections[-1] * _all_steps(r)
    for place in range(len(steps) - 1, -1, -1):
        tails[place] = r * (corrections[place] + tails[place + 1])
    return tails[:num].astype(np.float32)
