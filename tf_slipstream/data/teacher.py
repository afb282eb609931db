"""The planted model that decides the clicks of the synthetic log."""

import numpy as np

# Each id's 64-bit hash is cut into four 16-bit numbers: its effect, and a latent vector of 3.
_NUM_LANES = 4
# Of effects, interactions and dense features. Without interactions a model that only adds up
# effects would reach the ceiling; but they are the slowest to learn, so they are not the most.
_VARIANCE_SHARES = (0.55, 0.25, 0.20)


class PlantedTeacher:
    """A logistic model whose parameters are hashes of ids, so that no table is held.

    `logit = bias + scale * (a * sum_f effect[id_f] + b * sum_(f, g) <latent[id_f], latent[id_g]>
    + c * <weights, dense>)` over disjoint pairs of fields `(f, g)`. Effects and latent vectors are
    uniform. The constants are fitted to a sample of inputs: `a, b, c` to fixed shares of the
    variance, `scale` to `logit_stddev`, and `bias` to `click_rate`.

    Args:
        generator: A `numpy.random.Generator`, from which the model is drawn.
        ids: Int array `[num_examples, num_fields]`, the sample.
        dense: Float32 array `[num_examples, num_dense]`, the sample.
        click_rate: Mean click probability over the sample, in `(0, 1)`.
        logit_stddev: Standard deviation of the logit over the sample.
    """

    def __init__(self, generator, ids, dense, click_rate, logit_stddev):
        num_fields = ids.shape[1]
        self._field_keys = generator.integers(2**64, size=(num_fields, 1), dtype=np.uint64)
        self._pairs = generator.permutation(num_fields)[: num_fields // 2 * 2].reshape(2, -1)
        self._dense_weights = generator.standard_normal(dense.shape[1], dtype=np.float32)

        parts = self._parts(ids, dense)
        # A part that is constant, as with one field or no dense feature, has no influence. In
        # float64, where the deviation of equal values is exactly 0.
        part_stddev = parts.std(axis=1, dtype=np.float64)
        weights = np.sqrt(_VARIANCE_SHARES) / np.where(part_stddev > 0, part_stddev, np.inf)
        self._weights = weights.astype(np.float32)
        unscaled_stddev = self._combine(parts).std(dtype=np.float64)
        self._weights *= np.float32(logit_stddev / (unscaled_stddev or 1.0))
        self._bias = _bias_for_rate(self._combine(parts), click_rate)

    def probability(self, ids, dense):
        """Returns the click probabilities, float32 `[num_examples]`.

        Args:
            ids: Int array `[num_examples, num_fields]`.
            dense: Float32 array `[num_examples, num_dense]`.
        """
        return _sigmoid(self._combine(self._parts(ids, dense)) + self._bias)

    def _combine(self, parts):
        # Here and in `_parts` no BLAS, whose rounding of one example can depend on the others.
        return np.einsum("p,pe->e", self._weights, parts)

    def _parts(self, ids, dense):
        """Returns the sums over effects, interactions and dense, float32 `[3, num_examples]`."""
        hashes = _splitmix64(self._field_keys, ids.T)
        lanes = hashes.view(np.uint16).reshape(*hashes.shape, _NUM_LANES)
        latent = lanes.astype(np.float32)  # [num_fields, num_examples, lanes]
        latent -= 2.0**15 - 0.5
        latent *= 12**0.5 / 2**16  # To unit variance.
        left, right = self._pairs
        return np.stack(
            [
                latent[:, :, 0].sum(axis=0),
                np.einsum("fel,fel->e", latent[left, :, 1:], latent[right, :, 1:]),
                np.einsum("ed,d->e", dense, self._dense_weights),
            ]
        )


def _splitmix64(keys, ids):
    """Returns the outputs number `ids` of the SplitMix64 streams that start at `keys`."""
    z = ids.astype(np.uint64, order="C")
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += keys
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def _bias_for_rate(logits, click_rate):
    """Bisects for the bias at which the mean click probability is `click_rate`."""
    middle = np.log(click_rate / (1.0 - click_rate))
    low, high = middle - logits.max(), middle - logits.min()
    for _ in range(30):  # 2^-30 of the range is below float32's resolution.
        bias = (low + high) / 2
        if _sigmoid(logits + bias).mean() < click_rate:
            low = bias
        else:
            high = bias
    return np.float32(bias)


def _sigmoid(logits):
    # By tanh, which does not overflow.
    return np.float32(0.5) * np.tanh(np.float32(0.5) * logits) + np.float32(0.5)
