"""The tables that an optimizer trains: their state, and what a step does to them."""

import dataclasses
import itertools
import warnings

import tensorflow as tf

from tf_slipstream import _compat
from tf_slipstream.engine import registry
from tf_slipstream.engine.clipping import clip_scales
from tf_slipstream.engine.constraints import constrain_rows, constrain_table
from tf_slipstream.engine.grouping import groups
from tf_slipstream.engine.one_device import OneDevice
from tf_slipstream.engine.padding import without_padding
from tf_slipstream.engine.replicas import Replicas
from tf_slipstream.engine.server_table import is_on_servers, num_tasks
from tf_slipstream.engine.servers import Servers
from tf_slipstream.ops import _library
from tf_slipstream.ops.apply_rows import apply_rows
from tf_slipstream.ops.live_slices import live_slices
from tf_slipstream.ops.settle_rows import settle_rows
from tf_slipstream.state import schema
from tf_slipstream.state.resizing import Source, fill_state, num_entries_to_evict
from tf_slipstream.state.stats import SkipStats, sum_stats
from tf_slipstream.state.table import (
    counters_of,
    field_counts_of,
    new_table_state,
    num_sleeping,
    pool_capacity,
    read_policy_states,
    set_counter,
    set_policy_state,
)

# A counter that is never negative and that every saved state has.
_LOADED_COLUMN = "num_refused_steps"


class Tables:
    """The tables among some variables, and all that their updates need.

    Args:
        variables: Trainable variables, of Keras or TensorFlow.
        inner: `Inner`, what the tables are trained by.
        policy: The `StalenessPolicy` of layers that say `"default"`, or None.
        strategy: `tf.distribute.Strategy` of the variables.
        add_variable: `add_variable(shape, initializer, dtype, name)`, the optimizer's.
        iterations: The variable that counts steps.
        server_options: Pair of `worker_cache` and `wire_dtype`, for parameter servers.

    Attributes:
        dense_variables: The variables that are no tables.
    """

    def __init__(
        self, variables, inner, policy, strategy, add_variable, iterations, server_options
    ):
        self._inner, self._strategy, self._iterations = inner, strategy, iterations
        self._add_variable = add_variable
        self._states, self._variables = {}, {}  # by the id of the table's tf.Variable
        names = set()
        self.dense_variables = []
        for variable in variables:
            spec = _spec_of(variable)
            if spec is None:
                self.dense_variables.append(variable)
                continue
            name = _unused_name(_shard_name(spec, variable), names)
            names.add(name)
            self._add(variable, name, policy if spec.policy == "default" else spec.policy)
        if is_on_servers(strategy):
            self._way = Servers(inner, self._by_table(), iterations, *server_options)
        elif strategy is not None and strategy.num_replicas_in_sync > 1:
            self._way = Replicas(strategy)
        else:
            self._way = OneDevice()

    def _add(self, variable, name, policy):
        table = _compat.tf_variable(variable)
        if policy is not None and _library.native_ops(table.device) is None:
            warnings.warn(
                f"Every row of table '{name}' stays live: its policy needs tf_slipstream's native "
                f"ops, which there are none of here for device '{table.device}'.",
                RuntimeWarning,
                stacklevel=2,
            )
            policy = None
        self._states[id(table)] = self._new_state(table, name, policy)
        self._variables[id(table)] = variable

    def _new_state(self, table, name, policy):
        def add(suffix, shape, dtype, value):
            with self._strategy.extended.colocate_vars_with(table):
                added = self._add_variable(
                    shape=shape,
                    # One fill, where Keras's Constant needs the memory twice.
                    initializer=lambda shape, dtype=None: tf.broadcast_to(
                        tf.constant(value, dtype), shape
                    ),
                    dtype=dtype,
                    name=f"{name}_{suffix}",
                )
            return _compat.tf_variable(added)

        registry.add_holder(table, self)
        on_servers = is_on_servers(self._strategy)
        return new_table_state(
            add,
            name,
            table,
            self._inner.rule,
            policy,
            row_int=_library.row_int_dtype(table.device),
            has_clock=self._inner.has_clock,
            num_workers=num_tasks("worker") if on_servers else None,
            local_held=self._new_local_held(table, policy),
            row_ends=() if on_servers else registry.table_spec(table).row_ends,
        )

    def _new_local_held(self, table, policy):
        """Returns where each of several replicas holds gradients; None where the pool holds them.

        The pool does where gradients are clipped, which takes their sums over all replicas, and on
        a GPU, where no kernel tells rows that travel from rows that sleep.
        """
        inner = self._inner
        is_clipped = inner.clipnorm or inner.global_clipnorm or inner.clip_value
        is_alone = self._strategy.num_replicas_in_sync == 1
        is_gpu = _library.is_gpu(table.device)
        if policy is None or policy.on_stale != "defer" or is_clipped or is_alone or is_gpu:
            return None
        shape = [pool_capacity(policy, int(table.shape[0])), int(table.shape[1])]
        # A checkpoint then has the sum over replicas, and gives each an equal part back.
        with self._strategy.extended.colocate_vars_with(table):
            return tf.Variable(
                lambda: tf.zeros(shape),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
                name="local_held",
            )

    def _by_table(self):
        """Returns a dict from a table's name to its shards: pairs of a variable and its state."""
        found, names = {}, {}
        for place, state in self._states.items():
            spec = registry.table_spec(state.table)
            name = names.setdefault(id(spec), _unused_name(spec.name, found))
            found.setdefault(name, []).append((self._variables[place], state))
        return found

    @property
    def states(self):
        """The `TableState`s, in the order of their variables."""
        return list(self._states.values())

    @property
    def by_name(self):
        """Dict from a table's name to its `TableState`."""
        return {state.name: state for state in self._states.values()}

    @property
    def local_held(self):
        """What replicas hold: in checkpoints alone, and 0 whenever anything else is saved."""
        return [s.local_held for s in self._states.values() if s.local_held is not None]

    def state_of(self, variable):
        """Returns the `TableState` of a variable; None where it is no table of these."""
        return self._states.get(id(_compat.tf_variable(variable)))

    def is_kept_by_workers(self, variable):
        """Whether workers may keep rows of a table, or of a shard of one, on parameter servers."""
        return is_on_servers(self._strategy) and self._way.is_kept_by_workers(variable)

    def replace(self, old, new, ranges):
        """Has a table of another number of rows take the place of one, with its rows and state.

        Args:
            old: Variable of a table of these, of Keras or TensorFlow.
            new: Variable of the table that takes its place, with the values of its new rows.
            ranges: List of `RowRange`: which rows of the new table are which of the old one.

        Returns:
            The `TableState`s of the two.
        """
        before, table = self.state_of(old), _compat.tf_variable(new)
        if num_entries_to_evict(before, ranges, int(table.shape[0])):
            self.settle()
        after = self._new_state(table, before.name, before.policy)
        fill_state(after, [Source(before, ranges)])
        states = [after if state is before else state for state in self.states]
        self._variables[id(table)] = new
        self._variables = {id(s.table): self._variables[id(s.table)] for s in states}
        self._states = {id(state.table): state for state in states}
        return before, after

    def adopt(self, table, sources):
        """Gives a table the rows and the state of tables of another optimizer.

        Args:
            table: `tf.Variable` of a table of these, for which nothing is held.
            sources: List of `Source`.
        """
        fill_state(self._states[id(table)], sources)

    @property
    def rule(self):
        """The `UpdateRule` of the tables."""
        return self._inner.rule

    def apply(self, tables, dense, apply_dense, loss_scale, are_summed):
        """Does a training step.

        Args:
            tables: List of pairs of a table's gradient and its `TableState`.
            dense: List of pairs of a gradient and another variable.
            apply_dense: `apply_dense(dense, are_summed)` updates the others and counts the step.
            loss_scale: What gradients are multiplied by, or None.
            are_summed: Whether the caller has summed gradients over replicas.
        """
        if isinstance(self._way, Servers):
            return self._way.apply(tables, dense, apply_dense, loss_scale)
        states = [state for _, state in tables]
        settings = self._inner.settings_of_step(self._num_steps())
        slices = [_as_slices(grad, state, loss_scale) for grad, state in tables]
        slices, num_lookups = self._way.exchange(states, slices, settings, are_summed)
        if self._inner.global_clipnorm and self._inner.is_of_all:
            dense, are_summed = self._way.sum_dense(dense, are_summed)
        scales = None
        if states:
            scales, dense = clip_scales(
                self._inner,
                lambda: _squared_norms(states, slices, settings.step),
                dense,
                loss_scale,
            )
        done = self._apply_rows(states, slices, settings, scales, num_lookups)
        # A step that fails in a table has then changed no dense variable either.
        with tf.control_dependencies(done):
            apply_dense(dense, are_summed)
            for state, one in zip(states, slices):
                constraint = self._constraint_of(state)
                if constraint is not None:
                    ids = _rows_written(state, one.indices, settings.step)
                    constrain_rows(constraint, state, ids)

    def _apply_rows(self, states, slices, settings, scales, num_lookups):
        done = []
        position = {id(state): i for i, state in enumerate(states)}
        for group_states, group_slices in groups(states, slices):
            places = [position[id(state)] for state in group_states]
            done += apply_rows(
                self._inner.rule,
                group_states,
                group_slices,
                settings,
                None if scales is None else [scales[i] for i in places],
                self._weight_decays(group_states),
                None if num_lookups is None else [num_lookups[i] for i in places],
            )
        return done

    def _weight_decays(self, states):
        return [self._inner.weight_decay_of(self._variables[id(s.table)]) for s in states]

    def _constraint_of(self, state):
        return self._variables[id(state.table)].constraint

    @property
    def num_steps(self):
        """Steps so far, int."""
        return int(self._num_steps())

    def _num_steps(self):
        return tf.cast(tf.convert_to_tensor(self._iterations), tf.int64)

    def lookup(self, shard, ids):
        """Returns rows `[num_lookups, dim]` of a table on parameter servers, on a worker."""
        return self._way.lookup(shard, ids)

    @property
    def is_on_servers(self):
        return isinstance(self._way, Servers)

    @property
    def is_on_one_device(self):
        return isinstance(self._way, OneDevice)

    def settle(self, wake=False):
        """Applies all that is held, and what rows are behind by that missed steps.

        The tables are then as if every step had reached every row. Eagerly, outside of a strategy's
        replicas, and under `MultiWorkerMirroredStrategy` on every worker.

        Args:
            wake: Whether rows that sleep wake; else they sleep on.
        """
        self.check_refused()
        if self._settled_states():
            if self.is_on_servers:
                self._way.flush_workers()
            self._way.run(self._wake if wake else self._settle)

    def _settled_states(self):
        moves = self._inner.rule.moves_when_missed or self._inner.decays_weights
        return [s for s in self._states.values() if moves or s.policy is not None]

    def _wake(self):
        self._settle(wake=True)

    def _settle(self, wake=False):
        states = self._settled_states()
        settings = self._inner.settings_after(self._num_steps())
        self._way.exchange_held(states)
        done = []
        for group, _ in groups(states, states):
            decays = self._weight_decays(group)
            done += settle_rows(self._inner.rule, group, settings, decays, wake)
        with tf.control_dependencies(done):
            for state in states:
                constraint = self._constraint_of(state)
                if constraint is not None:
                    constrain_table(constraint, state)

    def forget(self, table):
        """Ends what momentum would still do to a table that somebody else has written.

        Args:
            table: `tf.Variable`, settled before it was written.
        """
        state = self._states.get(id(table))
        if state is None:
            return
        for slot, variable in zip(self._inner.rule.slots, state.slots, strict=True):
            if slot.name in self._inner.rule.momentum_slots:
                # Made on its server: no whole slot crosses the network.
                with tf.device(variable.device):
                    variable.assign(tf.zeros(variable.shape, variable.dtype))

    def begin_load(self, tables):
        """Prepares `end_load`, before weights are read from a file.

        Args:
            tables: `tf.Variable`s, those of others among them.
        """
        states = self._states_of(tables)
        for state, counters in zip(states, counters_of(states)):
            if counters[_LOADED_COLUMN] >= 0:
                set_counter(state, _LOADED_COLUMN, _not_loaded(counters[_LOADED_COLUMN]))

    def end_load(self, tables):
        """Returns those of the tables whose state here was not read, in whatever way."""
        states, left = self._states_of(tables), []
        for state, counters in zip(states, counters_of(states)):
            if counters[_LOADED_COLUMN] < 0:
                set_counter(state, _LOADED_COLUMN, _not_loaded(counters[_LOADED_COLUMN]))
                left.append(state.table)
        return left

    def _states_of(self, tables):
        states = (self._states.get(id(table)) for table in tables)
        return [state for state in states if state is not None]

    def flush_workers(self):
        """Sends what workers hold to the parameter servers, which hold it on: no row wakes."""
        if self.is_on_servers:
            self._way.flush_workers()

    def check_refused(self):
        """Raises, once, where a GPU refused a step: there may be no later step to tell."""
        states = self.states
        for state, counters in zip(states, counters_of(states)):
            num_refused = counters["num_refused_steps"]
            if num_refused > 0:
                set_counter(state, "num_refused_steps", 0)
                raise tf.errors.InvalidArgumentError(
                    None,
                    None,
                    f"table '{state.name}': {num_refused} step(s) had an id outside of the table, "
                    "or a gradient that is NaN or infinite, and changed no table. Look at the loss "
                    "and the inputs, lower the learning rate or clip gradients.",
                )

    @property
    def strictness(self):
        states = [state for state in self.states if state.policy is not None]
        return read_policy_states(states[:1])[0]["strictness"] if states else 1.0

    @strictness.setter
    def strictness(self, strictness):
        for state in self.states:
            if state.policy is not None:
                set_policy_state(state, "strictness", strictness)

    @property
    def states_by_table(self):
        """Dict from a table's name to its `TableState`s: its shards' on parameter servers."""
        if self.is_on_servers:
            return dict(self._way.states)
        return {state.name: [state] for state in self.states}

    @property
    def writes_summaries(self):
        """Whether this process is the one of a strategy's that writes logs."""
        return self._strategy is None or bool(self._strategy.extended.should_save_summary)

    def stats(self, check=True):
        """Returns `SkipStats` by the name of a table.

        Args:
            check: Whether to raise where a GPU refused a step.
        """
        if check:
            self.check_refused()
        stats = _stats_of(self.states)
        if not self.is_on_servers:
            return stats
        return {
            name: sum_stats([stats[state.name] for state in states])
            for name, states in self._way.states.items()
        }

    def field_stats(self, table):
        """Returns a list of `SkipStats`, one for each field of a collection that has rows.

        Args:
            table: The collection's `tf.Variable`.

        Raises:
            ValueError: Where lookups are not counted by field.
        """
        self.check_refused()
        state = self._states[id(table)]
        if self.is_on_servers or _library.is_gpu(table.device):
            raise ValueError(
                f"Lookups of collection '{state.name}' are counted by field on CPU devices alone, "
                "and not on parameter servers or a GPU. `optimizer.skip_stats()` has the counts of "
                "all its fields together."
            )
        (of_all,) = _stats_of([state]).values()
        found, start = [], 0
        for counts, end in zip(field_counts_of(state), state.row_ends, strict=True):
            found.append(
                dataclasses.replace(
                    of_all,
                    **dict(zip(schema.ROW_COUNTS, map(int, counts))),
                    num_stale_rows=num_sleeping(state, start, end),
                    num_rows=end - start,
                )
            )
            start = end
        return found

    def cache_stats(self):
        """Returns `CacheStats` by the name of a table; none but on parameter servers."""
        return self._way.cache_stats() if self.is_on_servers else {}


def _not_loaded(number):
    """Returns what stands for a number >= 0 while state is read, and the number for that."""
    return -1 - number


def _spec_of(variable):
    """Returns the `TableSpec` of a variable of Keras or TensorFlow; None where it is no table."""
    table = _compat.tf_variable(variable)
    spec = registry.table_spec(table) or registry.table_spec(variable)
    if spec is not None:
        registry.add_table(table, spec)
    return spec


def _as_slices(grad, state, loss_scale):
    if not isinstance(grad, tf.IndexedSlices):
        # A regularizer's gradient, say: every row has one.
        grad = tf.IndexedSlices(grad, tf.range(state.num_rows, dtype=tf.int64))
    elif padding := registry.table_spec(state.table).padding:
        grad = tf.IndexedSlices(*without_padding(padding, grad.values, grad.indices))
    values = tf.cast(grad.values, tf.float32)
    if loss_scale:
        values /= loss_scale
    return tf.IndexedSlices(values, grad.indices, tf.constant([state.num_rows, state.dim]))


def _rows_written(state, ids, step):
    """Returns the rows that a step may have written."""
    if state.policy is None or not state.policy.refresh_every:
        return ids
    rows = state.pool_ints[:, schema.POOL_INTS.index("row")]
    num_entries = state.policy_state[schema.POLICY_STATE.index("num_entries")]
    is_refresh = step % state.policy.refresh_every == 0
    num_flushed = tf.where(is_refresh, tf.cast(num_entries, tf.int32), 0)
    return tf.concat([tf.cast(ids, tf.int64), rows[:num_flushed]], axis=0)


def _squared_norms(states, slices, step):
    norms = {}
    for group_states, group_slices in groups(states, slices):
        found = live_slices(group_states, group_slices, step)
        for state, one in zip(group_states, found, strict=True):
            norms[id(state)] = tf.reduce_sum(tf.square(one.values))
    return [norms[id(state)] for state in states]


def _stats_of(states):
    """Returns `SkipStats` by name."""
    with_policy = [state for state in states if state.policy is not None]
    policy_states = dict(
        zip([state.name for state in with_policy], read_policy_states(with_policy), strict=True)
    )
    stats = {}
    for state, counters in zip(states, counters_of(states), strict=True):
        policy = policy_states.get(state.name, dict.fromkeys(schema.POLICY_STATE, 0.0))
        stats[state.name] = SkipStats(
            **{name: counters[name] for name in schema.ROW_COUNTS},
            num_stale_rows=int(policy["num_sleeping"]),
            num_rows=state.num_rows,
            drift_threshold=policy["threshold"] * policy["strictness"],
        )
    return stats


def _shard_name(spec, variable):
    """Returns the name of a table, or of one of its shards."""
    shards = spec.shard_variables()
    if len(shards) < 2:
        return spec.name
    table = _compat.tf_variable(variable)
    place = [_compat.tf_variable(shard) is table for shard in shards].index(True)
    return f"{spec.name}_{place}"


def _unused_name(name, used):
    """Returns `name`, with a number behind it where it is one of `used`.

    Two models may share an optimizer, and each may have a layer of that name.
    """
    numbered = (f"{name}_{number}" for number in itertools.count(1))
    return next(one for one in itertools.chain([name], numbered) if one not in used)
