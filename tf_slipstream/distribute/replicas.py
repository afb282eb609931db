"""The step of a table, over the replicas of a strategy: docs/distribution.md."""

import tensorflow as tf

from tf_slipstream.distribute.messages import all_gather
from tf_slipstream.ops.replica_rows import add_held, hold, replica_rows


def num_replicas():
    """Returns how many replicas do the step that this code is part of, each with its own batch."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def exchange_rows(states, slices, settings):
    """Turns the lookups of this replica into those of all replicas.

    What a replica sends, in two messages for all tables together: the distinct rows that it looked
    up, with summed gradients where they do not sleep; then what it holds of other rows that now
    wake. Every replica calls this, with the same tables.

    Args:
        states: `TableState`s, all on one device.
        slices: One `tf.IndexedSlices` per table, this replica's; ids may repeat, there may be none.
        settings: `StepSettings`.

    Returns:
        Two lists for `apply_rows`: `tf.IndexedSlices` and `num_lookups`. They are alike on all
        replicas, to the bit, in the order of the replicas.

    Raises:
        tf.errors.InvalidArgumentError: As `apply_rows`.
    """
    rows = replica_rows(states, slices, settings)
    # An id fits into one word nearly always.
    fits = max(state.num_rows for state in states) <= tf.int32.max
    dtype = tf.int32 if fits else tf.int64
    parts = []
    for one in rows:
        ids = [tf.cast(ids, dtype) for ids in (one.sent.indices, one.stale_ids)]
        parts += [*ids, one.sent.values, one.num_lookups]
    received = all_gather(parts)
    received = [received[i : i + 4] for i in range(0, len(received), 4)]
    _exchange_held(states, rows, [one[0] for one in received], settings)
    exchanged = [_concat(state, *one[:3]) for state, one in zip(states, received, strict=True)]
    return exchanged, [tf.add_n(one[3]) for one in received]


def _concat(state, live_ids, stale_ids, grads):
    # The gradients of stale rows stay where they are; the update counts these rows, and adds 0.
    num_stale = sum(tf.size(ids) for ids in stale_ids)
    dim = state.table.shape[1]
    return tf.IndexedSlices(
        tf.concat([*grads, tf.zeros([num_stale, dim])], axis=0),
        tf.concat([*live_ids, *stale_ids], axis=0),
        tf.constant([state.num_rows, dim], tf.int64),
    )


def _exchange_held(states, rows, live_ids, settings):
    holding = [i for i, state in enumerate(states) if state.local_held is not None]
    if not holding:
        return
    parts = []
    for i in holding:
        parts += hold(states[i], rows[i], tf.concat(live_ids[i], axis=0), settings)
    received = all_gather(parts)
    for place, i in enumerate(holding):
        for entries, held in zip(*received[2 * place : 2 * place + 2], strict=True):
            add_held(states[i], entries, held)
