"""Stochastic rounding of float32 rows to bfloat16: `rounding.h` of the kernels on TensorFlow ops.

Up or down with the probability that makes the expected result the value itself. The random bits are
a hash of seed, step, row and element, so that a training repeats to the bit.
"""

import zlib

import tensorflow as tf


def rounding_seed(name):
    """Returns the seed of a table: tables of other names round by other bits."""
    return zlib.crc32(name.encode())


def stochastically_rounded(rows, seed, step, ids):
    """Returns rows rounded to bfloat16.

    A value that bfloat16 has stays as it is; so do infinities, and NaN stays NaN.

    Args:
        rows: float32 `[num_rows, dim]`.
        seed: The table's, an integer in `[0, 2^32)`.
        step: int64 scalar.
        ids: int `[num_rows]`, which rows of the table they are.

    Returns:
        bfloat16 tensor like `rows`.
    """
    ids = tf.cast(ids, tf.int64)
    key = _mixed(tf.constant(seed, tf.uint32) ^ _low_word(step))
    key = _mixed(key ^ _low_word(ids))
    key = _mixed(key ^ _low_word(tf.bitwise.right_shift(ids, tf.constant(32, tf.int64))))
    elements = tf.cast(tf.range(rows.shape[1]), tf.uint32) * tf.constant(0x9E3779B9, tf.uint32)
    random_bits = _shifted(_mixed(key[:, tf.newaxis] + elements), 16)
    bits = tf.bitcast(rows, tf.uint32)
    # The quiet bit, lest a NaN whose upper bits are all zero becomes an infinity.
    not_a_number = tf.where(
        tf.math.is_nan(rows), tf.constant(1 << 22, tf.uint32), tf.zeros_like(bits)
    )
    special = tf.bitwise.bitwise_or(bits, not_a_number)
    bits = tf.where(tf.math.is_finite(rows), bits + random_bits, special)
    return tf.bitcast(tf.cast(_shifted(bits, 16), tf.uint16), tf.bfloat16)


def _low_word(values):
    return tf.cast(tf.bitwise.bitwise_and(values, tf.constant(0xFFFFFFFF, tf.int64)), tf.uint32)


def _mixed(x):
    x = (x ^ _shifted(x, 16)) * tf.constant(0x85EBCA6B, tf.uint32)
    x = (x ^ _shifted(x, 13)) * tf.constant(0xC2B2AE35, tf.uint32)
    return x ^ _shifted(x, 16)


def _shifted(x, num_bits):
    return tf.bitwise.right_shift(x, tf.constant(num_bits, tf.uint32))
