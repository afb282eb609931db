"""How the rows of a multi-hot input become one vector."""

import tensorflow as tf

COMBINERS = ("sum", "mean", "sqrtn")


def combine_bags(rows, weights, combiner):
    """Combines bags of equal size.

    Args:
        rows: float32 `[..., bag, dim]`.
        weights: float32 `[..., bag]`, or None for 1.
        combiner: `"sum"`; `"mean"`, divided by the sum of the weights; or `"sqrtn"`, divided by the
            root of the sum of their squares.

    Returns:
        `[..., dim]`; zeros for a bag without weight.
    """
    if weights is None:
        # By way of a bag of one row: so its gradient is seen to be rows that are copied
        # (ops/bags.py).
        combined = tf.squeeze(tf.reduce_sum(rows, axis=-2, keepdims=True), axis=-2)
        weights = tf.ones(tf.shape(rows)[:-1], rows.dtype)
    else:
        combined = tf.reduce_sum(rows * weights[..., tf.newaxis], axis=-2)
    return _normalised(combined, weights, combiner, lambda x: tf.reduce_sum(x, axis=-1))


def combine_segments(rows, weights, segment_ids, num_segments, combiner, in_order=False):
    """Combines bags of different sizes.

    Args:
        rows: float32 `[num_lookups, dim]`.
        weights: float32 `[num_lookups]`, or None for 1.
        segment_ids: int `[num_lookups]`, each lookup's bag.
        num_segments: int scalar, the number of bags.
        combiner: As in `combine_bags`.
        in_order: Whether each bag's lookups are known to follow those of the bag before, which is
            three times as fast.

    Returns:
        `[num_segments, dim]`; zeros for an empty bag.
    """

    def sum_bags(x):
        if not in_order:
            return tf.math.unsorted_segment_sum(x, segment_ids, num_segments)
        sums = tf.math.segment_sum(x, segment_ids)
        # It ends with the last bag that has a lookup.
        num_empty = tf.cast(num_segments, tf.int32) - tf.shape(sums)[0]
        return tf.pad(sums, [[0, num_empty], *[[0, 0]] * (sums.shape.rank - 1)])

    if weights is None:
        combined, weights = sum_bags(rows), tf.ones(tf.shape(rows)[:1], rows.dtype)
    else:
        combined = sum_bags(rows * weights[:, tf.newaxis])
    return _normalised(combined, weights, combiner, sum_bags)


def divide_by_sizes(sums, sizes, combiner):
    """Combines bags whose rows are summed.

    Args:
        sums: float32 `[num_bags, dim]`.
        sizes: float32 `[num_bags]`, rows of each.
        combiner: As in `combine_bags`.

    Returns:
        `[num_bags, dim]`.
    """
    if combiner == "sum":
        return sums
    sizes = sizes if combiner == "mean" else tf.sqrt(sizes)
    return tf.math.divide_no_nan(sums, sizes[:, tf.newaxis])


def _normalised(combined, weights, combiner, sum_bags):
    if combiner == "sum":
        return combined
    size = sum_bags(weights) if combiner == "mean" else tf.sqrt(sum_bags(tf.square(weights)))
    return tf.math.divide_no_nan(combined, size[..., tf.newaxis])
