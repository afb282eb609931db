"""Padding, which is nobody's lookup."""

import tensorflow as tf


def without_padding(grads, ids, *others):
    """Leaves padding out of what was looked up in a table whose id 0 is padding.

    Padding is id 0 where a mask or a combiner lets no gradient through. It would move no row. But
    it would be counted, and make row 0 the most popular one of the table.

    Args:
        grads: Float `[num_lookups, dim]`. NaN is a gradient, so that an error stays one.
        ids: int `[num_lookups]`.
        *others: Tensors `[num_lookups, ...]`.

    Returns:
        List of the same tensors, less the places of padding.
    """
    is_lookup = tf.not_equal(ids, 0) | tf.reduce_any(tf.not_equal(grads, 0), axis=1)
    return [tf.boolean_mask(one, is_lookup) for one in (grads, ids, *others)]
