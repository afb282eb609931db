"""Gradients that many lookups share, as those of a sum do, are not written out for each."""

import tensorflow as tf

_PASS_ON = ("Reshape", "Identity")
_REPEATING = {"BroadcastTo": tf.broadcast_to, "Tile": tf.tile}


def as_bags(values):
    """Finds fewer rows of which the gradients of lookups were copied, in a graph.

    The gradient of a sum over a bag is one row, which TensorFlow copies for each lookup of the bag:
    a `BroadcastTo` or `Tile`, and for bags of different sizes a `GatherV2`. A graph does not run
    what nobody reads, so who takes the rows from before has no copies made.

    Args:
        values: float `[num_lookups, dim]`.

    Returns:
        `grads`, float `[num_bags, dim]`, and `bags`, int32 `[num_lookups]`, so that
        `tf.gather(grads, bags)` is `values`; or None, where they are not seen to be copies.
    """
    dim = values.shape[-1]
    if not tf.is_symbolic_tensor(values) or dim is None:
        return None
    tensor = values
    while _keeps_rows(tensor, dim) and tensor.op.type in _PASS_ON:
        tensor = tensor.op.inputs[0]
    if not _keeps_rows(tensor, dim):
        return None
    if tensor.op.type == "GatherV2":
        grads, bags, axis = tensor.op.inputs
        is_of_rows = grads.shape.rank == 2 and tf.get_static_value(axis) == 0
        if is_of_rows and tensor.op.get_attr("batch_dims") == 0:
            return grads, tf.reshape(tf.cast(bags, tf.int32), [-1])
    if tensor.op.type in _REPEATING and _keeps_rows(tensor.op.inputs[0], dim):
        grads, how_often = tensor.op.inputs
        shape = tf.shape(grads)[:-1]
        rows = tf.reshape(tf.range(tf.reduce_prod(shape)), shape)
        bags = _REPEATING[tensor.op.type](rows, how_often[:-1])
        return tf.reshape(grads, [-1, dim]), tf.reshape(bags, [-1])
    if tensor.op.type == "ConcatV2":
        *parts, axis = tensor.op.inputs
        found = [as_bags(part) for part in parts]
        if tf.get_static_value(axis) == 0 and any(found):
            return _joined([one or _as_they_are(part) for one, part in zip(found, parts)])
    return None


def _as_they_are(values):
    grads = tf.reshape(values, [-1, values.shape[-1]])
    return grads, tf.range(tf.shape(grads)[0])


def _joined(pairs):
    """Returns `grads` and `bags` of several such pairs, one after the other."""
    sizes = tf.stack([tf.shape(grads)[0] for grads, _ in pairs])
    firsts = tf.unstack(tf.cumsum(sizes, exclusive=True))
    bags = [bags + first for (_, bags), first in zip(pairs, firsts)]
    return tf.concat([grads for grads, _ in pairs], axis=0), tf.concat(bags, axis=0)


def _keeps_rows(tensor, dim):
    """Whether a tensor's last axis is `dim` long, so that flat it has the same rows."""
    return tensor.shape.rank not in (None, 0) and tensor.shape[-1] == dim
