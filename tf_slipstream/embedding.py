"""The Keras layer."""

import tensorflow as tf

from tf_slipstream import _compat
from tf_slipstream.ids import Ids, check_rank
from tf_slipstream.table_layer import TableLayer, check_dim, draw

_REFUSED = {
    "lora_rank": "LoRA trains two factors in place of the table",
    "lora_alpha": "LoRA trains two factors in place of the table",
    "quantization_config": "a quantized table cannot be trained",
    "sparse": "the layer returns dense rows",
}


@_compat.register_serializable
class SlipstreamEmbedding(TableLayer, _compat.keras.layers.Embedding):
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

        training: Whether this is a step of training, as Keras says by itself. Then ops of ours sum
            bags, which must not be exported.

    Output: `[..., output_dim]` after the shape of the ids, less their last axis with a combiner.

    Raises:
        ValueError: At construction, for arguments that make no sense here (LoRA, quantization). At
            a call, for ids of one axis with a combiner.
        tf.errors.InvalidArgumentError: At a call, for an id that is not in `[0, input_dim)`; it
            names the layer, the id, its position (with a combiner and `mask_zero`, among the ids
            that are not 0) and the range. No row has changed then.

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
        check_dim("input_dim", input_dim)
        check_dim("output_dim", output_dim)
        self._init_table(combiner, policy)
        super().__init__(
            int(input_dim),
            int(output_dim),
            embeddings_initializer=embeddings_initializer,
            embeddings_regularizer=embeddings_regularizer,
            embeddings_constraint=embeddings_constraint,
            mask_zero=mask_zero,
            **kwargs,
        )
        self._finish_init(mask_zero)

    @property
    def num_rows(self):
        """Rows of the table, which is `input_dim`."""
        return self.input_dim

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
        return draw(initializer, shape, dtype, self.input_dim, **kwargs)

    def call(self, inputs, weights=None, training=None):
        self._register_tables()
        self._reset_taken_back(inputs, self.embeddings_initializer)
        ids = Ids(self._user, inputs, weights, self._combiner, self.mask_zero)
        return tf.cast(self._outputs(ids, ids.dense, training), self.compute_dtype)

    def compute_mask(self, inputs, mask=None):
        if self._combiner is not None or not self.mask_zero:
            return None
        if _compat.is_symbolic(inputs):
            return _compat.symbolic_mask(inputs)
        return Ids(self._user, inputs).mask()

    def compute_output_shape(self, input_shape):
        check_rank(self._user, input_shape, self._combiner)
        shape = super().compute_output_shape(input_shape)
        return shape if self._combiner is None else shape[:-2] + shape[-1:]

    def compute_output_spec(self, inputs, weights=None, training=None):
        shape = self.compute_output_shape(inputs.shape)
        is_ragged = self._combiner is None and getattr(inputs, "ragged", False)
        return _compat.symbolic_output(shape, self.compute_dtype, is_ragged)

    def enable_lora(self, *args, **kwargs):
        raise ValueError(f"SlipstreamEmbedding does not support LoRA: {_REFUSED['lora_rank']}.")

    def quantize(self, *args, **kwargs):
        raise NotImplementedError(
            "SlipstreamEmbedding cannot be quantized: a quantized table cannot be trained."
        )

    def load_own_variables(self, store):
        if self.built and not store.keys():
            raise ValueError(
                f"The file has nothing for SlipstreamEmbedding '{self.name}'. Keras files layers "
                "by class. If it is of a model with keras.layers.Embedding, load it into "
                "`stock = slipstream.swap_out(model)` and copy: "
                "`model.set_weights(stock.get_weights())`. See docs/migration/keras.md."
            )
        super().load_own_variables(store)
