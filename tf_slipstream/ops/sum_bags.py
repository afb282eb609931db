"""Sums of bags of rows, in training: rows are read once, and not written out for each lookup.

What is exported has TensorFlow's own ops, which round a sum in another order.
"""

import tensorflow as tf

from tf_slipstream.ops import _library


def sum_bags(table, ids, splits, name=None):
    """Sums rows by bags.

    Its gradient is that of `tf.gather` and a sum: each lookup's is that of its bag.

    Args:
        table: float32 `tf.Variable` `[num_rows, dim]`, for which `has_cpu_ops`.
        ids: int `[...]`; flat, the ids of one bag after those of another.
        splits: int64 `[num_bags + 1]`, where each bag begins in the flat ids, and their number.
        name: Of the op, for errors.

    Returns:
        float32 `[num_bags, dim]`; zeros for a bag without ids.

    Raises:
        tf.errors.InvalidArgumentError: For an id that is not in `[0, num_rows)`.
    """
    # A read of nothing, and never run in a function: tapes then know that the table was read.
    tf.gather(table, tf.zeros([0], tf.int32))
    sums, _ = _library.native_ops().slipstream_sum_bags(
        table.handle, ids, splits, dim=table.shape[1], name=name
    )
    return sums


@tf.RegisterGradient("Slipstream>SumBags")
def _gradient(op, grad, _):
    table, ids, _ = op.inputs
    _, bags = op.outputs
    # Of a resource the shape is that of its variable; ops/bags.py finds `grad` behind the copies.
    shape = tf.raw_ops.VariableShape(input=table, out_type=tf.int64)
    return tf.IndexedSlices(tf.gather(grad, bags), tf.reshape(ids, [-1]), shape), None, None
