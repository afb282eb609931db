"""The step of tables over the replicas of a strategy: docs/reference/replicas.md."""

import tensorflow as tf

from tf_slipstream.engine.grouping import groups
from tf_slipstream.engine.messages import all_gather
from tf_slipstream.ops.replica_rows import add_held, hold, num_counted, replica_rows, take_held


class Replicas:
    """Tables that each of several replicas has a copy of. The methods are `OneDevice`'s.

    Args:
        strategy: The `tf.distribute.Strategy`.
    """

    def __init__(self, strategy):
        self._strategy = strategy
        self._functions = {}

    def exchange(self, states, slices, settings, are_summed):
        if num_replicas() == 1 or are_summed:
            return slices, None
        exchanged = {}
        for group in groups(states, slices):
            for state, *one in zip(group[0], *exchange_rows(*group, settings), strict=True):
                exchanged[id(state)] = one
        pairs = [exchanged[id(state)] for state in states]
        return [one for one, _ in pairs], [num for _, num in pairs]

    def sum_dense(self, dense, are_summed):
        if num_replicas() == 1 or are_summed or not dense:
            return dense, are_summed
        grads, variables = zip(*dense)
        context = tf.distribute.get_replica_context()
        summed = context.all_reduce(tf.distribute.ReduceOp.SUM, list(grads))
        return list(zip(summed, variables)), True

    def exchange_held(self, states):
        holding = [state for state in states if state.local_held is not None]
        if not holding or num_replicas() == 1:
            return
        parts = [part for state in holding for part in take_held(state)]
        _add_held(holding, all_gather(parts))

    def run(self, function):
        # Traced once: a trace takes half a second and memory that is never given back.
        key = getattr(function, "__func__", function)
        if key not in self._functions:
            self._functions[key] = tf.function(lambda: self._strategy.run(function))
        self._functions[key]()


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
    # What came in a message has no static shape.
    counted = [
        tf.ensure_shape(tf.add_n(one[3]), [num_counted(state)])
        for state, one in zip(states, received, strict=True)
    ]
    return exchanged, counted


def _concat(state, live_ids, stale_ids, grads):
    # The gradients of stale rows stay where they are; the update counts these rows, and adds 0.
    num_stale = sum(tf.size(ids) for ids in stale_ids)
    return tf.IndexedSlices(
        tf.concat([*grads, tf.zeros([num_stale, state.dim])], axis=0),
        tf.concat([*live_ids, *stale_ids], axis=0),
        tf.constant([state.num_rows, state.dim], tf.int64),
    )


def _exchange_held(states, rows, live_ids, settings):
    holding = [i for i, state in enumerate(states) if state.local_held is not None]
    if not holding:
        return
    parts = []
    for i in holding:
        parts += hold(states[i], rows[i], tf.concat(live_ids[i], axis=0), settings)
    _add_held([states[i] for i in holding], all_gather(parts))


def _add_held(states, received):
    for place, state in enumerate(states):
        for entries, held in zip(*received[2 * place : 2 * place + 2], strict=True):
            add_held(state, entries, held)
