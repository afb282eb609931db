"""Tensors of different lengths, gathered from all replicas in one collective."""

import tensorflow as tf


def all_gather(parts):
    """Gathers tensors from all replicas.

    They travel as one vector of 4-byte words, a header of lengths before them: a collective costs
    far more to start than a few bytes more cost in it. Every replica calls this, with the same
    dtypes and inner dimensions.

    Args:
        parts: int32, int64 or float32 tensors `[num]` or `[num, dim]`; `num` may differ from
            replica to replica, and be 0.

    Returns:
        Per part a list, its tensor of each replica; alike on all replicas, to the bit.
    """
    context = tf.distribute.get_replica_context()
    widths = [_words_per_row(part) for part in parts]
    header = tf.stack([tf.shape(part)[0] for part in parts])
    gathered = context.all_gather(
        tf.concat([_as_words(part) for part in [header, *parts]], axis=0), axis=0
    )
    received = [[] for _ in parts]
    begin = 0
    for _ in range(context.num_replicas_in_sync):
        header = tf.bitcast(gathered[begin : begin + len(parts)], tf.int32)
        begin += len(parts)
        sizes = header * widths
        end = begin + tf.reduce_sum(sizes)
        pieces = tf.split(gathered[begin:end], sizes, num=len(parts))
        begin = end
        for part, piece, one in zip(parts, pieces, received, strict=True):
            one.append(_from_words(piece, part))
    return received


def _words_per_row(part):
    return part.dtype.size // 4 * (part.shape[1] if part.shape.rank == 2 else 1)


def _as_words(part):
    # Of a copy, any dtype of that size will do; collectives have float32 on all devices.
    return tf.reshape(tf.bitcast(part, tf.float32), [-1])


def _from_words(words, part):
    if part.dtype.size == 8:
        words = tf.reshape(words, [-1, 2])
    values = tf.bitcast(words, part.dtype)
    return tf.reshape(values, [-1, part.shape[1]]) if part.shape.rank == 2 else values
