"""Rows of a table that is large or in several variables, on stock TensorFlow ops."""

import tensorflow as tf


def gather_rows(shards, ids, name=None):
    """Reads each distinct row once.

    Args:
        shards: `tf.Variable`s `[num_rows, dim]`, one after the other the table.
        ids: int `[num_lookups]`.
        name: Of the ops, for errors.

    Returns:
        float32 `[num_lookups, dim]`.
    """
    distinct, inverse = tf.unique(ids)
    if len(shards) == 1:
        return tf.gather(tf.gather(shards[0], distinct, name=name), inverse)
    num_rows = sum(int(shard.shape[0]) for shard in shards)
    is_bad = tf.reduce_any((distinct < 0) | (distinct >= num_rows))
    message = f"{name}: an id is not in [0, {num_rows})"
    with tf.control_dependencies([tf.debugging.Assert(~is_bad, [message, distinct])]):
        distinct = tf.identity(distinct)
    places, rows, start = [], [], 0
    for shard in shards:
        end = start + int(shard.shape[0])
        place = tf.where((distinct >= start) & (distinct < end))[:, 0]
        places.append(tf.cast(place, tf.int32))
        rows.append(tf.gather(shard, tf.gather(distinct, place) - start, name=name))
        start = end
    return tf.gather(tf.dynamic_stitch(places, rows), inverse)


def gather_from_many(table, ids, name=None):
    """`tf.gather` of a table of 2^31 rows or more: TensorFlow's gradient counts rows in 32 bits.

    Args:
        table: `tf.Variable` `[num_rows, dim]`.
        ids: int64 `[...]`.
        name: Of the op, for errors.

    Returns:
        `[..., dim]`.
    """

    @tf.custom_gradient
    def lookup(ids):
        def grad(upstream, variables):
            del variables  # the table
            values = tf.reshape(upstream, [-1, table.shape[1]])
            shape = tf.constant(table.shape.as_list(), tf.int64)
            return None, [tf.IndexedSlices(values, tf.reshape(ids, [-1]), shape)]

        return tf.gather(table, ids, name=name), grad

    return lookup(ids)
