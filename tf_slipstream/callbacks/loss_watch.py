"""Tells a loss that has risen from one that fluctuates."""

import math

# Readings that the fast and the slow average go back, and those before the first judgement.
_FAST, _SLOW, _MIN_READINGS = 4, 32, 8
# Standard errors of the fast average.
_MIN_ERRORS = 6.0


class LossWatch:
    """Compares a fast with a slow exponential average of a loss.

    The loss has risen when the fast average is above the slow one by more than `tolerance` of it,
    and by more than 6 standard errors, estimated from the changes between successive readings,
    which a trend or a step hardly widens. Then it begins anew, at the level that it finds, so that
    the next rise is one from there.

    Args:
        tolerance: Relative rise that is no rise yet, a number >= 0.
    """

    def __init__(self, tolerance):
        self._tolerance = tolerance
        self._begin()

    def _begin(self):
        self._num_readings, self._last = 0, None
        self.fast = self.slow = self._change = 0.0

    def has_risen(self, loss):
        """Takes a reading, and returns None or, after a rise, the fast and the slow average.

        Args:
            loss: The mean of some batches' losses. It is left out if not finite.
        """
        if not math.isfinite(loss):
            return None
        self._num_readings += 1
        self.fast += self._rate(_FAST) * (loss - self.fast)
        self.slow += self._rate(_SLOW) * (loss - self.slow)
        if self._last is not None:
            rate = max(2 / (_SLOW + 1), 1 / (self._num_readings - 1))
            self._change += rate * (abs(loss - self._last) - self._change)
        self._last = loss
        if self._num_readings < _MIN_READINGS:
            return None
        # Of a normal deviate: the mean change is 2 / sqrt(pi) standard deviations.
        deviation = self._change * math.sqrt(math.pi) / 2
        rate = 2 / (_FAST + 1)
        error = deviation * math.sqrt(rate / (2 - rate))
        rise = self.fast - self.slow
        if rise <= self._tolerance * abs(self.slow) or rise <= _MIN_ERRORS * error:
            return None
        risen = (self.fast, self.slow)
        self._begin()
        return risen

    def _rate(self, length):
        # A plain mean until there are as many readings as the average goes back.
        return max(2 / (length + 1), 1 / self._num_readings)
