"""A training step of tables on parameter servers, as it runs on a worker."""

import weakref

import tensorflow as tf

from tf_slipstream import _keras
from tf_slipstream.distribute.parameter_server import num_tasks, server_tables
from tf_slipstream.ops.apply_rows import StepSettings


class TablesOnServers:
    """What a `SlipstreamOptimizer` does with tables on parameter servers.

    Args:
        optimizer: The `SlipstreamOptimizer`.
        groups: Dict from a table's name to its shards in order: pairs of the Keras variable and its
            `TableState`.
    """

    def __init__(self, optimizer, groups):
        for name, pairs in groups.items():
            if any(variable.constraint is not None for variable, _ in pairs):
                raise ValueError(
                    f"SlipstreamEmbedding '{name}' has an `embeddings_constraint`, which under "
                    "ParameterServerStrategy would overwrite what other workers do meanwhile. "
                    "Construct it without."
                )
        self.states = {name: [state for _, state in pairs] for name, pairs in groups.items()}
        self._optimizer = weakref.ref(optimizer)
        self._decays = {
            id(state): optimizer.weight_decay_of(variable)
            for pairs in groups.values()
            for variable, state in pairs
        }
        clip_value = float(optimizer.inner_optimizer.clipvalue or 0)
        tables = server_tables(
            self.states, optimizer.worker_cache, clip_value, optimizer.wire_dtype
        )
        self._tables = {table.name: table for table in tables}
        self._by_shard = {id(state.table): table for table in tables for state in table.states}
        self._steps = weakref.WeakKeyDictionary()  # by the graph of a step
        self._flushes = None

    def lookup(self, shard, ids):
        """Returns rows float32 `[num_lookups, dim]` of the table that has this shard."""
        return self._by_shard[id(shard)].lookup(ids, self._step())

    def apply(self, grads, dense):
        """Does a step.

        Args:
            grads: List of pairs of a shard's gradient and its `TableState`.
            dense: List of pairs of a gradient and another variable.
        """
        optimizer = self._optimizer()
        tables, gradients = self._summed(grads, optimizer.loss_scale_factor)
        scales, dense = optimizer.clip_scales(
            lambda: [tf.reduce_sum(tf.square(one.values)) for one in gradients], dense
        )
        for gradient, scale in zip(gradients, scales or ()):
            gradient.values *= scale
        states, slices, pushes = [], [], []
        for table, gradient in zip(tables, gradients):
            for state, push in zip(table.states, table.push(gradient, self._step()), strict=True):
                states.append(state)
                slices.append(tf.IndexedSlices(push.grads, push.ids))
                pushes.append(push)
        done = self._apply_pushes(states, slices, pushes, self._step())
        with tf.control_dependencies(done):
            if dense:
                _keras.apply_to(optimizer.inner_optimizer, *zip(*dense), are_summed=True)
            else:
                optimizer.iterations.assign_add(1)

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

    def _step(self):
        """Returns the step to come, read from its server once."""
        graph = tf.compat.v1.get_default_graph() if tf.inside_function() else None
        if graph in self._steps:
            return self._steps[graph]
        counter = tf.convert_to_tensor(self._optimizer().iterations)
        step = tf.cast(counter, tf.int64) + 1
        if graph is not None:
            self._steps[graph] = step
        return step

    def _summed(self, grads, loss_scale_factor):
        """Returns the tables that have gradients, and the `SummedGradient` of each."""
        by_table = {}
        for grad, state in grads:
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
            if loss_scale_factor:
                gradient.values /= loss_scale_factor
            gradients.append(gradient)
        return tables, gradients

    def _apply_pushes(self, states, slices, pushes, step):
        optimizer = self._optimizer()
        settings = StepSettings(
            step=step,
            learning_rate=_keras.current_learning_rate(optimizer.inner_optimizer),
        )
        decays = [self._decays[id(state)] for state in states]
        return optimizer.apply_tables(states, slices, settings, None, decays, pushes=pushes)

    def _flush_of(self, task):
        device = f"/job:worker/replica:0/task:{task}/device:CPU:0"

        @tf.function
        def flush():
            states, slices, pushes = [], [], []
            step = self._step() - 1  # the last one
            for table in self._tables.values():
                with tf.device(device):
                    pushed = table.flush(step)
                states += table.states
                slices += [tf.IndexedSlices(push.grads, push.ids) for push in pushed]
                pushes += pushed
            with tf.control_dependencies(self._apply_pushes(states, slices, pushes, step)):
                return tf.constant(True)

        return flush
