"""A worker's part of tables on parameter servers: pulls, a cache of rows that sleep, pushes.

There is no fallback: plain TensorFlow ops read and write rows without a lock, and workers that run
at once would lose updates.
"""

import collections
import dataclasses
import itertools
import weakref

import tensorflow as tf

from tf_slipstream.ops._library import needed_native_ops
from tf_slipstream.ops._tables import NO_POOLS, pool_arguments

# What a worker found in a batch: `parts`, joined the rows of its distinct ids; `inverse` int32,
# each lookup's place among them; `num_lookups` int32 `[num_ids]`, in another order; `order` int32
# `[num_ids]`, the places in `num_lookups` in order of the ids' first appearance; `stored`: what a
# push must wait for.
FoundRows = collections.namedtuple(
    "FoundRows", ["parts", "inverse", "num_lookups", "order", "stored"]
)

# Of a shard: local `ids` int32, `grads`, `batches` int32 `[num_ids, 2]` and `counts` int64 `[11]`,
# as `Slipstream>ApplyPushes` takes them.
Push = collections.namedtuple("Push", ["ids", "grads", "batches", "counts"])

# By number, who is told of gradients.
_listeners, _numbers = weakref.WeakValueDictionary(), itertools.count()


@dataclasses.dataclass(frozen=True)
class RowCache:
    """Names the cache of a table, on whatever device an op runs.

    Attributes:
        name: Of the cache; unlike other tables'.
        session: A cache that another session left is thrown away.
        table_name: For errors.
        row_starts: int list `[num_shards + 1]`: shard `s` has the rows from `row_starts[s]` on,
            below `row_starts[s + 1]`.
        dim: Of a row.
        capacity: Rows that a worker may keep; 0: none, and then it holds no gradients either.
        max_age: Steps for which a row may be used once it was pulled.
        clip_value: Bound on each element of a batch's gradient, 0 for none.
    """

    name: str
    session: str
    table_name: str
    row_starts: tuple
    dim: int
    capacity: int
    max_age: int
    clip_value: float

    def _attributes(self):
        return {
            "cache": self.name,
            "session": self.session,
            "row_starts": list(self.row_starts),
            "dim": self.dim,
            "capacity": self.capacity,
        }


def pull_rows(cache, states, ids, step, wire_dtype="float32"):
    """Looks rows up in the cache and, those that are not there, on the servers.

    A row that may have changed is asked for by a hash of the value that the cache has, and comes
    only if it is another.

    Args:
        cache: `RowCache`.
        states: The shards' `TableState`s.
        ids: int64 `[num_lookups]`.
        step: int64 scalar.
        wire_dtype: In which rows travel.

    Returns:
        `FoundRows`.
    """
    ops = needed_native_ops()
    found = ops.slipstream_row_cache_find(
        ids,
        step,
        num_shards=len(states),
        max_age=cache.max_age,
        table_name=cache.table_name,
        **cache._attributes(),
    )
    rows, sleeps = [], []
    for state, pull, hashes in zip(states, found.pulls, found.hashes, strict=True):
        # A read of nothing, and never run in a function: tapes then know that the table was read.
        tf.gather(state.table, tf.zeros([0], tf.int32))
        with tf.device(state.table.device):
            pulled = ops.slipstream_pull_rows(
                state.table.handle,
                **pool_arguments([state]),
                ids=pull,
                hashes=hashes,
                step=step,
                num_rows=state.num_rows,
                dim=cache.dim,
                to_bfloat16=wire_dtype == "bfloat16",
                table_name=state.name,
            )
            sent = tf.cast(pulled.rows, wire_dtype)
        rows.append(tf.cast(sent, tf.float32))
        sleeps.append(pulled.sleeps)
    if not cache.capacity:
        parts = [found.cached, *rows]
        return FoundRows(parts, found.inverse, found.num_lookups, found.order, [])
    kept = ops.slipstream_row_cache_store(
        found.ids, found.known, found.hashes, rows, sleeps, step, **cache._attributes()
    )
    inverse = tf.gather(kept.places, found.inverse)
    parts = [found.cached, *rows, kept.same]
    return FoundRows(parts, inverse, found.num_lookups, found.order, [kept.places])


@tf.RegisterGradient("Slipstream>PullRows")
def _pull_rows_gradient(op, rows_grad, _):
    ids = op.inputs[-3]
    if op.get_attr("num_policies"):
        # Those that came: the sign says that the worker had the row.
        ids = tf.boolean_mask(ids, op.outputs[1] >= 0)
    shape = tf.constant([op.get_attr("num_rows"), op.get_attr("dim")], tf.int64)
    return [tf.IndexedSlices(rows_grad, ids, shape), *[None] * (len(op.inputs) - 1)]


# What comes out of it came in as pulled rows, whose gradient a tape finds without.
tf.no_gradient("Slipstream>RowCacheStore")


def listen_to_lookups(listener):
    """Returns a number by which `note_lookup` knows a listener, which nothing here keeps alive.

    Args:
        listener: Has `note_gradient(graph_number, ids, rows_grad, counts, sums)`.
    """
    number = next(_numbers)
    _listeners[number] = listener
    return number


def note_lookup(listener, graph_number, ids, found):
    """Returns the rows of a lookup, whose gradient a listener is told of when a tape computes it.

    With a `tf.custom_gradient` TensorFlow would keep each trace for ever, and in it the tables.

    Args:
        listener: What `listen_to_lookups` returned.
        graph_number: What the listener is told.
        ids: int64 `[num_lookups]`.
        found: `FoundRows`, of these ids.

    Returns:
        float32 `[num_lookups, dim]`.
    """
    rows = tf.gather(tf.concat(found.parts, axis=0), found.inverse)
    return needed_native_ops().slipstream_note_lookup(
        tf.stop_gradient(rows),
        found.parts,
        found.inverse,
        ids,
        found.num_lookups,
        found.order,
        table=listener,
        graph=graph_number,
    )


@tf.RegisterGradient("Slipstream>NoteLookup")
def _note_lookup_gradient(op, rows_grad):
    *parts, inverse, ids, num_lookups, order = op.inputs[1:]
    # For tapes alone, which cannot tell of rows that were cached: nothing is done where nobody
    # looks at it.
    sums = tf.math.unsorted_segment_sum(rows_grad, inverse, tf.size(order))
    listener = _listeners[op.get_attr("table")]
    counts = tf.gather(num_lookups, order)
    listener.note_gradient(op.get_attr("graph"), ids, rows_grad, counts, sums)
    return [None, *tf.split(sums, [tf.shape(part)[0] for part in parts]), *[None] * 4]


def sum_gradients(cache, ids, grads):
    """Sums the gradients of each id.

    Args:
        cache: `RowCache`.
        ids: int64 `[num_lookups]`.
        grads: float32 `[num_lookups, dim]`.

    Returns:
        Distinct ids int64 `[num_ids]`, in order of first appearance, and float32 `[num_ids, dim]`,
        summed in batch order.

    Raises:
        tf.errors.InvalidArgumentError: For a sum that is NaN or infinite.
    """
    (distinct,), (sums,) = needed_native_ops().slipstream_live_slices(
        **NO_POOLS,
        indices=[ids],
        grads=[grads],
        step=tf.zeros([], tf.int64),
        table_names=[cache.table_name],
        num_rows=[cache.row_starts[-1]],
    )
    return distinct, sums


def push_rows(cache, ids, grads, num_lookups, step, flush=False):
    """Holds what can wait, and returns what must go to the servers.

    Args:
        cache: `RowCache`.
        ids: int64 `[num_ids]`, distinct.
        grads: float32 `[num_ids, dim]`, summed over the batch.
        num_lookups: int32 `[num_ids]`.
        step: int64 scalar.
        flush: Whether all that is held must go, and all be forgotten.

    Returns:
        A `Push` per shard.
    """
    outputs = needed_native_ops().slipstream_row_cache_push(
        ids,
        grads,
        num_lookups,
        step,
        flush,
        num_shards=len(cache.row_starts) - 1,
        clip_value=cache.clip_value,
        table_name=cache.table_name,
        **cache._attributes(),
    )
    return [Push(*parts) for parts in zip(*outputs, strict=True)]
