"""Padding, which is nobody's lookup."""

import tensorflow as tf


def without_padding(padding, grads, ids, *others):
    """Leaves padding out of what was looked up in a table.

    Padding is where a mask or a combiner lets no gradient through. It would move no row. But it
    would be counted, and make its row the most popular one of the table.

    Args:
        padding: Rows that are padding, ascending: 0; of a collection, the first one of each field.
        grads: Float `[num_lookups, dim]`. NaN is a gradient, so that an error stays one.
        ids: int `[num_lookups]`.
        *others: Tensors `[num_lookups, ...]`.

    Returns:
        List of the same tensors, less the places of padding.
    """
    rows = tf.constant(padding, ids.dtype)
    # The last one that is not behind the id.
    place = tf.searchsorted(rows, ids, side="right") - 1
    is_padding = tf.equal(tf.gather(rows, tf.maximum(place, 0)), ids)
    is_lookup = ~is_padding | tf.reduce_any(tf.not_equal(grads, 0), axis=1)
    return [tf.boolean_mask(one, is_lookup) for one in (grads, ids, *others)]
