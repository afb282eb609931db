"""A synthetic click log in the shape of Criteo's, made while it is read."""

import itertools
import math

import numpy as np

from tf_slipstream.data.click_log import MAX_CARDINALITY, ClickLog, check_count
from tf_slipstream.data.teacher import PlantedTeacher
from tf_slipstream.data.zipf import BoundedZipf, IdScatter

# Distinct ids of the 26 categorical fields of the Criteo Kaggle set, as DLRM counts them.
CRITEO_KAGGLE_CARDINALITIES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)

# Examples are drawn in blocks of this size, each from a random stream of its own. Changing it
# changes every log.
_BLOCK_SIZE = 4096
_NUM_FIT_BLOCKS = 4
# Random streams, each used for one purpose.
_SETUP_STREAM, _TEACHER_STREAM, _EXAMPLE_STREAM, _SEASON_STREAM = range(4)


def criteo_cardinalities(scale=1.0, minimum=3):
    """Returns the Criteo Kaggle cardinalities, scaled.

    Args:
        scale: Positive factor.
        minimum: No field gets fewer ids than this, unless it has fewer to begin with.

    Returns:
        Tuple of 26 integers.

    Raises:
        ValueError: If `scale` is not positive and finite, or `minimum` is below 1.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"Expected `scale` above 0 and finite; got {scale!r}. Use 1.0 for Criteo.")
    if minimum < 1:
        raise ValueError(f"Expected `minimum` of at least 1; got {minimum!r}. A field needs an id.")
    return tuple(
        max(min(cardinality, minimum), round(cardinality * scale))
        for cardinality in CRITEO_KAGGLE_CARDINALITIES
    )


class SyntheticClickLog(ClickLog):
    """An endless click log whose clicks are drawn from a planted teacher model.

    ```python
    log = SyntheticClickLog(cardinalities=criteo_cardinalities(scale=0.1), seed=1)
    model.fit(log.dataset(1_000_000, batch_size=2048))
    for (dense, ids), label in log.batches(100_000, 4096, start=1_000_000):
        ceiling = log.bayes_probability(ids, dense)  # No model predicts `label` better.
    ```

    Ids follow a bounded Zipf law per field, popular ids being spread over the field. Dense
    features are `log(1 + count)` of log-normal counts. See `PlantedTeacher` for the clicks.
    Example `i` depends on the constructor's arguments and on `i` only, as long as NumPy's version
    and the kind of CPU, which decides about rounding, stay the same.

    Args:
        cardinalities: Number of ids of each field; `None` for `criteo_cardinalities(0.01)`.
        num_dense: Number of dense features.
        zipf_exponent: Skew of the ids, at least 0; 0 makes all ids of a field equally popular.
        click_rate: Share of examples that are clicked, in `(0, 1)`.
        logit_stddev: How far clicks are decided by the features: 0 makes them pure noise; the
            default gives the teacher itself an AUC of about 0.80.
        change_after: Index from which another teacher decides the clicks, or `None`. Features
            do not change.
        change_over: Examples from there on over which the one gives way to the other; 0: at once.
        season_period: Examples from one season to the next, or `None`: half of a period away the
            share `season_amplitude` of lookups goes to ids that are popular in that season alone.
        season_amplitude: In [0, 1].
        trend_period: Examples in which every id comes and goes once, or `None`: each becomes more
            popular until it is the most popular of its field, and then the least.
        seed: Integer of at least 0.

    Raises:
        ValueError: If an argument is out of the range given above.
    """

    num_examples = None

    def __init__(
        self,
        *,
        cardinalities=None,
        num_dense=13,
        zipf_exponent=1.1,
        click_rate=0.25,
        logit_stddev=1.35,
        change_after=None,
        change_over=0,
        season_period=None,
        season_amplitude=0.5,
        trend_period=None,
        seed=0,
    ):
        if cardinalities is None:
            cardinalities = criteo_cardinalities(scale=0.01)
        _check_cardinalities(cardinalities)
        check_count("num_dense", num_dense, minimum=0)
        check_count("seed", seed, minimum=0)
        if change_after is not None:
            check_count("change_after", change_after, minimum=0)
        check_count("change_over", change_over, minimum=0)
        for name, period in (("season_period", season_period), ("trend_period", trend_period)):
            if period is not None:
                check_count(name, period, minimum=1)
        is_share = 0 <= season_amplitude <= 1
        _check_range("season_amplitude", season_amplitude, is_share, "a share in [0, 1]")
        _check_range("zipf_exponent", zipf_exponent, 0 <= zipf_exponent < math.inf, "at least 0")
        _check_range("click_rate", click_rate, 0 < click_rate < 1, "between 0 and 1, not a percent")
        _check_range("logit_stddev", logit_stddev, 0 <= logit_stddev < math.inf, "at least 0")

        self.cardinalities = tuple(int(cardinality) for cardinality in cardinalities)
        self.num_dense = num_dense
        self._change_after, self._change_over = change_after, change_over
        self._season_period, self._season_amplitude = season_period, season_amplitude
        self._trend_period = trend_period
        self._seed = seed
        setup = self._generator(_SETUP_STREAM)
        # Medians of the counts from below 1, so that zeros are common, to over 100.
        self._dense_means = setup.uniform(-1.0, 5.0, num_dense).astype(np.float32)
        self._dense_stddevs = setup.uniform(0.8, 1.8, num_dense).astype(np.float32)
        self._zipf = BoundedZipf(zipf_exponent, self.cardinalities)
        self._scatter = IdScatter(setup, self.cardinalities)
        self._teachers = self._fit_teachers(click_rate, logit_stddev)

    def bayes_probability(self, ids, dense, changed=False):
        """Returns the click probability that the labels are drawn with.

        Args:
            ids: Int array `[num_examples, num_fields]`.
            dense: Float array `[num_examples, num_dense]`.
            changed: Whether to ask the teacher in force from `change_after` on.

        Returns:
            Float32 array `[num_examples]`.

        Raises:
            ValueError: If a shape does not match, or `changed` is set on a log without change.
        """
        ids, dense = np.asarray(ids), np.asarray(dense, np.float32)
        expected = (len(ids), len(self.cardinalities)), (len(ids), self.num_dense)
        if (ids.shape, dense.shape) != expected:
            raise ValueError(
                f"Expected ids and dense features of shapes {expected}; got {ids.shape} and "
                f"{dense.shape}. Pass them as `batches` gives them."
            )
        if changed and self._change_after is None:
            raise ValueError("Expected a log with `change_after` for `changed=True`; it has none.")
        teacher = self._teachers[int(changed)]
        # In blocks, because the teacher's latent vectors take far more memory than the ids.
        begins = range(0, len(ids), _BLOCK_SIZE)
        blocks = (slice(begin, begin + _BLOCK_SIZE) for begin in begins)
        parts = [teacher.probability(ids[block], dense[block]) for block in blocks]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _blocks(self, start, stop):
        for block in itertools.count(start // _BLOCK_SIZE):
            first = block * _BLOCK_SIZE
            if stop is not None and first >= stop:
                return
            columns = self._labelled_block(block)
            begin = max(start - first, 0)
            end = _BLOCK_SIZE if stop is None else min(stop - first, _BLOCK_SIZE)
            yield tuple(column[begin:end] for column in columns)

    def _labelled_block(self, block):
        dense, ids, uniform = self._unlabelled_block(block)
        if self._change_after is None:
            probability = self._teachers[0].probability(ids, dense)
        elif self._change_over:
            before, after = (teacher.probability(ids, dense) for teacher in self._teachers)
            places = self._places(block) - self._change_after
            new = np.clip(places / self._change_over, 0, 1).astype(np.float32)
            probability = (1 - new) * before + new * after
        else:
            change = np.clip(self._change_after - block * _BLOCK_SIZE, 0, _BLOCK_SIZE)
            before, after = self._teachers
            probability = np.concatenate(
                [
                    before.probability(ids[:change], dense[:change]),
                    after.probability(ids[change:], dense[change:]),
                ]
            )
        return dense, ids, (uniform < probability).astype(np.float32)

    def _unlabelled_block(self, block):
        """Returns dense features, ids, and the uniform numbers that the labels are drawn with."""
        generator = self._generator(_EXAMPLE_STREAM, block)
        ranks = self._zipf.draw(generator, _BLOCK_SIZE)  # [num_fields, examples]
        ids = self._scatter(self._in_time(ranks, block))
        dense = generator.standard_normal((_BLOCK_SIZE, self.num_dense), dtype=np.float32)
        dense *= self._dense_stddevs
        dense += self._dense_means
        np.floor(np.exp(dense, out=dense), out=dense)
        dense += 1.0
        np.log(dense, out=dense)
        uniform = generator.random(_BLOCK_SIZE, dtype=np.float32)
        return dense, ids.T.astype(np.int32, order="C"), uniform

    def _places(self, block):
        """Returns the indices of a block's examples."""
        return block * _BLOCK_SIZE + np.arange(_BLOCK_SIZE)

    def _in_time(self, ranks, block):
        """Returns what takes the place of popularity's ranks at the time of a block."""
        sizes = np.asarray(self.cardinalities, np.uint64)[:, np.newaxis]
        places = self._places(block)
        if self._season_period is not None:
            angles = 2 * np.pi * places / self._season_period
            share = self._season_amplitude * (1 - np.cos(angles)) / 2
            uniform = self._generator(_SEASON_STREAM, block).random(ranks.shape)
            ranks = np.where(uniform < share, (ranks + sizes // np.uint64(2)) % sizes, ranks)
        if self._trend_period is not None:
            moved = sizes.astype(np.float64) * places / self._trend_period
            ranks = (ranks + moved.astype(np.uint64)) % sizes
        return ranks

    def _fit_teachers(self, click_rate, logit_stddev):
        sample = [self._unlabelled_block(block)[:2] for block in range(_NUM_FIT_BLOCKS)]
        dense, ids = map(np.concatenate, zip(*sample, strict=True))
        num_teachers = 1 if self._change_after is None else 2
        return [
            PlantedTeacher(
                self._generator(_TEACHER_STREAM, teacher), ids, dense, click_rate, logit_stddev
            )
            for teacher in range(num_teachers)
        ]

    def _generator(self, *stream):
        # PCG64 by name: `default_rng` may choose another bit generator in a later NumPy.
        return np.random.Generator(
            np.random.PCG64(np.random.SeedSequence(self._seed, spawn_key=stream))
        )


def _check_cardinalities(cardinalities):
    is_valid = len(cardinalities) > 0 and all(
        isinstance(cardinality, (int, np.integer)) and 1 <= cardinality <= MAX_CARDINALITY
        for cardinality in cardinalities
    )
    if not is_valid:
        raise ValueError(
            f"Expected `cardinalities` to be integers in [1, {MAX_CARDINALITY}], one per field; "
            f"got {cardinalities!r}. Pass for example `criteo_cardinalities(scale=0.01)`."
        )


def _check_range(name, value, is_valid, expected):
    if not is_valid:
        raise ValueError(f"Expected `{name}` to be {expected}; got {value!r}. Change `{name}`.")
