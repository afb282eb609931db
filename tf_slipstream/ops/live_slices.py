"""Distinct ids of a step whose gradients count, and the sums of their gradient rows."""

import collections

import tensorflow as tf

from tf_slipstream.ops import _library
from tf_slipstream.ops._checks import refusal
from tf_slipstream.ops._tables import pool_arguments

# What the fallback finds in a table: distinct ids `[num_rows]` in order of first appearance, summed
# gradients float32 `[num_rows, dim]`, and how many lookups they are of, int64.
SummedRows = collections.namedtuple("SummedRows", ["indices", "values", "num_lookups"])


def live_slices(states, slices, step):
    """Drops repeated ids, leaves out rows that are skipped and sums gradient rows.

    Rows that are deferred are not left out.

    Args:
        states: `TableState`s, all on one device.
        slices: One `tf.IndexedSlices` per table, all with the same index dtype: indices
            `[num_lookups]`, values float32 `[num_lookups, dim]`.
        step: int64 scalar, the number of this step (1 in the first).

    Returns:
        One `tf.IndexedSlices` per table: each id once, in order of first appearance, with the
        sum of its rows in batch order.

    Raises:
        tf.errors.InvalidArgumentError: For an id outside the table, or a sum that is NaN or
            infinite.
    """
    native = _library.native_ops(states[0].table.device)
    if native is None:
        found = find_rows(states, slices)
        indices, values = [one.indices for one in found], [one.values for one in found]
    else:
        indices, values = native.slipstream_live_slices(
            **pool_arguments(states),
            indices=[s.indices for s in slices],
            grads=[s.values for s in slices],
            step=step,
            table_names=[state.name for state in states],
            num_rows=[state.num_rows for state in states],
        )
    # A shape, without which a function cannot return the slices.
    return [
        tf.IndexedSlices(v, i, tf.constant([state.num_rows, state.dim], tf.int64))
        for v, i, state in zip(values, indices, states)
    ]


def find_rows(states, slices):
    """Finds distinct rows on plain TensorFlow ops; for them every row is live.

    Returns:
        A `SummedRows` per table. Nothing that depends on them runs before every table has passed
        its checks.
    """
    with tf.control_dependencies([_check_lookups(s, state) for s, state in zip(slices, states)]):
        found = [_sum_rows(one) for one in slices]
    checks = [_check_finite(one, state) for one, state in zip(found, states)]
    with tf.control_dependencies(checks):
        return [SummedRows(*map(tf.identity, one)) for one in found]


def _sum_rows(slices):
    ids, lookup_row = tf.unique(slices.indices, out_idx=tf.int64)
    values = tf.math.unsorted_segment_sum(slices.values, lookup_row, tf.size(ids))
    return SummedRows(ids, values, tf.size(slices.indices, tf.int64))


def _check_lookups(slices, state):
    ids = tf.cast(slices.indices, tf.int64)
    expected = (
        f"table '{state.name}': expected indices [num_lookups] and gradient rows "
        f"[num_lookups, {state.dim}]"
    )
    ranks = ids.shape.rank, slices.values.shape.rank
    if state.dim < 1 or ranks[0] not in (1, None) or ranks[1] not in (2, None):
        raise refusal(f"{expected}, got {ids.shape} and {slices.values.shape}")
    shape = tf.shape(slices.values)
    tf.debugging.assert_equal(shape, tf.stack([tf.size(ids), state.dim]), expected)
    is_bad = (ids < 0) | (ids >= state.num_rows)
    position = tf.where(is_bad)[:1, 0]  # of the first bad id; empty where there is none
    message = f"is not in [0, {state.num_rows}). No row was changed."
    return tf.debugging.Assert(
        tf.logical_not(tf.reduce_any(is_bad)),
        [f"table '{state.name}': id", tf.gather(ids, position), "at position", position, message],
    )


def _check_finite(found, state):
    is_finite = tf.reduce_all(tf.math.is_finite(found.values), axis=1)
    bad_ids = tf.boolean_mask(found.indices, ~is_finite)
    message = (
        "is NaN or infinite. No row was changed. Look at the loss and the inputs of this batch, "
        "lower the learning rate, clip gradients, or train float16 under a LossScaleOptimizer."
    )
    return tf.debugging.Assert(
        tf.reduce_all(is_finite),
        [f"table '{state.name}': the gradient of row", bad_ids[:1], message],
    )
