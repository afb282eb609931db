"""What the layers that have a table share: its variable, its lookup, and how it is saved."""

import numbers
import warnings
import weakref
import zlib

import tensorflow as tf

from tf_slipstream import _compat, _keras_hooks
from tf_slipstream.combiner import COMBINERS
from tf_slipstream.engine import registry, taken_back
from tf_slipstream.engine.server_table import is_on_worker, num_tasks
from tf_slipstream.initial_rows import initial_rows
from tf_slipstream.ops._library import has_cpu_ops
from tf_slipstream.ops.gather_rows import gather_from_many, gather_rows
from tf_slipstream.ops.sum_bags import sum_bags
from tf_slipstream.policy import StalenessPolicy, as_policy
from tf_slipstream.stored_rows import load_rows, save_rows

# Below this a table is initialised as Keras does it, with two or three times its memory for a
# moment.
_LARGE_TABLE_BYTES = 1 << 26
# Above this TensorFlow's own gradient of a lookup fails.
MOST_INT32_ROWS = tf.int32.max


class TableLayer:
    """A mixin for a Keras layer, before the Keras class.

    A subclass has `num_rows`, `output_dim`, `mask_zero`, `embeddings_regularizer` and
    `embeddings_constraint`, and a method `_initialize_table(shape, dtype=None, shard=0,
    first_row=0, **kwargs)`, which makes a table, or the rows of a shard of it.
    """

    def _init_table(self, combiner, policy):
        """Takes arguments, before Keras's `__init__`."""
        if combiner is not None and combiner not in COMBINERS:
            raise ValueError(f"`combiner` must be None or one of {COMBINERS}, got {combiner!r}.")
        # What the layer does is in `_combiner`: a subclass may have a `combiner` of its own.
        self.combiner = self._combiner = combiner
        self.policy = as_policy(policy, also=("default",))

    def _finish_init(self, mask_zero):
        """Checks and sets what only Keras's `__init__` knows of."""
        if _compat.is_unsupported_dtype_policy(self):
            raise ValueError(
                f"The table of {self._user} must be float32 or bfloat16, "
                f"got dtype '{self.dtype_policy.name}'. For faster compute use 'mixed_bfloat16' or "
                "'mixed_float16': the table stays float32 and only the rows read are cast."
            )
        # XLA would read the whole table, and does not know the optimizer's ops: jit_compile="auto"
        # then leaves the model uncompiled.
        self.supports_jit = False
        self.supports_masking = mask_zero

    @property
    def _user(self):
        """The layer in errors."""
        return f"{type(self).__name__} '{self.name}'"

    def build(self, input_shape=None):
        if self.built:
            return
        arguments = {
            "shape": (self.num_rows, self.output_dim),
            "initializer": self._initialize_table,
            "name": "embeddings",
            "regularizer": self.embeddings_regularizer,
            "constraint": self.embeddings_constraint,
            "trainable": True,
        }
        strategy = tf.distribute.get_strategy()
        if isinstance(strategy, tf.distribute.ParameterServerStrategy):
            tables = self._add_shards(strategy, arguments)
            self._shard_variables = tuple(tables)
        else:
            tables = [_compat.add_table(self, **arguments)]
            self._shard_variables = ()
        self._spec = registry.TableSpec(
            self.name,
            self.policy,
            shards=tuple(map(weakref.ref, self._shard_variables)),
            row_ends=self._row_ends(),
            padding=self._padding() if self.mask_zero and self._combiner is None else (),
        )
        for table in tables:
            registry.add_table(table, self._spec)
        self._register_tables()
        self.built = True

    def _row_ends(self):
        """Returns for each field that has rows the row behind its last; nothing without fields."""
        return ()

    def _padding(self):
        """Returns the rows that id 0 has, ascending."""
        return (0,)

    def _register_tables(self):
        """Lets the tables be found by their `tf.Variable`s.

        There are none yet while Keras 3 builds a subclassed model in its first call.
        """
        for table in self._shard_variables or (_compat.table_of(self),):
            value = _compat.tf_variable(table)
            if isinstance(value, tf.Variable):
                registry.add_table(value, self._spec)

    @property
    def _shards(self):
        """On parameter servers, the `tf.Variable`s that the table is in; else empty."""
        return tuple(map(_compat.tf_variable, self._shard_variables))

    def _add_shards(self, strategy, arguments):
        if self.embeddings_regularizer is not None:
            raise ValueError(
                f"{self._user} has an `embeddings_regularizer`, which under "
                "ParameterServerStrategy would send the whole table over the network in every "
                "step. Use `weight_decay` of the optimizer, which acts on the rows looked up."
            )
        return _compat.add_table_shards(self, strategy, num_tasks("ps"), **arguments)

    def _outputs(self, ids, rows, training):
        """Looks rows up, and makes of them what the layer returns.

        Args:
            ids: `Ids`.
            rows: The row of each of their `dense`, of the same shape.
            training: As Keras has it.
        """
        rows = ids.of_lookups(rows)
        splits = ids.splits() if self._sums_bags(training) else None
        if splits is None:
            return ids.outputs(self._lookup(rows))
        return ids.outputs_of_sums(self._lookup(rows, splits), splits)

    def _is_native(self, training):
        """Whether a call may have ops of ours before its lookup: one of training, not exported."""
        if self._shards or not _compat.is_training_step(training):
            return False
        return has_cpu_ops(self._table())

    def _sums_bags(self, training):
        """Whether bags are summed by an op of ours."""
        has_bags = self._combiner is not None and self._is_native(training)
        return has_bags and self._table().dtype == tf.float32

    def _lookup(self, ids, splits=None):
        """Returns rows `[..., output_dim]` of the table's dtype for dense ids `[...]`.

        Args:
            ids: Rows of the table.
            splits: Of `Ids`, where `_sums_bags`: returns the sums of bags.
        """
        if self._shards:
            return self._lookup_on_servers(ids)
        # The op's name carries the table's into the error for a bad id; eager execution drops it.
        name = f"table_{self.name}"
        gather = tf.gather if self.num_rows <= MOST_INT32_ROWS else gather_from_many
        try:
            if splits is not None:
                return sum_bags(self._table(), ids, splits, name)
            return gather(self._table(), ids, name=name)
        except tf.errors.InvalidArgumentError as error:
            message = f"table '{self.name}': {error.message}"
            raise tf.errors.InvalidArgumentError(error.node_def, error.op, message) from None

    def _reset_taken_back(self, ids, initializer, first_row=0, num_rows=None, field=None):
        """Resets the rows that a vocabulary took back before it returned these ids.

        Args:
            ids: Of any kind, as the layer is called with.
            initializer: Of the rows.
            first_row: Where those of the vocabulary begin in the table.
            num_rows: How many there are; None: all.
            field: Name of the field that they are, or None.
        """
        taken = taken_back.taken_back_with(ids)
        if taken is None:
            return
        num_rows = self.num_rows if num_rows is None else num_rows
        taken.vocabulary.note_table(self, field, num_rows)
        name = self.name if field is None else f"{self.name}/{field}"

        def values_of(rows, step):
            shape = (num_rows, self.output_dim)
            seed = tf.stack([tf.constant(zlib.crc32(name.encode()), tf.int64), step])
            dtype = self._table().dtype
            return initial_rows(self._user, initializer, shape, rows, seed, dtype)

        if self._shards and any(
            holder.is_kept_by_workers(self._shards[0])
            for holder in registry.holders_of(self._shards[0])
        ):
            raise ValueError(
                f"{self._user} is looked up by rows of {taken.vocabulary.name}, which takes rows "
                "back, and workers would keep what they have of these rows. Set "
                "`optimizer.worker_cache = slipstream.distribute.WorkerCache(num_bytes=0)` before "
                "the optimizer is built; or construct the layer with `policy=None`."
            )
        taken_back.reset(taken, self._shards or [self._table()], first_row, values_of)

    def _lookup_on_servers(self, ids):
        flat = tf.reshape(ids, [-1])
        holders = registry.holders_of(self._shards[0])
        if holders and is_on_worker():
            rows = holders[-1].lookup(self._shards[0], flat)
        else:
            rows = gather_rows(self._shards, flat, f"table_{self.name}")
        return tf.reshape(rows, tf.concat([tf.shape(ids), [self.output_dim]], axis=0))

    def get_config(self):
        config = super().get_config()
        config["combiner"] = self._combiner
        config["policy"] = _compat.serialize(self.policy, StalenessPolicy)
        return config

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        # That of a `keras.layers.Embedding` has none.
        config["policy"] = _compat.deserialize(config.get("policy", "default"))
        return super().from_config(config)

    def save_own_variables(self, store):
        self._settle()
        if self._is_stored_in_parts():
            # Also from servers as from a machine that has the whole table.
            save_rows(self._shards or [self._table()], store, "0")
        else:
            super().save_own_variables(store)

    def load_own_variables(self, store):
        with _keras_hooks.loading():
            if self.built and self._shards and self._is_stored_in_parts():
                load_rows(self._user, self._shards, store, "0")
            elif self.built and self._is_of_fewer_rows(store):
                self._load_first_rows(store["0"])
            elif self.built and self._is_stored_in_parts() and "0" in store.keys():
                load_rows(self._user, [self._table()], store, "0")
            else:
                super().load_own_variables(store)

    def _is_stored_in_parts(self):
        """Whether the table is written and read in parts: on servers, or if it is large."""
        if len(self._shards) > 1:
            return True
        if not self.built or len(_compat.variables_of(self)) != 1:  # a subclass has others
            return False
        table = self._table()
        is_plain = not isinstance(table, tf.distribute.DistributedValues)
        is_large = 4 * self.num_rows * self.output_dim >= _LARGE_TABLE_BYTES
        return bool(self._shards) or (is_plain and is_large and table.dtype == tf.float32)

    def _is_of_fewer_rows(self, store):
        """Whether a file has the table as it was before it grew."""
        if self._row_ends() or "0" not in store.keys():
            return False
        shape = tuple(store["0"].shape)
        return len(shape) == 2 and shape[1] == self.output_dim and shape[0] < self.num_rows

    def _load_first_rows(self, rows):
        warnings.warn(
            f"The file has {rows.shape[0]} rows for {self._user}, which has {self.num_rows}: the "
            "others keep the values that they have.",
            stacklevel=2,
        )
        values = self._table().numpy()
        values[: rows.shape[0]] = rows[:]
        _compat.table_of(self).assign(values)

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        # A checkpoint has the optimizer as well, with all that it holds; a SavedModel has not.
        if save_type == "savedmodel":
            self._settle()
        return super()._trackable_children(save_type, **kwargs)

    def _settle(self):
        if self.built:
            _keras_hooks.settle(self._shards or [self._table()])

    def _table(self):
        return _compat.tf_variable(_compat.table_of(self))


def draw(initializer, shape, dtype, num_rows, **kwargs):
    """Returns the first values of a table, or of a part of it.

    Args:
        initializer: Keras initializer.
        shape: `(*, output_dim)`, of the table or part.
        dtype: Their dtype.
        num_rows: Rows of the whole table.
        **kwargs: Of tf_keras, for a part of a table.
    """
    is_large = 4 * num_rows * shape[1] >= _LARGE_TABLE_BYTES
    if not is_large or not _compat.makes_its_numbers(initializer):
        return initializer(shape, dtype=dtype, **kwargs)
    # Compiled, an initializer works in the memory of its result. The random numbers are others
    # than Keras's for the same seed, and the same in every run.
    try:
        return tf.function(lambda: initializer(shape, dtype=dtype, **kwargs), jit_compile=True)()
    except tf.errors.OpError:
        # Not every device has XLA.
        return initializer(shape, dtype=dtype, **kwargs)


def check_dim(argument, dim):
    """Checks that an argument is a positive integer, which older releases of Keras 3 do not."""
    if isinstance(dim, bool) or not isinstance(dim, numbers.Integral) or dim <= 0:
        raise ValueError(f"`{argument}` must be a positive integer, got {dim!r}.")
