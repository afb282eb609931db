"""The Keras layer."""

import numbers
import weakref

import tensorflow as tf

from tf_slipstream import _compat, _keras_hooks
from tf_slipstream.combiner import COMBINERS, combine_bags, combine_segments
from tf_slipstream.engine import registry
from tf_slipstream.engine.server_table import is_on_worker, num_tasks
from tf_slipstream.ops.gather_rows import gather_rows
from tf_slipstream.policy import StalenessPolicy, as_policy

# Below this a table is initialised as Keras does it, with two or three times its memory for a
# moment.
_LARGE_TABLE_BYTES = 1 << 26

_REFUSED = {
    "lora_rank": "LoRA trains two factors in place of the table",
    "lora_alpha": "LoRA trains two factors in place of the table",
    "quantization_config": "a quantized table cannot be trained",
    "sparse": "the layer returns dense rows",
}


@_compat.register_serializable
class SlipstreamEmbedding(_compat.keras.layers.Embedding):
    """`keras.layers.Embedding` for large tables: reads only the rows that a step asks for.

    Under `SlipstreamOptimizer` a training step costs the same whatever `input_dim`. Under any other
    optimizer it trains like `keras.layers.Embedding`. Exported models hold stock TensorFlow ops
    only.

    Args:
        input_dim: Positive integer, number of rows. Ids are in `[0, input_dim)`.
        output_dim: Positive integer, length of a row.
        embeddings_initializer: Initializer of the table. Defaults to `"uniform"`. For a table above
            64 MB its random numbers are not those that Keras draws from the same seed.
        embeddings_regularizer: Regularizer of the table. It reads and updates the whole table in
            every step, as with Keras.
        embeddings_constraint: Constraint of the table, applied to the rows that a step updates
            where it acts on each row alone (`NonNeg`, or a norm along axis 1), else to the whole
            table.
        mask_zero: Whether id 0 is padding: masked for the layers that follow or, with a combiner,
            left out of its bag.
        combiner: None, for a row per id; or how the ids of the last axis become one vector:
            `"sum"`, `"mean"` or `"sqrtn"`, as in `tf.nn.embedding_lookup_sparse`. Ids then have two
            axes or more, `[batch, ..., bag]`.
        policy: When rows are stale and their updates deferred or left out: a `StalenessPolicy`, the
            name of a preset; `"default"`, the optimizer's; or None, never.
        **kwargs: Keras's other arguments: `weights`, `name`, `dtype`, `trainable`, ... Under a
            mixed precision `dtype` the table stays float32 and only the rows read are cast. With
            `dtype="bfloat16"` the table itself has half the memory: `SlipstreamOptimizer` updates
            its rows in float32, with float32 slots, and rounds them stochastically.

    Call arguments:
        inputs: Integer ids, dense `[batch, ...]`, `tf.RaggedTensor` or `tf.SparseTensor`. Floats
            are truncated to int32. In a `SparseTensor` without combiner an absent id counts as 0.
        weights: With a combiner only, float weights of the ids, of the same kind and shape; None:
            1.

    Output: `[..., output_dim]` after the shape of the ids, less their last axis with a combiner.

    Raises:
        ValueError: At construction, for arguments that make no sense here (LoRA, quantization). At
            a call, for ids of one axis with a combiner.
        tf.errors.InvalidArgumentError: At a call, for an id that is not in `[0, input_dim)`; it
            names the layer, the id, its position and the range. No row has changed then.

    Example:

    ```python
    user = slipstream.SlipstreamEmbedding(1_000_000, 32, name="user")
    tags = slipstream.SlipstreamEmbedding(50_000, 32, combiner="mean", name="tags")
    user(tf.constant([3, 7]))               # [2, 32]
    tags(tf.ragged.constant([[1, 5], [2]]))  # [2, 32]
    ```
    """

    def __init__(
        self,
        input_dim,
        output_dim,
        embeddings_initializer="uniform",
        embeddings_regularizer=None,
        embeddings_constraint=None,
        mask_zero=False,
        combiner=None,
        policy="default",
        **kwargs,
    ):
        for argument, reason in _REFUSED.items():
            if kwargs.pop(argument, None):
                raise ValueError(
                    f"SlipstreamEmbedding does not take `{argument}`: {reason}. Use "
                    "keras.layers.Embedding for that, or leave it out."
                )
        for argument, dim in (("input_dim", input_dim), ("output_dim", output_dim)):
            # Older releases of Keras 3 do not check.
            if isinstance(dim, bool) or not isinstance(dim, numbers.Integral) or dim <= 0:
                raise ValueError(f"`{argument}` must be a positive integer, got {dim!r}.")
        if combiner is not None and combiner not in COMBINERS:
            raise ValueError(f"`combiner` must be None or one of {COMBINERS}, got {combiner!r}.")
        # What the layer does is in `_combiner`: a subclass may have a `combiner` of its own.
        self.combiner = self._combiner = combiner
        self.policy = as_policy(policy, also=("default",))
        super().__init__(
            int(input_dim),
            int(output_dim),
            embeddings_initializer=embeddings_initializer,
            embeddings_regularizer=embeddings_regularizer,
            embeddings_constraint=embeddings_constraint,
            mask_zero=mask_zero,
            **kwargs,
        )
        if _compat.is_unsupported_dtype_policy(self):
            raise ValueError(
                f"The table of SlipstreamEmbedding '{self.name}' must be float32 or bfloat16, "
                f"got dtype '{self.dtype_policy.name}'. For faster compute use 'mixed_bfloat16' or "
                "'mixed_float16': the table stays float32 and only the rows read are cast."
            )
        # XLA would read the whole table, and does not know the optimizer's ops: jit_compile="auto"
        # then leaves the model uncompiled.
        self.supports_jit = False
        self.supports_masking = mask_zero

    def build(self, input_shape=None):
        if self.built:
            return
        arguments = {
            "shape": (self.input_dim, self.output_dim),
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
            tuple(map(weakref.ref, self._shard_variables)),
            has_padding=self.mask_zero,
        )
        for table in tables:
            registry.add_table(table, self._spec)
        self._register_tables()
        self.built = True

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
                f"SlipstreamEmbedding '{self.name}' has an `embeddings_regularizer`, which under "
                "ParameterServerStrategy would send the whole table over the network in every "
                "step. Use `weight_decay` of the optimizer, which acts on the rows looked up."
            )
        return _compat.add_table_shards(self, strategy, num_tasks("ps"), **arguments)

    def _initialize_table(self, shape, dtype=None, shard=0, first_row=0, **kwargs):
        """Makes a table, or the rows of a shard of it.

        Args:
            shape: Of the table or shard.
            dtype: Its dtype.
            shard: Number of the shard.
            first_row: Which row of the table is the shard's first.
            **kwargs: Of tf_keras, for a partitioned table.
        """
        initializer = self.embeddings_initializer
        value = _compat.constant_value(initializer, (self.input_dim, self.output_dim))
        if value is not None and not kwargs:
            # Keras would multiply it with a table of ones; a graph would hold a copy of it.
            if _compat.asks_for_shapes_alone():
                return tf.zeros(shape, dtype)
            return tf.convert_to_tensor(value[first_row : first_row + shape[0]], dtype)
        initializer = _compat.with_another_seed(initializer, shard)
        is_large = 4 * self.input_dim * self.output_dim >= _LARGE_TABLE_BYTES
        if not is_large or not _compat.makes_its_numbers(initializer):
            return initializer(shape, dtype=dtype, **kwargs)
        # Compiled, an initializer works in the memory of its result. The random numbers are others
        # than Keras's for the same seed, and the same in every run.
        try:
            return tf.function(
                lambda: initializer(shape, dtype=dtype, **kwargs), jit_compile=True
            )()
        except tf.errors.OpError:
            # Not every device has XLA.
            return initializer(shape, dtype=dtype, **kwargs)

    def call(self, inputs, weights=None):
        self._register_tables()
        inputs = _as_ids(inputs)
        self._check_rank(inputs.shape)
        if weights is not None:
            weights = self._checked_weights(weights, inputs)
        if self._combiner is not None:
            outputs = self._combine(inputs, weights)
        elif isinstance(inputs, tf.RaggedTensor):
            outputs = inputs.with_flat_values(self._lookup(inputs.flat_values))
        elif isinstance(inputs, tf.SparseTensor):
            outputs = self._lookup(tf.sparse.to_dense(inputs))
        else:
            outputs = self._lookup(inputs)
        return tf.cast(outputs, self.compute_dtype)

    def _check_rank(self, ids_shape):
        rank = tf.TensorShape(ids_shape).rank
        if self._combiner is not None and rank is not None and rank < 2:
            raise ValueError(
                f"SlipstreamEmbedding '{self.name}' has combiner '{self._combiner}', which makes "
                "one vector of the ids of the last axis: it needs ids of at least two axes, "
                f"[batch, ids], got shape {tuple(ids_shape)}. For one id an example give them the "
                "shape [batch, 1], or construct the layer without `combiner`."
            )

    def _lookup(self, ids):
        """Returns rows `[..., output_dim]` of the table's dtype for dense ids `[...]`."""
        if self._shards:
            return self._lookup_on_servers(ids)
        # The op's name carries the table's into the error for a bad id; eager execution drops it.
        try:
            return tf.gather(self._table(), ids, name=f"table_{self.name}")
        except tf.errors.InvalidArgumentError as error:
            message = f"table '{self.name}': {error.message}"
            raise tf.errors.InvalidArgumentError(error.node_def, error.op, message) from None

    def _lookup_on_servers(self, ids):
        flat = tf.reshape(ids, [-1])
        holders = registry.holders_of(self._shards[0])
        if holders and is_on_worker():
            rows = holders[-1].lookup(self._shards[0], flat)
        else:
            rows = gather_rows(self._shards, flat, f"table_{self.name}")
        return tf.reshape(rows, tf.concat([tf.shape(ids), [self.output_dim]], axis=0))

    def _checked_weights(self, weights, ids):
        if self._combiner is None:
            raise ValueError(
                f"SlipstreamEmbedding '{self.name}' got `weights`, which only a combiner uses. "
                f"Construct it with `combiner`, one of {COMBINERS}."
            )
        if not isinstance(weights, (tf.RaggedTensor, tf.SparseTensor)):
            weights = tf.convert_to_tensor(weights)
        same_kind = _kind(weights) is _kind(ids)
        if not same_kind or not weights.shape.is_compatible_with(ids.shape):
            raise ValueError(
                f"SlipstreamEmbedding '{self.name}' needs `weights` of the kind and shape of its "
                f"ids, a {_kind(ids).__name__} of shape {ids.shape}; got a "
                f"{_kind(weights).__name__} of shape {weights.shape}."
            )
        return weights

    def _combine(self, ids, weights):
        is_dense = _kind(ids) is tf.Tensor
        flat_ids = ids if is_dense else ids.values
        flat_weights = weights if is_dense or weights is None else weights.values
        if isinstance(ids, tf.RaggedTensor) and flat_ids.shape.rank > 1:
            return ids.with_values(self._combine(flat_ids, flat_weights))
        rows = self._lookup(flat_ids)
        flat_weights = self._effective_weights(flat_ids, flat_weights, rows.dtype)
        if isinstance(ids, tf.RaggedTensor):
            return combine_segments(
                rows, flat_weights, ids.value_rowids(), ids.nrows(), self._combiner
            )
        if isinstance(ids, tf.SparseTensor):
            bags_shape = ids.dense_shape[:-1]
            two_axes = tf.sparse.reshape(ids, [tf.reduce_prod(bags_shape), ids.dense_shape[-1]])
            combined = combine_segments(
                rows,
                flat_weights,
                two_axes.indices[:, 0],
                two_axes.dense_shape[0],
                self._combiner,
            )
            return tf.reshape(combined, tf.concat([bags_shape, [self.output_dim]], axis=0))
        return combine_bags(rows, flat_weights, self._combiner)

    def _effective_weights(self, ids, weights, dtype):
        """Returns the weights of dense ids, 0 for padding; None where all are 1."""
        weights = None if weights is None else tf.cast(weights, dtype)
        if not self.mask_zero:
            return weights
        is_id = tf.cast(tf.not_equal(ids, 0), dtype)
        return is_id if weights is None else weights * is_id

    def compute_mask(self, inputs, mask=None):
        if self._combiner is not None or not self.mask_zero:
            return None
        if _compat.is_symbolic(inputs):
            return _compat.symbolic_mask(inputs)
        ids = _as_ids(inputs)
        return tf.not_equal(tf.sparse.to_dense(ids) if isinstance(ids, tf.SparseTensor) else ids, 0)

    def compute_output_shape(self, input_shape):
        self._check_rank(input_shape)
        shape = super().compute_output_shape(input_shape)
        return shape if self._combiner is None else shape[:-2] + shape[-1:]

    def compute_output_spec(self, inputs, weights=None):
        shape = self.compute_output_shape(inputs.shape)
        return _compat.keras.KerasTensor(
            shape,
            dtype=self.compute_dtype,
            ragged=self._combiner is None and getattr(inputs, "ragged", False),
        )

    def enable_lora(self, *args, **kwargs):
        raise ValueError(f"SlipstreamEmbedding does not support LoRA: {_REFUSED['lora_rank']}.")

    def quantize(self, *args, **kwargs):
        raise NotImplementedError(
            "SlipstreamEmbedding cannot be quantized: a quantized table cannot be trained."
        )

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
        if len(self._shards) > 1:
            # As from a machine that has the whole table.
            store["0"] = tf.concat([shard.value() for shard in self._shards], axis=0).numpy()
        else:
            super().save_own_variables(store)

    def load_own_variables(self, store):
        if self.built and not store.keys():
            raise ValueError(
                f"The file has nothing for SlipstreamEmbedding '{self.name}'. Keras files layers "
                "by class. If it is of a model with keras.layers.Embedding, load it into "
                "`stock = slipstream.swap_out(model)` and copy: "
                "`model.set_weights(stock.get_weights())`. See docs/migration.md."
            )
        with _keras_hooks.loading():
            if self.built and len(self._shards) > 1:
                sizes = [int(shard.shape[0]) for shard in self._shards]
                for shard, rows in zip(self._shards, tf.split(store["0"][:], sizes)):
                    shard.assign(rows)
            else:
                super().load_own_variables(store)

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


def _as_ids(inputs):
    if not isinstance(inputs, (tf.Tensor, tf.RaggedTensor, tf.SparseTensor)):
        inputs = tf.convert_to_tensor(inputs)
    if inputs.dtype in (tf.int32, tf.int64):
        return inputs
    return tf.cast(inputs, tf.int64 if inputs.dtype in (tf.uint32, tf.uint64) else tf.int32)


def _kind(tensor):
    """Returns the class of a dense, ragged or sparse tensor, eager or not."""
    for kind in (tf.RaggedTensor, tf.SparseTensor):
        if isinstance(tensor, kind):
            return kind
    return tf.Tensor
