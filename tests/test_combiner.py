"""Checks bags of equal and of different sizes against NumPy, one bag at a time."""

import numpy as np
import pytest
import tensorflow as tf

from tf_slipstream.combiner import COMBINERS, combine_bags, combine_segments

# A result is a sum of at most 4 products, divided by one of at most 4 terms, each rounded to half
# an epsilon; the sums here do not cancel to less than a tenth of their terms.
TOLERANCE = 16 * np.finfo("float32").eps * 10


def combine_bag(rows, weights, combiner):
    """Returns the float64 `[dim]` of one bag, `rows` `[bag, dim]`."""
    rows, weights = np.asarray(rows, np.float64), np.asarray(weights, np.float64)
    size = {"sum": 1.0, "mean": weights.sum(), "sqrtn": np.sqrt(np.sum(weights**2))}[combiner]
    combined = weights @ rows
    return combined / size if size else np.zeros_like(combined)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("combiner", COMBINERS)
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 1), (2, 3, 4, 2), (4, 3)], ids=str)
def test_bags_of_equal_size_equal_numpy(shape, combiner, weighted, rng):
    rows = rng.normal(size=shape).astype("float32")
    weights = rng.uniform(0.5, 2, size=shape[:-1]).astype("float32")
    combined = combine_bags(rows, weights if weighted else None, combiner)
    expected = [
        combine_bag(bag, bag_weights if weighted else np.ones(shape[-2]), combiner)
        for bag, bag_weights in zip(rows.reshape(-1, *shape[-2:]), weights.reshape(-1, shape[-2]))
    ]
    assert combined.shape == (*shape[:-2], shape[-1])
    np.testing.assert_allclose(
        combined, np.reshape(expected, combined.shape), rtol=TOLERANCE, atol=TOLERANCE
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("combiner", COMBINERS)
@pytest.mark.parametrize(
    "segments, num_segments",
    [([0, 0, 1, 1, 1, 3], 4), ([3, 0, 3, 1, 0], 5), ([], 3), ([], 0), ([0], 1), ([1, 1, 4], 7)],
    ids=str,
)
def test_bags_of_different_sizes_equal_numpy(segments, num_segments, combiner, weighted, rng):
    rows = rng.normal(size=[len(segments), 3]).astype("float32")
    weights = rng.uniform(0.5, 2, size=len(segments)).astype("float32")
    segment_ids = np.array(segments, np.int64)
    in_order = sorted(segments) == segments
    combined = combine_segments(
        rows, weights if weighted else None, segment_ids, num_segments, combiner, in_order
    )
    expected = [
        combine_bag(
            rows[segment_ids == bag],
            (weights if weighted else np.ones_like(weights))[segment_ids == bag],
            combiner,
        )
        for bag in range(num_segments)
    ]
    assert combined.shape == (num_segments, 3)
    np.testing.assert_allclose(
        combined, np.reshape(expected, [-1, 3]), rtol=TOLERANCE, atol=TOLERANCE
    )


@pytest.mark.parametrize("combiner", COMBINERS)
def test_a_bag_without_weight_is_zero(combiner):
    rows = tf.ones([2, 3, 4])
    np.testing.assert_array_equal(combine_bags(rows, tf.zeros([2, 3]), combiner), np.zeros([2, 4]))
    np.testing.assert_array_equal(combine_bags(tf.ones([2, 0, 4]), None, combiner), [[0] * 4] * 2)
    np.testing.assert_array_equal(
        combine_segments(tf.ones([2, 4]), tf.zeros([2]), [0, 0], 2, combiner), [[0] * 4] * 2
    )


@pytest.mark.parametrize("combiner", COMBINERS)
def test_gradients_are_finite_where_a_bag_has_no_weight(combiner):
    rows, weights = tf.ones([2, 3, 4]), tf.constant([[0.0, 0.0, 0.0], [1.0, 0.0, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch([rows, weights])
        combined = combine_bags(rows, weights, combiner)
    for grad in tape.gradient(combined, [rows, weights]):
        assert np.all(np.isfinite(grad))


@pytest.mark.parametrize("combiner", COMBINERS)
def test_gradients_of_rows_are_the_weights_over_the_bags_size(combiner):
    weights = np.array([1.0, 2.0, 4.0], np.float32)
    rows = tf.ones([3, 2])
    with tf.GradientTape() as tape:
        tape.watch(rows)
        combined = combine_segments(rows, weights, [0, 1, 1], 2, combiner)
    sizes = {"sum": [1, 1], "mean": [1, 6], "sqrtn": [1, np.sqrt(20)]}[combiner]
    expected = weights / np.take(sizes, [0, 1, 1])
    np.testing.assert_allclose(
        tape.gradient(combined, rows), np.stack([expected, expected], axis=1), rtol=TOLERANCE
    )
