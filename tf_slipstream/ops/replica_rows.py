"""What a replica sends to the others of its step, and what it holds back.

Row states are alike on all replicas. What is held of a row that sleeps is not: each replica sums
the gradients of its own lookups in its `local_held`, and sends the sum once, when the row wakes.
"""

import collections

import tensorflow as tf

from tf_slipstream.ops import _library
from tf_slipstream.ops._tables import pool_arguments
from tf_slipstream.ops.apply_rows import count_by_field
from tf_slipstream.ops.live_slices import find_rows
from tf_slipstream.state import schema
from tf_slipstream.state.table import gather_int32

# A change of the learning rate by more than this wakes rows: `BeginStep` of staleness.h.
_RATE_CHANGE = 1.25

# Of one table: `sent`, `tf.IndexedSlices`, the rows whose gradients travel, with what was held of
# them here; `stale_ids`, the other rows looked up; `deferred`, `tf.IndexedSlices` from entries of
# the pool to gradients to hold; `released`, entries whose held gradients are in `sent`; and
# `num_lookups`, as `apply_rows` takes them.
ReplicaRows = collections.namedtuple(
    "ReplicaRows", ["sent", "stale_ids", "deferred", "released", "num_lookups"]
)


def replica_rows(states, slices, settings):
    """Sums repeated ids, and tells rows that travel from those that sleep. Writes nothing.

    Args:
        states: `TableState`s, all on one device. Without `local_held` deferred rows travel as well.
        slices: One `tf.IndexedSlices` per table, as for `apply_rows`.
        settings: `StepSettings`.

    Returns:
        A `ReplicaRows` per table. Ids are distinct; those of `sent` are in order of first
        appearance.

    Raises:
        tf.errors.InvalidArgumentError: As `apply_rows`.
    """
    # The native op has no kernel for a GPU. There every row travels, and each replica's pool holds
    # the gradients of those that sleep.
    native = None if _library.is_gpu(states[0].table.device) else _library.native_ops()
    if native is None:
        found = find_rows(states, slices)
        return [_all_rows(*of_table) for of_table in zip(states, slices, found, strict=True)]
    holding = [i for i, state in enumerate(states) if state.local_held is not None]
    found = native.slipstream_replica_rows(
        **pool_arguments(states),
        local_held=[states[i].local_held.handle for i in holding],
        woken_at=[_begin(state, settings)[0] for state in states if state.policy is not None],
        indices=[one.indices for one in slices],
        grads=[one.values for one in slices],
        step=settings.step,
        holding_tables=holding,
        table_names=[state.name for state in states],
        num_rows=[state.num_rows for state in states],
        num_fields=[len(state.row_ends) for state in states],
        row_ends=[end for state in states for end in state.row_ends],
    )
    rows = zip(
        found.sent_indices,
        found.sent_grads,
        found.stale_indices,
        found.deferred_entries,
        found.deferred_grads,
        found.released,
        found.num_lookups,
    )
    return [
        ReplicaRows(tf.IndexedSlices(grads, ids), stale_ids, tf.IndexedSlices(held, entries), *rest)
        for ids, grads, stale_ids, entries, held, *rest in rows
    ]


def hold(state, rows, live_ids, settings):
    """Holds a replica's deferred gradients, and takes what it holds of rows that others wake.

    Args:
        state: `TableState` with `local_held`.
        rows: The replica's `ReplicaRows`.
        live_ids: int `[num]`, the ids that all replicas sent; may repeat.
        settings: `StepSettings`.

    Returns:
        Entries of the pool int32 `[num_entries]`, distinct, and float32 `[num_entries, dim]`, to
        be added on all replicas to what the pool holds of them.
    """
    # Had the step failed on another replica, there would be no ids of all.
    with tf.control_dependencies([live_ids]):
        deferred = tf.identity(rows.deferred.indices)
    tf.raw_ops.ResourceScatterAdd(
        resource=state.local_held.handle, indices=deferred, updates=rows.deferred.values
    )
    _clear(state, rows.released)
    entries = tf.cond(
        _begin(state, settings)[1],
        lambda: tf.range(state.pool_ints.shape[0]),
        lambda: _entries_with_held(state, live_ids),
    )
    return take_held(state, entries)


def take_held(state, entries=None):
    """Takes what a replica holds of entries int32 `[num]`, distinct; None: of all.

    Returns:
        As `hold`.
    """
    if entries is None:
        entries = tf.range(state.pool_ints.shape[0])
    held = _gather(state, entries)
    has_held = tf.reduce_any(held != 0, axis=1)
    entries, held = tf.boolean_mask(entries, has_held), tf.boolean_mask(held, has_held)
    _clear(state, entries)
    return entries, held


def add_held(state, entries, held):
    """Adds gradients to what a table's pool holds of distinct entries."""
    rest = tf.zeros([tf.size(entries), held.shape[1] + 1])
    slices = tf.IndexedSlices(tf.concat([held, rest], axis=1), entries)
    return state.pool_floats.scatter_add(slices)


def num_counted(state):
    """Returns the length of a table's `num_lookups`."""
    return 3 if _library.is_gpu(state.table.device) else 3 * (1 + len(state.row_ends))


def _begin(state, settings):
    """Returns `woken_at` of this step, int64, and whether it is a refresh: as `BeginStep`."""
    columns = [schema.POLICY_STATE.index(name) for name in ("woken_at", "learning_rate")]
    woken_at, before = tf.unstack(tf.gather(state.policy_state, columns))
    rate = tf.cast(settings.learning_rate, tf.float64)
    changed = (rate > _RATE_CHANGE * before) | (rate * _RATE_CHANGE < before)
    every = state.policy.refresh_every
    is_refresh = (settings.step % every == 0) if every else tf.constant(False)
    woken_at = tf.cast(woken_at, tf.int64)
    wakes = is_refresh | (changed & (before != 0)) | (woken_at > settings.step)
    return tf.where(wakes, settings.step, woken_at), is_refresh


def _all_rows(state, slices, found):
    no_entries = tf.zeros([0], tf.int32)
    shape = tf.constant([state.num_rows, state.dim], tf.int64)
    num_lookups = tf.cast(found.num_lookups, tf.int64)[None]
    if num_counted(state) > 3:
        num_lookups = tf.concat([num_lookups, count_by_field(state, slices.indices)], axis=0)
    return ReplicaRows(
        sent=tf.IndexedSlices(found.values, found.indices, shape),
        stale_ids=tf.zeros([0], found.indices.dtype),
        deferred=tf.IndexedSlices(tf.zeros([0, state.dim]), no_entries),
        released=no_entries,
        num_lookups=tf.reshape(tf.pad(num_lookups[:, None], [[0, 0], [0, 2]]), [-1]),
    )


def _entries_with_held(state, ids):
    row_states = gather_int32(state.row_states, ids)
    _, entries = _places_with_held(state, row_states)
    return tf.unique(entries)[0]


def _places_with_held(state, row_states):
    """Returns which rows have held gradients, on any replica, and their entries, int32."""
    places = tf.where(row_states < 0)[:, 0]
    entries = -1 - tf.gather(row_states, places)
    held_steps = tf.gather(state.pool_ints, entries)[:, schema.POOL_INTS.index("held_steps")]
    has_held = held_steps > 0
    return tf.boolean_mask(places, has_held), tf.boolean_mask(entries, has_held)


def _gather(state, entries):
    return tf.raw_ops.ResourceGather(
        resource=state.local_held.handle, indices=entries, dtype=tf.float32
    )


def _clear(state, entries):
    zeros = tf.zeros([tf.size(entries), state.table.shape[1]])
    tf.raw_ops.ResourceScatterUpdate(
        resource=state.local_held.handle, indices=entries, updates=zeros
    )
