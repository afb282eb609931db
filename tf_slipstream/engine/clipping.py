"""Clipping by norm, of tables and of all other variables together."""

import tensorflow as tf


def clip_scales(inner, squares_of_tables, dense, loss_scale):
    """Finds what brings gradients down to the bound of `clipnorm` or `global_clipnorm`.

    Args:
        inner: `Inner`.
        squares_of_tables: Returns a list of each table's squared norm, of summed gradients.
        dense: List of pairs of a gradient and a variable that is no table; they count where
            `inner` trains them as well.
        loss_scale: What the dense gradients are multiplied by, or None.

    Returns:
        A scale per table, None where nothing clips by norm; and `dense`, scaled.
    """
    if not (inner.clipnorm or inner.global_clipnorm):
        return None, dense
    squares = squares_of_tables()
    num_tables = len(squares)
    if inner.clipnorm:
        return [_scale(tf.sqrt(square), inner.clipnorm) for square in squares], dense
    for grad, _ in dense if inner.is_of_all else ():
        unscaled = grad.values if isinstance(grad, tf.IndexedSlices) else grad
        if loss_scale:
            unscaled /= loss_scale
        squares.append(tf.reduce_sum(tf.square(tf.cast(unscaled, tf.float32))))
    # A NaN here is a dense variable's, and would pass into every table.
    norm = tf.debugging.check_numerics(
        tf.sqrt(tf.add_n(squares)), "The gradients' global norm. No variable was changed"
    )
    scale = _scale(norm, inner.global_clipnorm)
    if not inner.is_of_all:
        return [scale] * num_tables, dense
    # The inner optimizer then finds a norm within its bound and clips no more.
    return [scale] * num_tables, [(_scaled(grad, scale), v) for grad, v in dense]


def _scale(norm, limit):
    return tf.cast(limit, norm.dtype) / tf.maximum(norm, limit)


def _scaled(grad, scale):
    if isinstance(grad, tf.IndexedSlices):
        values = grad.values * tf.cast(scale, grad.dtype)
        return tf.IndexedSlices(values, grad.indices, grad.dense_shape)
    return grad * tf.cast(scale, grad.dtype)
