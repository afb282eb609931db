"""Tables on parameter servers: what workers pull and push. docs/reference/parameter_servers.md."""

import dataclasses
import itertools
import uuid
import weakref

import tensorflow as tf

from tf_slipstream.engine import registry
from tf_slipstream.engine.connections import end_when_lost
from tf_slipstream.engine.padding import without_padding
from tf_slipstream.ops._library import needed_native_ops
from tf_slipstream.ops._tables import NO_POOLS
from tf_slipstream.ops.row_cache import (
    RowCache,
    listen_to_lookups,
    note_lookup,
    pull_rows,
    push_rows,
    sum_gradients,
)
from tf_slipstream.state.schema import WORKER_COUNTERS
from tf_slipstream.state.table import pool_capacity

_ENTRY_BYTES = 96  # of a cached row, beside its value and its held gradient

_number = itertools.count()


@dataclasses.dataclass(frozen=True)
class WorkerCache:
    """What a worker keeps of tables on parameter servers: rows that sleep, and their gradients.

    A row that sleeps does not change, so its value need not be pulled again, and its gradients need
    not be sent before it wakes. Set it before the optimizer is built:
    `optimizer.worker_cache = WorkerCache(...)`.

    Args:
        num_bytes: Bound on the memory of a worker, for all tables. 0: nothing is kept or held.
        max_age: Steps for which a row is used once it was pulled, at most until it may wake. It
            bounds how long a worker overlooks that rows woke early, because the learning rate
            changed or `wake_all` was called. 0: every lookup is pulled, so that values are exactly
            the servers'; gradients are still held.

    Raises:
        ValueError: For a negative number.
    """

    num_bytes: int = 1 << 28
    max_age: int = 1000

    def __post_init__(self):
        for name in ("num_bytes", "max_age"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"`{name}` must be an integer >= 0, got {value!r}.")


@dataclasses.dataclass(frozen=True)
class CacheStats:
    """Counts for one table on parameter servers since training began.

    Attributes:
        num_pulled_rows: Distinct rows that batches read from the servers.
        num_cached_rows: Those that a worker had instead.
        num_held_batches: Gradients, each of a row in a batch, that workers hold now.
        num_lost_batches: Those that were held by workers that were replaced.
    """

    num_pulled_rows: int
    num_cached_rows: int
    num_held_batches: int
    num_lost_batches: int

    @property
    def hit_rate(self):
        """Share of distinct rows that a worker had."""
        num_rows = self.num_pulled_rows + self.num_cached_rows
        return self.num_cached_rows / num_rows if num_rows else 0.0


@dataclasses.dataclass
class LookupGradient:
    """Gradients of a lookup.

    Attributes:
        ids: int64 `[num_lookups]`, of the whole table.
        values: float32 `[num_lookups, dim]`.
        counts: int32 `[num_ids]`, how often each distinct id comes, in order of first appearance.
        stored: What a push must wait for.
        for_tape: What the gradient that the tape gives out is made of; None: `values` are of it.
    """

    ids: tf.Tensor
    values: tf.Tensor
    counts: tf.Tensor
    stored: list
    for_tape: tf.Tensor | None


@dataclasses.dataclass
class SummedGradient:
    """Gradients of the distinct rows of a table that a batch looked up.

    Attributes:
        ids: int64 `[num_ids]`, of the whole table.
        values: float32 `[num_ids, dim]`, sums.
        num_lookups: int32 `[num_ids]`.
        stored: What a push must wait for.
    """

    ids: tf.Tensor
    values: tf.Tensor
    num_lookups: tf.Tensor
    stored: list


def is_on_servers(strategy):
    """Whether a strategy puts variables on parameter servers."""
    return isinstance(strategy, tf.distribute.ParameterServerStrategy)


def is_on_worker():
    """Whether what is traced now will run on a worker."""
    return not tf.distribute.in_cross_replica_context() and is_on_servers(
        tf.distribute.get_strategy()
    )


def num_tasks(job):
    """Returns how many tasks a job of the cluster has that this process is connected to."""
    devices = map(tf.DeviceSpec.from_string, (d.name for d in tf.config.list_logical_devices()))
    return len({device.task for device in devices if device.job == job})


def check_tasks(strategy):
    """Checks that every task of the cluster has the ops, and notices from now on when one is gone.

    Args:
        strategy: `tf.distribute.ParameterServerStrategy`.

    Raises:
        RuntimeError: If one has not, or this process has not.
    """
    ops = needed_native_ops()
    # Its `cluster_resolver` is None, in all releases that are supported.
    end_when_lost(strategy._cluster_resolver.cluster_spec().as_dict())
    for device in tf.config.list_logical_devices("CPU"):
        spec = tf.DeviceSpec.from_string(device.name)
        if spec.job not in ("worker", "ps"):
            continue
        try:
            with tf.device(device.name):
                ops.slipstream_live_slices(
                    **NO_POOLS,
                    indices=[tf.zeros([0], tf.int64)],
                    grads=[tf.zeros([0, 1])],
                    step=tf.zeros([], tf.int64),
                    table_names=["check"],
                    num_rows=[1],
                )
        except tf.errors.OpError as error:
            if "registered" not in str(error):
                raise
            raise RuntimeError(
                f"Task {spec.job}:{spec.task} runs without tf_slipstream's ops. Start workers and "
                "parameter servers with: python -m tf_slipstream.server --cluster ... --task "
                f"{spec.job}:{spec.task}"
            ) from error


class ServerTable:
    """A table on parameter servers, as a worker sees it.

    Args:
        states: The shards' `TableState`s, in the order of their rows.
        name: The table's.
        capacity: Rows that a worker may keep.
        max_age: As `WorkerCache`'s.
        clip_value: Bound on each element of a batch's gradient, 0 for none.
        wire_dtype: In which rows and gradients travel.
    """

    def __init__(self, states, name, capacity, max_age, clip_value, wire_dtype):
        self.states, self.name, self._wire_dtype = states, name, wire_dtype
        starts = itertools.accumulate((state.num_rows for state in states), initial=0)
        self.cache = RowCache(
            name=f"{next(_number)}/{name}",
            # A worker throws away what an earlier run left in it.
            session=uuid.uuid4().hex,
            table_name=name,
            row_starts=tuple(starts),
            dim=int(states[0].table.shape[1]),
            capacity=capacity,
            max_age=max_age,
            clip_value=clip_value,
        )
        # By graph: its number, how many lookups were traced in it, the names of what a push must
        # wait for, and the gradients of the lookups until they are taken.
        self._graph_numbers = weakref.WeakKeyDictionary()
        self._num_lookups = weakref.WeakKeyDictionary()
        self._stored = weakref.WeakKeyDictionary()
        self._gradients = weakref.WeakKeyDictionary()
        self._listener = listen_to_lookups(self)

    def lookup(self, ids, step):
        """Returns rows float32 `[num_lookups, dim]`, and notes their gradients.

        Args:
            ids: int `[num_lookups]`.
            step: int64 scalar.
        """
        ids = tf.cast(ids, tf.int64)
        found = pull_rows(self.cache, self.states, ids, step, self._wire_dtype)
        graph = _graph()
        self._num_lookups[graph] = self._num_lookups.get(graph, 0) + 1
        if not tf.executing_eagerly():
            names = self._stored.setdefault(graph, [])
            names += [wait.name for wait in found.stored]
        number = self._graph_numbers.setdefault(graph, next(_number))
        return note_lookup(self._listener, number, ids, found)

    def note_gradient(self, graph_number, ids, rows_grad, counts, sums):
        """Notes the gradient of a lookup, when a tape computes it.

        Args:
            graph_number: Of the graph that the lookup was traced in.
            ids: As of a `LookupGradient`.
            rows_grad: Its `values`.
            counts: Its `counts`.
            sums: Its `for_tape`.

        Raises:
            ValueError: In another graph.
        """
        graph = _graph()
        if self._graph_numbers.get(graph) != graph_number:
            raise ValueError(
                f"Table '{self.name}' was looked up in another tf.function than the one that "
                "computes its gradient. On parameter servers call the model, the tape and the "
                "optimizer in one tf.function."
            )
        stored = [graph.get_tensor_by_name(name) for name in self._stored.get(graph, ())]
        noted = LookupGradient(ids, rows_grad, counts, stored, sums)
        self._gradients.setdefault(graph, []).append(noted)

    def take_gradient(self, grads):
        """Returns the `SummedGradient` of this step.

        Args:
            grads: Per shard, what the tape gave for it: `tf.IndexedSlices`, or None.

        Raises:
            ValueError: If it was changed since.
        """
        noted = self._noted() or [self._of_tape(grads)]
        sums = [one.for_tape for one in noted]
        if not all(grad is None or _is_made_of(grad.values, sums) for grad in grads):
            raise ValueError(
                f"The gradient of table '{self.name}' was changed between the tape and the "
                "optimizer, which on parameter servers takes it from the lookup. Scale the loss in "
                "its place; clip by the optimizer's `clipnorm`, `global_clipnorm` or `clipvalue`. "
                "A LossScaleOptimizer cannot be used there: train in bfloat16 or float32."
            )
        ids, values = (
            tf.concat(parts, 0) for parts in zip(*((one.ids, one.values) for one in noted))
        )
        is_one = len(noted) == 1
        counts = noted[0].counts if is_one else tf.unique_with_counts(ids).count
        distinct, sums = sum_gradients(self.cache, ids, values)
        if padding := registry.table_spec(self.states[0].table).padding:
            sums, distinct, counts = without_padding(padding, sums, distinct, counts)
        stored = [wait for one in noted for wait in one.stored]
        return SummedGradient(distinct, sums, counts, stored)

    def _of_tape(self, grads):
        if self._num_lookups:
            raise ValueError(
                f"The gradient of table '{self.name}' was computed in another tf.function than the "
                "one that applies it. On parameter servers call the model, the tape and the "
                "optimizer in one tf.function."
            )
        parts = [
            (tf.cast(grad.indices, tf.int64) + start, grad.values)
            for grad, start in zip(grads, self.cache.row_starts)
            if grad is not None
        ]
        ids, values = (tf.concat(part, 0) for part in zip(*parts))
        return LookupGradient(ids, values, tf.unique_with_counts(ids).count, [], None)

    def _noted(self):
        """Returns and forgets gradients noted in this graph, or in one that it is a branch of."""
        graph = _graph()
        while graph is not None:
            noted, num = self._gradients.pop(graph, []), self._num_lookups.get(graph, 0)
            if len(noted) > num:
                raise ValueError(
                    f"The gradient of table '{self.name}' was computed {len(noted)} times for "
                    f"{num} lookups. On parameter servers a step computes it once."
                )
            if noted:
                if tf.executing_eagerly():
                    # All steps have one graph.
                    self._num_lookups[graph] = 0
                return noted
            graph = getattr(graph, "outer_graph", None)
        return []

    def push(self, gradient, step):
        """Returns a `Push` per shard for a `SummedGradient`."""
        with tf.control_dependencies(gradient.stored):
            return self._push(gradient.ids, gradient.values, gradient.num_lookups, step)

    def flush(self, step):
        """Returns all that this device holds, as a `Push` per shard, and forgets every row."""
        nothing = tf.zeros([0], tf.int64)
        rows = tf.zeros([0, self.cache.dim])
        return self._push(nothing, rows, tf.zeros([0], tf.int32), step, flush=True)

    def _push(self, *args, **kwargs):
        pushes = []
        for state, push in zip(self.states, push_rows(self.cache, *args, **kwargs), strict=True):
            sent = tf.cast(push.grads, self._wire_dtype)
            with tf.device(state.table.device):
                pushes.append(push._replace(grads=tf.cast(sent, tf.float32)))
        return pushes

    def cache_stats(self):
        counts = sum(state.worker_counters.numpy().sum(axis=0) for state in self.states)
        counted = dict(zip(WORKER_COUNTERS, map(int, counts), strict=True))
        del counted["worker_id"]
        return CacheStats(**counted)


def server_tables(groups, worker_cache, clip_value, wire_dtype="float32"):
    """Returns `ServerTable`s, and divides a worker's memory between them.

    Args:
        groups: Dict from a table's name to its shards' `TableState`s.
        worker_cache: `WorkerCache`.
        clip_value: As `ServerTable`'s.
        wire_dtype: "float32" or "bfloat16".

    Raises:
        ValueError: For another `wire_dtype`.
    """
    if wire_dtype not in ("float32", "bfloat16"):
        raise ValueError(f'`wire_dtype` must be "float32" or "bfloat16", got {wire_dtype!r}.')
    # Only rows in a pool sleep.
    wanted = {
        name: sum(pool_capacity(s.policy, s.num_rows) for s in states if s.policy is not None)
        for name, states in groups.items()
    }
    row_bytes = {
        name: 8 * int(states[0].table.shape[1]) + _ENTRY_BYTES for name, states in groups.items()
    }
    wanted_bytes = sum(wanted[name] * row_bytes[name] for name in groups)
    share = min(1.0, worker_cache.num_bytes / wanted_bytes) if wanted_bytes else 0.0
    return [
        ServerTable(
            states,
            name,
            int(share * wanted[name]),
            worker_cache.max_age,
            clip_value,
            wire_dtype,
        )
        for name, states in groups.items()
    ]


def _is_made_of(tensor, sources):
    """Whether all elements of a tensor are some of `sources`, by the graph; True where none is."""
    if None in sources or tf.executing_eagerly():
        return True
    if any(tensor is one for one in sources):
        return True
    if tensor.op.type == "Placeholder":  # of a branch
        outer = [o for o, inner in tensor.graph.captures if inner is tensor]
        return bool(outer) and _is_made_of(outer[0], sources)
    num_inputs = {"ConcatV2": -1, "SplitV": 1, "Cast": 1, "Identity": 1}.get(tensor.op.type, 0)
    inputs = list(tensor.op.inputs)[:num_inputs]
    return bool(inputs) and all(_is_made_of(one, sources) for one in inputs)


def _graph():
    """Returns what is being traced, or the graph that stands for eager execution."""
    return tf.compat.v1.get_default_graph()
