"""The wrapping optimizer: Keras's surface. What a step does to tables is in `engine`."""

import tensorflow as tf

from tf_slipstream import _compat, _keras_hooks, stored_rows
from tf_slipstream.engine.inner import Inner
from tf_slipstream.engine.server_table import WorkerCache, check_tasks, is_on_servers
from tf_slipstream.engine.tables import Tables
from tf_slipstream.policy import StalenessPolicy, as_policy
from tf_slipstream.state.schema_version import SchemaVersion

_compat.register_serializable(StalenessPolicy)


@_compat.register_serializable
class SlipstreamOptimizer(_compat.WrappingOptimizer):
    """Trains the tables of `SlipstreamEmbedding`s by sparse rules, all else by `inner`.

    A step reads and writes only the rows that it looked up, with the update rule, hyperparameters,
    learning rate (schedules too), weight decay and clipping of `inner`. Gradients of repeated ids
    are summed first, norms for clipping are those of the sums. Dense variables go to `inner`
    untouched.

    A row that a step does not look up keeps its values and slots. Under a rule with momentum (SGD
    with momentum, Adam, AdamW, RMSprop) a dense optimizer would go on moving it: that movement, and
    weight decay of the steps it missed, reach the row at its lookups. The model is as good as one
    of `keras.layers.Embedding` (docs/reference/rare_rows.md).

    XLA does not suit tables, and Keras compiles a model as a whole or not at all: with a
    `SlipstreamEmbedding` in it, not (`jit_compile`). A part without tables can be compiled by
    itself; docs/guide/optimizers.md has a layer that does it.

    If an id is outside its table, or a summed gradient is NaN or infinite, the step fails with the
    table's name before any variable has changed. `LossScaleOptimizer(optimizer, initial_scale=1.0)`
    around it leaves such a batch out; Keras 3's `iterations` then lacks it. Not on servers.

    Args:
        inner: A Keras `SGD`, `Adagrad`, `Adam`, `AdamW`, `RMSprop` or `Ftrl`, or `RowWiseAdagrad`;
            or its name or config, as `compile` takes them. For float16 put the `LossScaleOptimizer`
            around the `SlipstreamOptimizer`.
        policy: When rows of tables whose layer says `policy="default"` are stale: a
            `StalenessPolicy`, the name of a preset (`"conservative"`, which is `"default"`,
            `"balanced"`, `"aggressive"`, `"auto"`), or None: never.
        table_optimizer: An optimizer like `inner`, whose rule, learning rate, weight decay and
            clipping tables have instead; None: `inner`'s. Steps are counted by `inner` alone.
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

    def __init__(self, inner, policy=None, table_optimizer=None, name="slipstream"):
        inner = _compat.as_optimizer(inner)
        if table_optimizer is None or table_optimizer is inner:
            table_optimizer = None
            table_rule = Inner(inner)
        else:
            table_optimizer = _compat.as_optimizer(table_optimizer)
            table_rule = Inner(table_optimizer, is_of_all=False)
            _compat.check_dense_optimizer(inner)
        super().__init__(inner, name)
        _keras_hooks.install()
        self.policy = as_policy(policy)
        self.table_optimizer = table_optimizer
        self.worker_cache = WorkerCache()
        self.wire_dtype = "float32"
        self._table_rule = table_rule
        self._tables, self._local_held = None, []
        self._schema_version = SchemaVersion()

    def _build(self, variables):
        strategy = _compat.strategy_of(self)
        if is_on_servers(strategy):
            check_tasks(strategy)
            _compat.count_atomically(self.inner_optimizer.iterations)
        tables = Tables(
            variables,
            self._table_rule,
            self.policy,
            strategy,
            self.add_variable,
            self.inner_optimizer.iterations,
            (self.worker_cache, self.wire_dtype),
        )
        self.inner_optimizer.build(tables.dense_variables)
        for variable in variables:
            if tables.state_of(variable) is not None:
                _keras_hooks.watch(variable)
        # No variables of Keras's: in checkpoints alone, and 0 whenever anything else is saved.
        self._local_held = tables.local_held
        # In a function, so that Keras does not take what is in it for the optimizer's own.
        self._tables = lambda: tables

    def _apply(self, grads, variables, are_summed):
        tables, dense = [], []
        for grad, variable in zip(grads, variables):
            state = self._tables().state_of(variable)
            pairs = dense if state is None else tables
            pairs.append((grad, variable if state is None else state))
        self._tables().apply(tables, dense, self._apply_dense, self.loss_scale_factor, are_summed)

    def _apply_dense(self, dense, are_summed):
        if dense:
            _compat.apply_to(self.inner_optimizer, *zip(*dense), are_summed)
        else:
            self.inner_optimizer.iterations.assign_add(1)

    @property
    def tables(self):
        """Dict from a table's name to its `TableState`; empty before the optimizer is built."""
        return {} if self._tables is None else self._tables().by_name

    @property
    def engine(self):
        """What does a step of the tables, `engine.tables.Tables`; None before it is built."""
        return None if self._tables is None else self._tables()

    def settle(self):
        """Applies all gradients that are held, and what rows are behind by that missed steps.

        The model is then as if every step had reached every row; rows that sleep sleep on. `fit`,
        `evaluate`, saving and exporting do so by themselves. In a loop of your own call it before
        you read weights or write a table by other methods of its `tf.Variable` than `assign`;
        eagerly, outside of replicas, and under `MultiWorkerMirroredStrategy` on every worker.
        """
        if self._tables is not None:
            self._tables().settle()

    def wake_all(self):
        """Does what `settle` does, and makes every row live, as the end of `fit` does."""
        if self._tables is not None:
            self._tables().settle(wake=True)

    @property
    def strictness(self):
        """What multiplies every table's threshold and longest sleep, in (0, 1]; 1 at first."""
        return 1.0 if self._tables is None else self._tables().strictness

    def set_strictness(self, strictness):
        """Sets `strictness`: the lower, the fewer rows are at rest and the shorter they sleep.

        Args:
            strictness: Number in (0, 1].
        """
        if not 0 < strictness <= 1:
            raise ValueError(f"`strictness` must be in (0, 1], got {strictness!r}.")
        if not self.tables:
            raise ValueError(
                "`set_strictness` needs an optimizer that is built, with a table: call it after "
                "the first step, or after `optimizer.build(model.trainable_variables)`."
            )
        self._tables().strictness = strictness

    def skip_stats(self):
        """Returns what skipping did to each table since training began.

        Returns:
            Dict from a table's name, which is its layer's, to its `SkipStats`. Empty before the
            first step.
        """
        return {} if self._tables is None else self._tables().stats()

    def cache_stats(self):
        """Returns what workers had of each table on parameter servers since training began.

        Returns:
            Dict from a table's name to its `distribute.CacheStats`. Empty without such tables.
        """
        return {} if self._tables is None else self._tables().cache_stats()

    def flush_workers(self):
        """Sends what workers hold to the parameter servers, which hold it on: no row wakes."""
        if self._tables is not None:
            self._tables().flush_workers()

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        # A checkpoint has the servers' variables, and has to have what workers hold. Restoring asks
        # as well, which does no harm.
        if save_type == "checkpoint" and tf.executing_eagerly():
            self.flush_workers()
        children = super()._trackable_children(save_type, **kwargs)
        if save_type != "checkpoint":
            children.pop("_schema_version", None)
        return children

    def save_own_variables(self, store):
        self.settle()
        stored_rows.save_optimizer(self, store, super().save_own_variables)

    def load_own_variables(self, store):
        stored_rows.load_optimizer(self, store, super().load_own_variables)
        # Nothing was held when it was saved.
        for held in self._local_held:
            held.assign(tf.zeros(held.shape))

    def finalize_variable_values(self, var_list):
        self.wake_all()
        is_dense = [self._tables is None or self._tables().state_of(v) is None for v in var_list]
        self.inner_optimizer.finalize_variable_values(
            [v for v, dense in zip(var_list, is_dense) if dense]
        )

    def scale_loss(self, loss):
        return self.inner_optimizer.scale_loss(loss)

    def get_config(self):
        config = {
            "name": self.name,
            "inner": _compat.serialize(self.inner_optimizer, _compat.keras.optimizers.Optimizer),
            "policy": _compat.serialize(self.policy, StalenessPolicy),
            "worker_cache": [self.worker_cache.num_bytes, self.worker_cache.max_age],
            "wire_dtype": self.wire_dtype,
        }
        if self.table_optimizer is not None:
            config["table_optimizer"] = _compat.serialize(
                self.table_optimizer, _compat.keras.optimizers.Optimizer
            )
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        cache, wire_dtype = config.pop("worker_cache", None), config.pop("wire_dtype", "float32")
        for argument in ("inner", "policy", "table_optimizer"):
            config[argument] = _compat.deserialize(config.get(argument), custom_objects)
        optimizer = cls(config.pop("inner"), **config)
        if cache is not None:
            optimizer.worker_cache = WorkerCache(*cache)
        optimizer.wire_dtype = wire_dtype
        return optimizer
