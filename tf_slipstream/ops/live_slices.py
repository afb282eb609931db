"""Distinct ids of a step whose gradients count, and the sums of their gradient rows."""

import collections

import tensorflow as tf

from tf_slipstream.ops import _library
from tf_slipstream.ops.staleness import kinds_of
from tf_slipstream.ops.table_state import NUM_COUNTERS, gather_int32

# What the fallback finds in a table: distinct rows with their summed gradients, `tf.IndexedSlices`;
# their row states int32 `[num_rows]` and whether they are deferred, None without a policy; int64
# `[NUM_COUNTERS]` to add to its counters; and the rows that are skipped and in none of these.
FoundRows = collections.namedtuple(
    "FoundRows", ["slices", "row_states", "is_deferred", "counts", "skipped_ids"]
)


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
        return [found.slices for found in find_rows(states, slices, step)]
    indices, values = native.slipstream_live_slices(
        **policy_handles(states),
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


def policy_handles(states):
    """Returns the native ops' arguments for the tables that have a policy."""
    places = [place for place, state in enumerate(states) if state.policy is not None]
    states = [states[place] for place in places]
    return {
        "row_states": [state.row_states.handle for state in states],
        "pool_ints": [state.pool_ints.handle for state in states],
        "pool_floats": [state.pool_floats.handle for state in states],
        "policy_states": [state.policy_state.handle for state in states],
        "policy_tables": places,
    }


def find_rows(states, slices, step, woken_at=None):
    """What `LiveRows::Find` finds, on plain TensorFlow ops.

    Args:
        woken_at: Per table a scalar in place of that in its policy state, or None.

    Returns:
        A `FoundRows` per table. Nothing that depends on them runs before every table has passed its
        checks.
    """
    woken_at = woken_at or [None] * len(states)
    with tf.control_dependencies([_check_ids(s, state) for s, state in zip(slices, states)]):
        found = [_find(s, state, step, w) for s, state, w in zip(slices, states, woken_at)]
    checks = [_check_finite(one.slices, state) for one, state in zip(found, states)]
    with tf.control_dependencies(checks):
        return [FoundRows(*map(_identity, one)) for one in found]


def _identity(tensor):
    if isinstance(tensor, tf.IndexedSlices):
        parts = (tensor.values, tensor.indices, tensor.dense_shape)
        return tf.IndexedSlices(*map(tf.identity, parts))
    return None if tensor is None else tf.identity(tensor)


def _dense_shape(state):
    # A tensor, without which a function cannot return the slices.
    return tf.constant(list(state.table.shape), tf.int64)


def _find(slices, state, step, woken_at):
    ids, lookup_row, num_lookups = tf.unique_with_counts(slices.indices, out_idx=tf.int64)
    row_states, deferred, skipped = None, tf.zeros_like(ids, tf.bool), tf.zeros_like(ids, tf.bool)
    if state.policy is not None:
        row_states = gather_int32(state.row_states, ids)
        deferred, skipped = kinds_of(state, row_states, step, woken_at)
    # A skipped row's gradient is left out before the sum, so that it is never read.
    is_read = tf.logical_not(tf.gather(skipped, lookup_row))
    place = tf.cumsum(tf.cast(~skipped, tf.int64), exclusive=True)
    read_ids = tf.boolean_mask(ids, ~skipped)
    values = tf.math.unsorted_segment_sum(
        tf.boolean_mask(slices.values, is_read),
        tf.boolean_mask(tf.gather(place, lookup_row), is_read),
        tf.size(read_ids),
    )
    zero = tf.zeros([], tf.int64)
    counts = [tf.size(slices.indices, tf.int64)]
    counts += [tf.reduce_sum(tf.where(kind, num_lookups, 0)) for kind in (skipped, deferred)]
    counts += [tf.size(ids, tf.int64)]
    counts += [tf.math.count_nonzero(kind) for kind in (skipped, deferred)]
    found = tf.IndexedSlices(values, read_ids, _dense_shape(state))
    if row_states is not None:
        row_states = tf.boolean_mask(row_states, ~skipped)
        deferred = tf.boolean_mask(deferred, ~skipped)
    else:
        deferred = None
    counts = tf.stack([*counts, *[zero] * (NUM_COUNTERS - len(counts))])
    return FoundRows(found, row_states, deferred, counts, tf.boolean_mask(ids, skipped))


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
