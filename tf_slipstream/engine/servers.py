"""The step of tables on parameter servers, as it runs on a worker."""

import weakref

import tensorflow as tf

from tf_slipstream.engine.clipping import clip_scales
from tf_slipstream.engine.grouping import groups
from tf_slipstream.engine.one_device import OneDevice
from tf_slipstream.engine.server_table import num_tasks, server_tables
from tf_slipstream.ops.apply_pushes import apply_pushes


class Servers(OneDevice):
    """What a worker holds and pushes: docs/reference/parameter_servers.md.

    Args:
        inner: `Inner`.
        groups: Dict from a table's name to its shards in order: pairs of the Keras variable and its
            `TableState`.
        iterations: The variable that counts steps.
        worker_cache: `WorkerCache`.
        wire_dtype: In which rows and gradients travel.

    Attributes:
        states: Dict from a table's name to its shards' `TableState`s.

    Raises:
        ValueError: For a table with a constraint, or one that is not float32.
    """

    def __init__(self, inner, shards, iterations, worker_cache, wire_dtype):
        for name, pairs in shards.items():
            if any(variable.constraint is not None for variable, _ in pairs):
                raise ValueError(
                    f"SlipstreamEmbedding '{name}' has an `embeddings_constraint`, which under "
                    "ParameterServerStrategy would overwrite what other workers do meanwhile. "
                    "Construct it without."
                )
            dtype = pairs[0][1].table.dtype
            if dtype != tf.float32:
                raise ValueError(
                    f"SlipstreamEmbedding '{name}' has a table of {dtype.name}, and on parameter "
                    "servers tables are float32. Construct it with dtype='mixed_bfloat16'; where "
                    "bytes are slow, set `optimizer.wire_dtype = 'bfloat16'`."
                )
        self._inner, self._iterations = inner, iterations
        self.states = {name: [state for _, state in pairs] for name, pairs in shards.items()}
        self._decays = {
            id(state): inner.weight_decay_of(variable)
            for pairs in shards.values()
            for variable, state in pairs
        }
        tables = server_tables(self.states, worker_cache, inner.clip_value, wire_dtype)
        self._tables = {table.name: table for table in tables}
        self._by_shard = {id(state.table): table for table in tables for state in table.states}
        self._num_steps = weakref.WeakKeyDictionary()  # by the graph of a step
        self._flushes = None

    def lookup(self, shard, ids):
        """Returns rows float32 `[num_lookups, dim]` of the table that has this shard."""
        return self._by_shard[id(shard)].lookup(ids, self._read_iterations() + 1)

    def is_kept_by_workers(self, shard):
        """Whether workers may keep rows of the table that has this shard."""
        return self._by_shard[id(shard)].cache.capacity > 0

    def apply(self, tables, dense, apply_dense, loss_scale):
        """Does a step; arguments as in `Tables.apply`."""
        tables, gradients = self._summed(tables, loss_scale)
        scales, dense = clip_scales(
            self._inner,
            lambda: [tf.reduce_sum(tf.square(one.values)) for one in gradients],
            dense,
            loss_scale,
        )
        for gradient, scale in zip(gradients, scales or ()):
            gradient.values *= scale
        iterations = self._read_iterations()
        pushes = []
        for table, gradient in zip(tables, gradients):
            pushed = table.push(gradient, iterations + 1)
            pushes += zip(table.states, pushed, strict=True)
        done = self._apply_pushes(pushes, self._inner.settings_of_step(iterations))
        with tf.control_dependencies(done):
            apply_dense(dense, are_summed=True)

    def flush_workers(self):
        """Applies what workers hold, and makes them forget every row.

        A worker that does not answer is left out, and what it held is lost.
        """
        if self._flushes is None:
            self._flushes = [self._flush_of(task) for task in range(num_tasks("worker"))]
        for flush in self._flushes:
            try:
                flush()
            except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError):
                continue

    def cache_stats(self):
        return {name: table.cache_stats() for name, table in self._tables.items()}

    def _read_iterations(self):
        """Returns how many steps there were, read from its server once."""
        graph = tf.compat.v1.get_default_graph() if tf.inside_function() else None
        if graph in self._num_steps:
            return self._num_steps[graph]
        iterations = tf.cast(tf.convert_to_tensor(self._iterations), tf.int64)
        if graph is not None:
            self._num_steps[graph] = iterations
        return iterations

    def _summed(self, pairs, loss_scale):
        """Returns the tables that have gradients, and the `SummedGradient` of each."""
        by_table = {}
        for grad, state in pairs:
            if not isinstance(grad, tf.IndexedSlices):
                raise ValueError(
                    f"The gradient of table '{state.name}' is dense, and would cross the network "
                    "in every step: look the table up with its layer alone, without a regularizer."
                )
            table = self._by_shard[id(state.table)]
            by_table.setdefault(table.name, {})[id(state)] = grad
        tables = [self._tables[name] for name in by_table]
        gradients = []
        for table in tables:
            of_table = by_table[table.name]
            gradient = table.take_gradient([of_table.get(id(state)) for state in table.states])
            if loss_scale:
                gradient.values /= loss_scale
            gradients.append(gradient)
        return tables, gradients

    def _apply_pushes(self, pushes, settings):
        """Applies pairs of a `TableState` and its `Push`."""
        done = []
        states, pushes = zip(*pushes)
        for group_states, group_pushes in groups(states, pushes):
            decays = [self._decays[id(state)] for state in group_states]
            done += apply_pushes(self._inner.rule, group_states, group_pushes, settings, decays)
        return done

    def _flush_of(self, task):
        device = f"/job:worker/replica:0/task:{task}/device:CPU:0"

        @tf.function
        def flush():
            pushes = []
            iterations = self._read_iterations()
            for table in self._tables.values():
                with tf.device(device):
                    pushed = table.flush(iterations)
                pushes += zip(table.states, pushed, strict=True)
            settings = self._inner.settings_after(iterations)
            with tf.control_dependencies(self._apply_pushes(pushes, settings)):
                return tf.constant(True)

        return flush
