"""Distinct live ids of a step, and the sums of their gradient rows."""

import tensorflow as tf

from tf_slipstream.ops import _library


def live_slices(states, slices, step):
    """Drops repeated ids, leaves out stale rows and sums gradient rows.

    Args:
        states: `TableState`s, all on one device.
        slices: One `tf.IndexedSlices` per table, all with the same index dtype: indices
            `[num_lookups]`, values float32 `[num_lookups, dim]`.
        step: int64 scalar, the number of this step (1 in the first).

    Returns:
        One `tf.IndexedSlices` per table: each live id once, in order of first appearance, with the
        sum of its rows in batch order.

    Raises:
        tf.errors.InvalidArgumentError: For an id outside the table, or a sum that is NaN or
            infinite.
    """
    native = _library.native_ops(states[0].table.device)
    if native is None:
        live, _ = live_slices_fallback(states, slices, step)
        return live
    indices, values = native.slipstream_live_slices(
        wake_steps=[state.wake_steps.handle for state in states],
        indices=[s.indices for s in slices],
        grads=[s.values for s in slices],
        step=step,
        table_names=[state.name for state in states],
        num_rows=[state.num_rows for state in states],
    )
    return [
        tf.IndexedSlices(v, i, dense_shape=_dense_shape(state))
        for v, i, state in zip(values, indices, states)
    ]


def live_slices_fallback(states, slices, step):
    """`live_slices` on plain TensorFlow ops.

    Returns:
        The live slices, and per table int64 `[NUM_COUNTERS]` to add to its counters. Nothing that
        depends on them runs before every table has passed its checks.
    """
    with tf.control_dependencies([_check_ids(s, state) for s, state in zip(slices, states)]):
        found = [_find_live(s, state, step) for s, state in zip(slices, states)]
    checks = [_check_finite(live, state) for (live, _), state in zip(found, states)]
    with tf.control_dependencies(checks):
        return (
            [
                tf.IndexedSlices(
                    tf.identity(live.values), tf.identity(live.indices), _dense_shape(state)
                )
                for (live, _), state in zip(found, states)
            ],
            [tf.identity(counts) for _, counts in found],
        )


def _dense_shape(state):
    # A tensor, without which a function cannot return the slices.
    return tf.constant(list(state.table.shape), tf.int64)


def _find_live(slices, state, step):
    ids, lookup_row, num_lookups = tf.unique_with_counts(slices.indices, out_idx=tf.int64)
    skipped = tf.zeros_like(ids, tf.bool)
    if state.wake_steps.shape[0] != 0:
        skipped = tf.gather(state.wake_steps, ids) > tf.cast(step, tf.int32)
    # A stale row's gradient is left out before the sum, so that it is never read.
    is_live = tf.logical_not(tf.gather(skipped, lookup_row))
    place = tf.cumsum(tf.cast(~skipped, tf.int64), exclusive=True)
    live_ids = tf.boolean_mask(ids, ~skipped)
    values = tf.math.unsorted_segment_sum(
        tf.boolean_mask(slices.values, is_live),
        tf.boolean_mask(tf.gather(place, lookup_row), is_live),
        tf.size(live_ids),
    )
    zero = tf.zeros([], tf.int64)
    counts = tf.stack(
        [
            tf.size(slices.indices, tf.int64),
            tf.reduce_sum(tf.where(skipped, num_lookups, 0)),
            zero,
            tf.size(ids, tf.int64),
            tf.math.count_nonzero(skipped),
            zero,
            zero,
            zero,
        ]
    )
    return tf.IndexedSlices(values, live_ids), counts


def _check_ids(slices, state):
    ids = tf.cast(slices.indices, tf.int64)
    is_bad = (ids < 0) | (ids >= state.num_rows)
    position = tf.where(is_bad)[:1, 0]  # of the first bad id; empty where there is none
    message = f"is not in [0, {state.num_rows}). No row was changed."
    return tf.debugging.Assert(
        tf.logical_not(tf.reduce_any(is_bad)),
        [f"table '{state.name}': id", tf.gather(ids, position), "at position", position, message],
    )


def _check_finite(live, state):
    is_finite = tf.reduce_all(tf.math.is_finite(live.values), axis=1)
    bad_ids = tf.boolean_mask(live.indices, ~is_finite)
    message = (
        "is NaN or infinite. No row was changed. Look at the loss and the inputs of this batch, "
        "lower the learning rate, clip gradients, or train float16 under a LossScaleOptimizer."
    )
    return tf.debugging.Assert(
        tf.reduce_all(is_finite),
        [f"table '{state.name}': the gradient of row", bad_ids[:1], message],
    )
