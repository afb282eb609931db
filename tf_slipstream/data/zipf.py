"""Ids whose popularity follows a bounded Zipf law, in memory that does not grow with the ids."""

import math

import numpy as np


class BoundedZipf:
    """Draws ranks with `P(rank = r) ~ (r + 1)^-exponent` for `r` in `[0, size)`, for many sizes.

    Rejection-inversion (Hoermann and Derflinger, "Rejection-inversion to generate variates from
    monotone discrete distributions", 1996). With `h(x) = x^-exponent` and its integral `H`, a
    uniform `u` in `[H(1.5) - h(1), H(size + 0.5))` is turned into `x = H^-1(u)` and `k = round(x)`;
    `k` is taken if `u >= H(k + 0.5) - h(k)`. For `k - x <= squeeze` that always holds.

    Args:
        exponent: Float of at least 0; 0 is the uniform law.
        sizes: Integers `[num_fields]`, each at least 1.
    """

    def __init__(self, exponent, sizes):
        self._exponent = exponent
        self._sizes = np.asarray(sizes, np.float64)
        self._lower = self._integral(1.5) - 1.0
        self._upper = self._integral(self._sizes + 0.5)
        self._squeeze = 2.0 - self._inverse_integral(self._integral(2.5) - 2.0**-exponent)

    def draw(self, generator, num_draws):
        """Draws `num_draws` ranks for each size.

        Args:
            generator: A `numpy.random.Generator`.
            num_draws: Integer.

        Returns:
            Uint64 array `[num_fields, num_draws]`.
        """
        shape = (len(self._sizes), num_draws)
        ranks, rejected = self._propose(
            generator.random(shape), self._upper[:, None], self._sizes[:, None]
        )
        while rejected.size:
            field = rejected // num_draws
            redrawn, still_rejected = self._propose(
                generator.random(rejected.size), self._upper[field], self._sizes[field]
            )
            ranks.reshape(-1)[rejected] = redrawn
            rejected = rejected[still_rejected]
        ranks -= 1.0
        return ranks.astype(np.uint64)

    def _propose(self, uniform, upper, sizes):
        """Returns candidates counted from 1, and the flat positions of those that are rejected."""
        u = uniform * (upper - self._lower) + self._lower
        x = self._inverse_integral(u)
        candidates = np.clip(np.rint(x), 1.0, sizes)
        doubtful = np.flatnonzero(candidates - x > self._squeeze)
        k = candidates.reshape(-1)[doubtful]
        taken = u.reshape(-1)[doubtful] >= self._integral(k + 0.5) - k**-self._exponent
        return candidates, doubtful[~taken]

    def _integral(self, x):
        """`H(x)`, the integral of `h` from 1 to `x`."""
        if self._exponent == 1.0:
            return np.log(x)
        power = 1.0 - self._exponent
        return np.expm1(power * np.log(x)) / power

    def _inverse_integral(self, y):
        if self._exponent == 1.0:
            return np.exp(y)
        power = 1.0 - self._exponent
        return np.exp(np.log1p(power * y) / power)


class IdScatter:
    """Maps ranks to ids one to one, so that popular ids are spread over `[0, size)`.

    The map is `id = (multiplier * rank + offset) mod size` with a multiplier coprime to the
    size. Products stay below 2^62 because sizes are at most 2^31.

    Args:
        generator: A `numpy.random.Generator`, from which multipliers and offsets are drawn.
        sizes: Integers `[num_fields]`, each in `[1, 2^31]`.
    """

    def __init__(self, generator, sizes):
        self._sizes = np.asarray(sizes, np.uint64)[:, None]
        self._offsets = generator.integers(self._sizes, dtype=np.uint64)
        multipliers = [_coprime(generator, size) for size in sizes]
        self._multipliers = np.asarray(multipliers, np.uint64)[:, None]

    def __call__(self, ranks):
        """Returns the ids of ranks, both uint64 `[num_fields, num_draws]`."""
        return (self._multipliers * ranks + self._offsets) % self._sizes


def _coprime(generator, size):
    while True:
        multiplier = int(generator.integers(1, size, endpoint=True))
        if math.gcd(multiplier, size) == 1:
            return multiplier
