"""The wrapping optimizer."""

import itertools
import weakref

import numpy as np
import tensorflow as tf

from tf_slipstream import _keras, update_rules
from tf_slipstream.constraints import constrain_rows
from tf_slipstream.distribute import parameter_server
from tf_slipstream.distribute.parameter_server_step import TablesOnServers
from tf_slipstream.distribute.replicas import exchange_rows, num_replicas
from tf_slipstream.embedding import table_spec, wake_rows_of
from tf_slipstream.ops._library import row_int_dtype
from tf_slipstream.ops.apply_rows import StepSettings, apply_rows
from tf_slipstream.ops.live_slices import live_slices
from tf_slipstream.ops.staleness import (
    POLICY_STATES,
    POOL_INTS,
    initial_threshold,
    pool_capacity,
)
from tf_slipstream.ops.table_state import (
    COUNTERS,
    NUM_COUNTERS,
    NUM_REFUSED_STEPS,
    NUM_WORKER_COUNTERS,
    TableState,
)
from tf_slipstream.policy import as_policy, policy_from_config, policy_to_config
from tf_slipstream.row_wise_adagrad import RowWiseAdagrad
from tf_slipstream.skip_stats import SkipStats, sum_stats


@_keras.register_serializable
class SlipstreamOptimizer(_keras.WrappingOptimizer):
    """Trains the tables of `SlipstreamEmbedding`s by sparse rules, all else by `inner`.

    A step reads and writes only the rows that it looked up, with the update rule, hyperparameters,
    learning rate (schedules too), weight decay and clipping of `inner`. Gradients of repeated ids
    are summed first, norms for clipping are those of the sums. Dense variables go to `inner`
    untouched.

    What becomes of a row that a step does not look up: nothing is written. Rules with moments (SGD
    with momentum, Adam, AdamW, RMSprop) decay a row's moments for the steps it missed when it is
    next looked up; weight decay acts in the steps that look a row up.

    If an id is outside its table, or a summed gradient is NaN or infinite, the step fails with the
    table's name before any variable has changed.

    Args:
        inner: A Keras `SGD`, `Adagrad`, `Adam`, `AdamW`, `RMSprop` or `Ftrl`, or `RowWiseAdagrad`.
            For float16 put the `LossScaleOptimizer` around the `SlipstreamOptimizer`.
        policy: When rows of tables whose layer says `policy="default"` are stale: a
            `StalenessPolicy`, the name of a preset (`"conservative"`, `"balanced"`,
            `"aggressive"`), or None: never.
        name: String.

    Attributes:
        worker_cache: What workers keep of tables on parameter servers, a
            `distribute.WorkerCache`. To be set before the optimizer is built, as the next.
        wire_dtype: In which rows and their gradients travel between workers and parameter servers,
            `"float32"` or `"bfloat16"`: half of the bytes, each value rounded to 8 bits of
            precision. Tables, slots and what is held stay float32. A `mixed_bfloat16` layer rounds
            the rows that it looks up all the same.

    Raises:
        ValueError: For an `inner` without sparse rule, or with `use_ema` or
            `gradient_accumulation_steps`, which would read and write whole tables.

    Example:

    ```python
    model.compile(
        optimizer=slipstream.SlipstreamOptimizer(keras.optimizers.Adagrad(0.05)),
        loss="binary_crossentropy",
    )
    ```
    """

    def __init__(self, inner, policy=None, name="slipstream"):
        self._check_inner(inner)
        policy = as_policy(policy)
        super().__init__(inner, name)
        self.policy = policy
        self._rule = _update_rule(inner)
        self.worker_cache = parameter_server.WorkerCache()
        self.wire_dtype = "float32"
        self._states = {}
        self._tables = list
        self._local_held = []
        self._servers = None

    @staticmethod
    def _check_inner(inner):
        if _update_rule(inner) is None:
            names = ", ".join(update_rules.rules_by_optimizer())
            hint = ""
            if type(inner).__name__.startswith("LossScaleOptimizer"):
                hint = " Put the LossScaleOptimizer around the SlipstreamOptimizer instead."
            raise ValueError(
                f"SlipstreamOptimizer needs a sparse update rule for its inner optimizer, and has "
                f"them for {names} of {_keras.keras.__name__}; got {inner!r}.{hint}"
            )
        for argument in ("use_ema", "gradient_accumulation_steps"):
            if getattr(inner, argument, None):
                raise ValueError(
                    f"SlipstreamOptimizer cannot be used with `{argument}` "
                    f"(got {getattr(inner, argument)!r}): it would read and write every row of "
                    f"every table. Construct {type(inner).__name__} without it."
                )

    def _build(self, variables):
        strategy = self._distribution_strategy
        on_servers = parameter_server.is_on_servers(strategy)
        if on_servers:
            parameter_server.check_tasks()
        self.inner_optimizer.build([v for v in variables if table_spec(v) is None])
        names, tables = set(), []
        for variable in variables:
            spec = table_spec(variable)
            if spec is not None:
                # Two models may share an optimizer, and each may have a layer of that name.
                name = spec.name
                if len(spec.shards) > 1:
                    shards = [*map(_keras.tf_variable, spec.shards)]
                    place = [shard is _keras.tf_variable(variable) for shard in shards]
                    name = f"{name}_{place.index(True)}"
                name = _unlike(names, name)
                names.add(name)
                key = self._var_key(variable)
                policy = self.policy if spec.policy == "default" else spec.policy
                self._states[key] = self._add_state(variable, name, policy)
                _hold_for(weakref.ref(self), _keras.tf_variable(variable))
                tables.append((variable, self._states[key]))
        # No variables of Keras's: in checkpoints alone, and 0 whenever anything else is saved.
        held = [state.local_held for _, state in tables]
        self._local_held = [variable for variable in held if variable is not None]
        if on_servers:
            self._servers = TablesOnServers(self, _by_table(tables))
            _keras.count_atomically(self.inner_optimizer.iterations)
        # In a function, so that Keras does not take them for the optimizer's own variables.
        self._tables = lambda: tables

    def _add_state(self, variable, name, policy):
        table = _keras.tf_variable(variable)
        num_rows, dim = table.shape
        row_int = row_int_dtype(table.device)

        def add(suffix, shape, dtype, value=0):
            """Adds a variable with equal elements, or with equal rows."""
            with self._distribution_strategy.extended.colocate_vars_with(table):
                added = self.add_variable(
                    shape=shape,
                    # One fill, where Keras's Constant needs the memory twice.
                    initializer=lambda shape, dtype=None: tf.broadcast_to(
                        tf.constant(value, dtype), shape
                    ),
                    dtype=dtype,
                    name=f"{name}_{suffix}",
                )
            return _keras.tf_variable(added)

        slots = tuple(
            add(s.name, (num_rows, 1 if s.per_row else dim), "float32", s.initial_value)
            for s in self._rule.slots
        )
        return TableState(
            name=name,
            table=table,
            slots=slots,
            last_steps=add("last_steps", (num_rows,), row_int) if self._rule.has_moments else None,
            changed_rows=add("changed_rows", (-(-num_rows // 32),), row_int),
            counters=add("counters", (NUM_COUNTERS,), "int64"),
            policy=policy,
            correlation=self._rule.correlation,
            worker_counters=self._add_worker_counters(add),
            **({} if policy is None else _policy_variables(policy, num_rows, dim, row_int, add)),
            local_held=self._add_local_held(table, policy),
        )

    def _add_local_held(self, table, policy):
        """Returns where each of several replicas holds gradients; None where the pool holds them.

        The pool does where gradients are clipped: that takes their sums over all replicas.
        """
        inner = self.inner_optimizer
        is_clipped = inner.clipnorm or inner.global_clipnorm or inner.clipvalue
        is_alone = self._distribution_strategy.num_replicas_in_sync == 1
        if policy is None or policy.on_stale != "defer" or is_clipped or is_alone:
            return None
        shape = [pool_capacity(policy, int(table.shape[0])), int(table.shape[1])]
        # A checkpoint then has the sum over replicas, and gives each an equal part back.
        with self._distribution_strategy.extended.colocate_vars_with(table):
            return tf.Variable(
                lambda: tf.zeros(shape),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
                name="local_held",
            )

    def _add_worker_counters(self, add):
        if not parameter_server.is_on_servers(self._distribution_strategy):
            return None
        num_workers = parameter_server.num_tasks("worker")
        return add("worker_counters", (num_workers, NUM_WORKER_COUNTERS), "int64")

    def _apply(self, grads, variables, are_summed):
        inner = self.inner_optimizer
        is_table = [self._var_key(v) in self._states for v in variables]
        dense = [(g, v) for g, v, table in zip(grads, variables, is_table) if not table]
        tables = [(g, v) for g, v, table in zip(grads, variables, is_table) if table]
        states = [self._states[self._var_key(v)] for _, v in tables]
        if self._servers is not None:
            return self._servers.apply([(g, s) for (g, _), s in zip(tables, states)], dense)
        slices = [self._as_slices(g, state) for (g, _), state in zip(tables, states)]
        settings = StepSettings(
            step=tf.cast(tf.convert_to_tensor(self.iterations), tf.int64) + 1,
            learning_rate=_keras.current_learning_rate(inner),
            clip_value=float(inner.clipvalue or 0),
        )
        num_lookups = None
        if num_replicas() > 1 and not are_summed:
            # Each replica then applies the same rows to its own copy, and copies stay alike.
            slices, num_lookups = _exchanged(states, slices, settings)
            if inner.global_clipnorm and dense:
                dense, are_summed = _sum_over_replicas(dense), True
        scales, dense = self._clip_by_norm(states, slices, dense, settings.step)
        decays = [self.weight_decay_of(v) for _, v in tables]
        done = self.apply_tables(states, slices, settings, scales, decays, num_lookups)
        # A step that fails in a table has then changed no dense variable either.
        with tf.control_dependencies(done):
            if dense:
                _keras.apply_to(inner, *zip(*dense), are_summed)
            else:
                inner.iterations.assign_add(1)
            for (_, variable), state, one in zip(tables, states, slices):
                if variable.constraint is not None:
                    ids = _with_flushed(state, one.indices, settings.step)
                    constrain_rows(variable.constraint, state, ids)

    def _as_slices(self, grad, state):
        if not isinstance(grad, tf.IndexedSlices):
            # A regularizer's gradient, say: every row has one.
            grad = tf.IndexedSlices(grad, tf.range(state.num_rows, dtype=tf.int64))
        values = tf.cast(grad.values, tf.float32)
        if self.loss_scale_factor:
            values /= self.loss_scale_factor
        return tf.IndexedSlices(values, grad.indices, tf.constant(list(state.table.shape)))

    def weight_decay_of(self, variable):
        decay = self.inner_optimizer.weight_decay
        return float(decay) if decay and self.inner_optimizer._use_weight_decay(variable) else 0.0

    def _clip_by_norm(self, states, slices, dense, step):
        """Returns a scale per table (None: no clipping by norm), and dense gradients scaled."""
        if not states:
            return None, dense
        return self.clip_scales(
            lambda: [
                tf.reduce_sum(tf.square(one.values))
                for group in _groups(states, slices)
                for one in live_slices(*group, step)
            ],
            dense,
        )

    def clip_scales(self, squares_of_tables, dense):
        """The same, given what returns each table's squared norm."""
        inner = self.inner_optimizer
        if not (inner.clipnorm or inner.global_clipnorm):
            return None, dense
        squares = squares_of_tables()
        num_tables = len(squares)
        if inner.clipnorm:
            return [_clip_scale(tf.sqrt(square), inner.clipnorm) for square in squares], dense
        for grad, _ in dense:
            unscaled = grad.values if isinstance(grad, tf.IndexedSlices) else grad
            if self.loss_scale_factor:
                unscaled /= self.loss_scale_factor
            squares.append(tf.reduce_sum(tf.square(tf.cast(unscaled, tf.float32))))
        # A NaN here is a dense variable's, and would pass into every table.
        norm = tf.debugging.check_numerics(
            tf.sqrt(tf.add_n(squares)), "The gradients' global norm. No variable was changed"
        )
        scale = _clip_scale(norm, inner.global_clipnorm)
        # `inner` then finds a norm within its bound and clips no more.
        return [scale] * num_tables, [(_scaled(g, scale), v) for g, v in dense]

    def apply_tables(self, states, slices, settings, scales, decays, num_lookups=None, pushes=None):
        done = []
        position = {id(state): i for i, state in enumerate(states)}
        for group_states, group_slices in _groups(states, slices):
            places = [position[id(state)] for state in group_states]
            done += apply_rows(
                self._rule,
                group_states,
                group_slices,
                settings,
                None if scales is None else [scales[i] for i in places],
                [decays[i] for i in places],
                None if num_lookups is None else [num_lookups[i] for i in places],
                None if pushes is None else [pushes[i] for i in places],
            )
        return done

    @property
    def tables(self):
        """Dict from a table's name to its `TableState`; empty before the optimizer is built."""
        return {state.name: state for state in self._states.values()}

    def wake_all(self):
        """Applies all gradients that are held, and makes every row live.

        `fit` does so at its end, and so do saving and exporting a model, with two exceptions before
        which you call it: legacy `.h5` files, and tf_keras's `save_weights` in the TensorFlow
        format. Call it eagerly, outside of a strategy's replicas, and under
        `MultiWorkerMirroredStrategy` on every worker. The learning rate is that of the step to
        come.
        """
        self._checked_counters()
        states = [state for state in self._states.values() if state.policy is not None]
        if not states or int(tf.convert_to_tensor(self.iterations)) == 0:
            return
        strategy = self._distribution_strategy
        if self._servers is not None:
            self._servers.flush_workers()
        if strategy is not None and strategy.num_replicas_in_sync > 1:
            tf.function(lambda: strategy.run(self._wake))()
        else:
            self._wake()

    def _wake(self):
        pairs = [(v, state) for v, state in self._tables() if state.policy is not None]
        states = [state for _, state in pairs]
        settings = StepSettings(
            step=tf.cast(tf.convert_to_tensor(self.iterations), tf.int64),
            learning_rate=_keras.current_learning_rate(self.inner_optimizer),
            wake_all=True,
        )
        nothing = [
            tf.IndexedSlices(tf.zeros([0, state.table.shape[1]]), tf.zeros([0], tf.int64))
            for state in states
        ]
        decays = [self.weight_decay_of(variable) for variable, _ in pairs]
        num_lookups = None
        if num_replicas() > 1:
            nothing, num_lookups = _exchanged(states, nothing, settings)
        done = self.apply_tables(states, nothing, settings, None, decays, num_lookups)
        with tf.control_dependencies(done):
            for variable, state in pairs:
                if variable.constraint is not None:
                    constrain_rows(variable.constraint, state, _popular_rows(state))

    @property
    def strictness(self):
        """What multiplies every table's threshold and longest sleep, in (0, 1]; 1 at first."""
        for state in self._states.values():
            if state.policy is not None:
                return float(state.policy_state.numpy()[POLICY_STATES.index("strictness")])
        return 1.0

    def set_strictness(self, strictness):
        """Sets `strictness`: the lower, the fewer rows are at rest and the shorter they sleep.

        Args:
            strictness: Number in (0, 1].
        """
        if not 0 < strictness <= 1:
            raise ValueError(f"`strictness` must be in (0, 1], got {strictness!r}.")
        if not self._states:
            raise ValueError(
                "`set_strictness` needs an optimizer that is built, with a table: call it after "
                "the first step, or after `optimizer.build(model.trainable_variables)`."
            )
        for state in self._states.values():
            if state.policy is not None:
                values = state.policy_state.numpy()
                values[POLICY_STATES.index("strictness")] = strictness
                state.policy_state.assign(values)

    def skip_stats(self):
        """Returns what skipping did to each table since training began.

        Returns:
            Dict from a table's name, which is its layer's, to its `SkipStats`. Empty before the
            first step.
        """
        stats = _stats_of(list(self._states.values()), self._checked_counters())
        if self._servers is not None:
            return {
                name: sum_stats([stats[state.name] for state in states])
                for name, states in self._servers.states.items()
            }
        return stats

    def cache_stats(self):
        """Returns what workers had of each table on parameter servers since training began.

        Returns:
            Dict from a table's name to its `distribute.CacheStats`. Empty without such tables.
        """
        return {} if self._servers is None else self._servers.cache_stats()

    def flush_workers(self):
        """Sends what workers hold to the parameter servers, which hold it on: no row wakes."""
        if self._servers is not None:
            self._servers.flush_workers()

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        # A checkpoint has the servers' variables, and has to have what workers hold. Restoring asks
        # as well, which does no harm.
        if save_type == "checkpoint" and tf.executing_eagerly():
            self.flush_workers()
        return super()._trackable_children(save_type, **kwargs)

    def lookup_on_servers(self, shard, ids):
        """Returns rows `[num_lookups, dim]` of the table that a shard is of; for its layer."""
        return self._servers.lookup(shard, ids)

    def _checked_counters(self):
        """Returns the counters int64 `[num_tables, NUM_COUNTERS]`.

        Raises, once, where a GPU refused a step: there may be no later step to tell.
        """
        states = list(self._states.values())
        if not states:
            return np.zeros([0, NUM_COUNTERS], np.int64)
        counters = tf.stack([state.counters for state in states]).numpy()
        for state, counted in zip(states, counters):
            num_refused = int(counted[NUM_REFUSED_STEPS])
            if num_refused > 0:
                counted[NUM_REFUSED_STEPS] = 0
                state.counters.assign(counted)
                raise tf.errors.InvalidArgumentError(
                    None,
                    None,
                    f"table '{state.name}': {num_refused} step(s) had an id outside of the table, "
                    "or a gradient that is NaN or infinite, and changed no table. Look at the loss "
                    "and the inputs, lower the learning rate or clip gradients.",
                )
        return counters

    def save_own_variables(self, store):
        self.wake_all()
        super().save_own_variables(store)

    def load_own_variables(self, store):
        super().load_own_variables(store)
        # Nothing was held when it was saved.
        for held in self._local_held:
            held.assign(tf.zeros(held.shape))

    def finalize_variable_values(self, var_list):
        self.wake_all()
        self.inner_optimizer.finalize_variable_values(
            [v for v in var_list if table_spec(v) is None]
        )

    def scale_loss(self, loss):
        return self.inner_optimizer.scale_loss(loss)

    def get_config(self):
        return {
            "name": self.name,
            "inner": _keras.keras.saving.serialize_keras_object(self.inner_optimizer),
            "policy": policy_to_config(self.policy),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        inner = _keras.keras.saving.deserialize_keras_object(
            config.pop("inner"), custom_objects=custom_objects
        )
        config["policy"] = policy_from_config(config["policy"])
        return cls(inner, **config)


def find_slipstream_optimizer(optimizer_or_model, user):
    """Returns the `SlipstreamOptimizer` of a model, or within an optimizer.

    Args:
        optimizer_or_model: A compiled model, a `SlipstreamOptimizer`, or an optimizer around one,
            such as a `LossScaleOptimizer`.
        user: Who needs it, for the error.

    Raises:
        ValueError: If there is none.
    """
    found = given = getattr(optimizer_or_model, "optimizer", None) or optimizer_or_model
    while found is not None and not isinstance(found, SlipstreamOptimizer):
        found = getattr(found, "inner_optimizer", None)
    if found is None:
        raise ValueError(
            f"{user} needs a model compiled with a SlipstreamOptimizer, or that optimizer, and got "
            f"{type(given).__name__}. Give `compile` a slipstream.SlipstreamOptimizer(...); a "
            "LossScaleOptimizer may be around it."
        )
    return found


def _stats_of(states, counters):
    """Returns `SkipStats` by name."""
    # One read, where one of each variable would take ten times as long.
    with_policy = [state for state in states if state.policy is not None]
    numbers = {}
    if with_policy:
        read = tf.stack([state.policy_state for state in with_policy]).numpy().tolist()
        numbers = {s.name: dict(zip(POLICY_STATES, one)) for s, one in zip(with_policy, read)}
    stats = {}
    for state, counted in zip(states, counters.tolist(), strict=True):
        policy = numbers.get(state.name, dict.fromkeys(POLICY_STATES, 0.0))
        stats[state.name] = SkipStats(
            **dict(zip(COUNTERS, counted)),
            num_stale_rows=int(policy["num_sleeping"]),
            num_rows=state.num_rows,
            drift_threshold=policy["threshold"] * policy["strictness"],
        )
    return stats


def _hold_for(optimizer, table):
    """Lets a table find its optimizer, and apply what that holds before a SavedModel has the table.

    Keras's `export` saves a model's variables without asking its layers.
    """
    table._slipstream_optimizer = optimizer
    children = table._trackable_children

    def children_after_waking(save_type="checkpoint", **kwargs):
        if save_type == "savedmodel":
            wake_rows_of(table)
        return children(save_type, **kwargs)

    table._trackable_children = children_after_waking


def _policy_variables(policy, num_rows, dim, row_int, add):
    """Returns the fields of a `TableState` that a policy needs."""
    capacity = pool_capacity(policy, num_rows)
    initial = dict.fromkeys(POLICY_STATES, 0.0)
    initial |= {"threshold": initial_threshold(policy), "strictness": 1.0}
    return {
        "row_states": add("row_states", (num_rows,), row_int),
        "pool_ints": add("pool_ints", (capacity, len(POOL_INTS)), "int64"),
        "pool_floats": add("pool_floats", (capacity, 2 * dim + 1), "float32"),
        "policy_state": add(
            "policy_state", (len(POLICY_STATES),), "float64", list(initial.values())
        ),
    }


def _popular_rows(state):
    num_entries = tf.cast(state.policy_state[POLICY_STATES.index("num_entries")], tf.int64)
    return state.pool_ints[:num_entries, POOL_INTS.index("row")]


def _with_flushed(state, ids, step):
    """Returns the rows that a step may have written."""
    if state.policy is None or not state.policy.refresh_every:
        return ids
    nothing = tf.zeros([0], tf.int64)
    is_refresh = step % state.policy.refresh_every == 0
    flushed = tf.cond(is_refresh, lambda: _popular_rows(state), lambda: nothing)
    return tf.concat([tf.cast(ids, tf.int64), flushed], axis=0)


def _update_rule(optimizer):
    """Returns the rule of a Keras optimizer, or None: none for another `update_step`."""
    makers = {
        getattr(_keras.keras.optimizers, name, RowWiseAdagrad): make
        for name, make in update_rules.rules_by_optimizer().items()
    }
    for base in type(optimizer).__mro__:
        if base in makers and type(optimizer).update_step is base.update_step:
            return makers[base](optimizer)
    return None


def _unlike(names, name):
    """Returns `name`, with a number where it is one of `names`."""
    numbered = (f"{name}_{number}" for number in itertools.count(1))
    return next(one for one in itertools.chain([name], numbered) if one not in names)


def _by_table(tables):
    """Returns a dict from a table's name to its shards: pairs of a variable and its state."""
    groups, names = {}, {}
    for variable, state in tables:
        spec = table_spec(variable)
        name = names.setdefault(id(spec), _unlike(groups, spec.name))
        groups.setdefault(name, []).append((variable, state))
    return groups


def _groups(states, slices):
    """Yields lists of states and slices that can go through one op call: of a device and dtype."""
    groups = {}
    for state, one in zip(states, slices):
        key = (state.table.device, state.table.dtype)
        group_states, group_slices = groups.setdefault(key, ([], []))
        group_states.append(state)
        group_slices.append(one)
    for group_states, group_slices in groups.values():
        if len({one.indices.dtype for one in group_slices}) > 1:
            group_slices = [
                tf.IndexedSlices(one.values, tf.cast(one.indices, tf.int64)) for one in group_slices
            ]
        yield group_states, group_slices


def _exchanged(states, slices, settings):
    """Returns what `exchange_rows` does, of tables on any devices."""
    exchanged = {}
    for group in _groups(states, slices):
        for state, *one in zip(group[0], *exchange_rows(*group, settings), strict=True):
            exchanged[id(state)] = one
    pairs = [exchanged[id(state)] for state in states]
    return [one for one, _ in pairs], [num for _, num in pairs]


def _sum_over_replicas(dense):
    grads, variables = zip(*dense)
    context = tf.distribute.get_replica_context()
    return list(zip(context.all_reduce(tf.distribute.ReduceOp.SUM, list(grads)), variables))


def _clip_scale(norm, limit):
    return tf.cast(limit, norm.dtype) / tf.maximum(norm, limit)


def _scaled(grad, scale):
    if isinstance(grad, tf.IndexedSlices):
        values = grad.values * tf.cast(scale, grad.dtype)
        return tf.IndexedSlices(values, grad.indices, grad.dense_shape)
    return grad * tf.cast(scale, grad.dtype)
