"""The Keras layer of several fields in one table."""

import collections.abc
import random

import numpy as np
import tensorflow as tf

from tf_slipstream import _compat
from tf_slipstream.engine import registry
from tf_slipstream.field_layout import FieldLayout
from tf_slipstream.ids import Ids, as_ids, check_rank, join_splits, kind
from tf_slipstream.stored_rows import read_rows
from tf_slipstream.table_layer import TableLayer, check_dim, draw

_initializers = _compat.keras.initializers


@_compat.register_serializable
class SlipstreamEmbeddingCollection(TableLayer, _compat.keras.layers.Layer):
    """Embeddings of all fields of a model in one table: one lookup and one update for all.

    Each field has its rows in it, and trains as with a `SlipstreamEmbedding` of its own, in less
    time: a step has one lookup, one gradient and one update, and the optimizer one set of state,
    however many fields there are.

    Args:
        input_dims: List of the number of rows of each field; or a dict from its name to that
            number. A field may share the rows of another: `{"user": 10, "friend": "user"}`.
        output_dim: Positive integer, length of a row, the same for all fields.
        combiner: None, for a row per id; or how the ids of a bag become one vector: `"sum"`,
            `"mean"` or `"sqrtn"`.
        policy: When rows are stale, as `SlipstreamEmbedding`'s. All fields have it, and one
            threshold.
        embeddings_initializer: Initializer of every field, which draws other numbers for each, by
            its name; or a dict from the names of fields to their own, which then have the values of
            a `SlipstreamEmbedding` with that initializer (others: `"uniform"`). A field's first
            values do not depend on what other fields there are. Of a list, names are places.
        embeddings_regularizer: Regularizer of the table. It reads and updates the whole table in
            every step.
        embeddings_constraint: Constraint of the table, as `SlipstreamEmbedding`'s.
        mask_zero: Whether id 0 of each field is padding: masked for the layers that follow or,
            with a combiner, left out of its bag.
        **kwargs: Keras's other arguments: `name`, `dtype`, `trainable`.

    Call arguments:
        inputs: Integer ids, each counted from 0 in its own field. Either an array of all fields,
            dense `[..., num_fields]` in the order of `input_dims`; with a combiner
            `[batch, num_fields]` or `[batch, num_fields, bag]`. Or a dict from the names of some
            fields to ids as `SlipstreamEmbedding` takes them: dense `[batch, ...]`, ragged or
            sparse; with a combiner `[batch]` is one id an example. Where `input_dims` is a list, a
            list of as many tensors will do for the dict.

        weights: With a combiner only, float weights of the ids, in the same form.

        training: Whether this is a step of training, as Keras says by itself. Then ops of ours find
            rows and sum bags, which must not be exported.

    Attributes:
        layout: `FieldLayout`: which rows of the table are which field's.

    Output: `[..., num_fields, output_dim]` for an array, `[batch, num_fields, output_dim]` with a
    combiner; for a dict or list one of what `SlipstreamEmbedding` returns for each field.

    Raises:
        ValueError: At construction, for arguments that make no sense. At a call, for another field,
            or ids of another shape.
        tf.errors.InvalidArgumentError: At a call, for an id that is not in its field's range; it
            names the collection, the field, the id and the range. No row has changed then. Exported
            models do so too.

    Example:

    ```python
    embeddings = slipstream.SlipstreamEmbeddingCollection({"user": 100_000, "item": 20_000}, 32)
    embeddings(tf.constant([[3, 7], [5, 5]]))                     # [2, 2, 32]
    embeddings({"user": tf.constant([3, 5]), "item": tf.constant([7, 5])})  # dict of [2, 32]
    embeddings.rows("user")                                       # NumPy [100_000, 32]
    ```
    """

    def __init__(
        self,
        input_dims,
        output_dim,
        combiner=None,
        policy="default",
        embeddings_initializer="uniform",
        embeddings_regularizer=None,
        embeddings_constraint=None,
        mask_zero=False,
        **kwargs,
    ):
        layout = FieldLayout(input_dims)
        check_dim("output_dim", output_dim)
        self.layout = layout
        self._init_table(combiner, policy)
        kwargs["autocast"] = False  # ids may be floats
        super().__init__(**kwargs)
        self.output_dim = int(output_dim)
        self.embeddings_initializer = _as_initializers(embeddings_initializer, layout)
        self.embeddings_regularizer = _compat.keras.regularizers.get(embeddings_regularizer)
        self.embeddings_constraint = _compat.keras.constraints.get(embeddings_constraint)
        self.mask_zero = mask_zero
        # Of an initializer that has none; drawn only then, so that other layers' seeds stay.
        is_unseeded = getattr(self.embeddings_initializer, "seed", 0) is None
        self._seed = random.randrange(1 << 31) if is_unseeded else 0
        self._finish_init(mask_zero)

    @property
    def input_dims(self):
        """A copy of the argument."""
        return self.layout.input_dims

    @property
    def num_rows(self):
        """Rows of the table, those of all fields together."""
        return self.layout.num_rows

    def _initialize_table(self, shape, dtype=None, shard=0, first_row=0, **kwargs):
        if _compat.asks_for_shapes_alone():
            return tf.zeros(shape, dtype)
        # Where it is in several variables: tf_keras says so by `kwargs`.
        start = kwargs.get("partition_offset", (first_row,))[0]
        end = start + kwargs.get("partition_shape", shape)[0]
        initializer = self.embeddings_initializer
        is_of_all = not isinstance(initializer, collections.abc.Mapping)
        value = _compat.constant_value(initializer, (self.num_rows, self.output_dim))
        if value is not None:
            return tf.convert_to_tensor(value[start:end], dtype)
        parts, layout = [], self.layout
        for name in layout.owners:
            place = layout.place_of(name)
            first, size = layout.starts[place], layout.sizes[place]
            if first < end and start < first + size:
                # Whole, so that they are the same however the table is divided.
                one = self._initializer_of(name) if is_of_all else initializer[name]
                rows = self._draw_field(one, size, dtype)
                parts.append(rows[max(0, start - first) : end - first])
        return parts[0] if len(parts) == 1 else tf.concat(parts, axis=0)

    def _reset_field(self, place, ids):
        """Resets the rows that a vocabulary took back before it returned the ids of a field."""
        layout, initializer = self.layout, self.embeddings_initializer
        start, size = layout.starts[place], layout.sizes[place]
        owner = next(
            name for name in layout.owners if layout.starts[layout.place_of(name)] == start
        )
        is_of_all = not isinstance(initializer, collections.abc.Mapping)
        one = self._initializer_of(owner) if is_of_all else initializer[owner]
        self._reset_taken_back(ids, one, start, size, owner)

    def _initializer_of(self, field):
        return _compat.with_field_seed(self.embeddings_initializer, field, self._seed)

    def _draw_field(self, initializer, num_rows, dtype):
        shape = (num_rows, self.output_dim)
        value = _compat.constant_value(initializer, shape)
        if value is not None:
            return tf.convert_to_tensor(value, dtype)
        return draw(initializer, shape, dtype, num_rows)

    def call(self, inputs, weights=None, training=None):
        self._register_tables()
        fields = self._by_field(inputs)
        if fields is None:
            return tf.cast(self._call_array(inputs, weights, training), self.compute_dtype)
        places = [self.layout.place_of(field) for field in fields]
        for place, ids in zip(places, fields.values(), strict=True):
            self._reset_field(place, ids)
        ids = self._ids_of_fields(fields, self._by_field(weights, fields))
        dense = [one.of_lookups(one.dense) for one in ids]
        is_native = self._is_native(training)
        rows = self.layout.rows_of_fields(self._user, places, dense, is_native)
        splits = [one.splits() for one in ids] if self._sums_bags(training) else [None]
        if any(one is None for one in splits):
            outputs = self._outputs_of_rows(ids, dense, self._lookup(rows))
        else:
            sums = self._lookup(rows, join_splits(splits))
            parts = _split(sums, [tf.size(one) - 1 for one in splits])
            outputs = map(Ids.outputs_of_sums, ids, parts, splits)
        return _like(inputs, fields, [tf.cast(one, self.compute_dtype) for one in outputs])

    def _outputs_of_rows(self, ids, dense, rows):
        if self._combiner is None:
            rows = tf.cast(rows, self.compute_dtype)  # once for all fields; bags are summed first
        outputs = []
        parts = _split(rows, [tf.size(one) for one in dense])
        for one, looked_up, part in zip(ids, dense, parts, strict=True):
            shape = tf.concat([tf.shape(looked_up), [self.output_dim]], axis=0)
            part = tf.ensure_shape(tf.reshape(part, shape), [*looked_up.shape, self.output_dim])
            outputs.append(one.outputs(part))
        return outputs

    def _by_field(self, inputs, fields=None):
        """Returns a dict from field to its part of `inputs`; None for an array, or for None.

        Args:
            inputs: Ids, or weights if `fields` are given.
            fields: The ids by field: weights must have the same ones.
        """
        parts = None
        if isinstance(inputs, collections.abc.Mapping):
            parts = dict(inputs)
        elif self.layout.is_list and _is_list_of_tensors(inputs):
            if len(inputs) != len(self.layout.names):
                raise ValueError(
                    f"{self._user} needs ids of its {len(self.layout.names)} fields, got a list of "
                    f"{len(inputs)}. Give a dict where some are missing."
                )
            parts = dict(enumerate(inputs))
        if fields is None:
            if parts is not None and not parts:
                raise ValueError(f"{self._user} got an empty dict: give it ids of a field.")
            return parts
        if inputs is not None and (parts is None or parts.keys() != fields.keys()):
            raise ValueError(
                f"{self._user} needs `weights` in the form of its ids, with the fields "
                f"{[*fields]}; got {inputs!r}."
            )
        return dict.fromkeys(fields) if parts is None else parts

    def _ids_of_fields(self, fields, weights):
        found = []
        for field, ids in fields.items():
            name = self.layout.names[self.layout.place_of(field)]
            user, one_weights = f"Field '{name}' of {self._user}", weights[field]
            if not isinstance(ids, (tf.RaggedTensor, tf.SparseTensor)):
                ids = as_ids(ids)
                if self._combiner is not None and ids.shape.rank == 1:
                    ids = ids[:, tf.newaxis]
                    if one_weights is not None:
                        one_weights = tf.convert_to_tensor(one_weights)[:, tf.newaxis]
            found.append(Ids(user, ids, one_weights, self._combiner, self.mask_zero))
        return found

    def _call_array(self, inputs, weights, training):
        ids = as_ids(inputs)
        self._check_array(ids.shape, kind(ids))
        combiner = self._combiner
        if combiner is not None and ids.shape.rank == 2:
            if weights is None and not self.mask_zero:
                combiner = None  # of one row each
            else:
                ids = ids[..., tf.newaxis]
                weights = None if weights is None else tf.convert_to_tensor(weights)[..., None]
        ids = Ids(self._user, ids, weights, combiner, self.mask_zero)
        axis = ids.dense.shape.rank - (1 if combiner is None else 2)
        is_native = self._is_native(training)
        rows = self.layout.rows_of_array(self._user, ids.dense, axis, is_native)
        return self._outputs(ids, rows, training)

    def _check_array(self, shape, kind_of_ids=tf.Tensor):
        """Checks the static shape of ids of all fields, as far as it is known."""
        rank = tf.TensorShape(shape).rank
        has_bags = self._combiner is not None and rank == 3
        is_good = kind_of_ids is tf.Tensor and rank is not None and rank >= 1
        is_good = is_good and (self._combiner is None or rank in (2, 3))
        num_fields = len(self.layout.names)
        if not is_good or shape[-2 if has_bags else -1] not in (None, num_fields):
            expected = f"[batch, {num_fields}]"
            if self._combiner is not None:
                expected += f" or [batch, {num_fields}, bag]"
            raise ValueError(
                f"{self._user} has {num_fields} fields and needs ids {expected}, dense, or a dict "
                f"from fields to their ids; got a {kind_of_ids.__name__} of shape {tuple(shape)}."
            )

    def compute_mask(self, inputs, mask=None):
        if self._combiner is not None or not self.mask_zero:
            return None
        fields = self._by_field(inputs)
        if fields is None:
            return self._mask_of(inputs)
        return _like(inputs, fields, [self._mask_of(ids) for ids in fields.values()])

    def _mask_of(self, ids):
        if _compat.is_symbolic(ids):
            return _compat.symbolic_mask(ids)
        return Ids(self._user, ids).mask()

    def compute_output_shape(self, input_shape):
        is_dict = isinstance(input_shape, collections.abc.Mapping)
        if is_dict or _is_list_of_shapes(input_shape):
            fields = dict(input_shape) if is_dict else dict(enumerate(input_shape))
            shapes = [self._shape_of_field(*item) for item in fields.items()]
            return _like(input_shape, fields, shapes)
        shape = tuple(tf.TensorShape(input_shape))
        self._check_array(shape)
        if self._combiner is not None and len(shape) == 3:
            shape = shape[:-1]
        return _as(input_shape, (*shape[:-1], len(self.layout.names), self.output_dim))

    def _shape_of_field(self, field, given):
        shape = tuple(tf.TensorShape(given))
        name = self.layout.names[self.layout.place_of(field)]
        if self._combiner is not None and len(shape) != 1:
            check_rank(f"Field '{name}' of {self._user}", shape, self._combiner)
            shape = shape[:-1]
        return _as(given, (*shape, self.output_dim))

    def compute_output_spec(self, inputs, weights=None, training=None):
        def spec(ids, shape):
            is_ragged = self._combiner is None and getattr(ids, "ragged", False)
            return _compat.symbolic_output(shape, self.compute_dtype, is_ragged)

        fields = self._by_field(inputs)
        if fields is None:
            return spec(inputs, self.compute_output_shape(inputs.shape))
        specs = [spec(ids, self._shape_of_field(f, ids.shape)) for f, ids in fields.items()]
        return _like(inputs, fields, specs)

    def rows(self, field):
        """Returns the rows of a field, with all that an optimizer held for them applied.

        Args:
            field: Its name, or its place in `input_dims`.

        Returns:
            NumPy array `[num_rows, output_dim]` of the table's dtype.

        Raises:
            ValueError: If there is no such field, or the layer is not built.
        """
        place = self.layout.place_of(field)
        if not self.built:
            raise ValueError(f"{self._user} has no rows yet: call it once, or `build(None)`.")
        self._settle()
        start, end = self.layout.starts[place], self.layout.starts[place] + self.layout.sizes[place]
        parts, first = [], 0
        for shard in self._shards or [self._table()]:
            size = int(shard.shape[0])
            if first < end and start < first + size:
                parts.append(read_rows(shard, max(0, start - first), min(size, end - first)))
            first += size
        return np.concatenate(parts)

    def _row_ends(self):
        starts, sizes = self.layout.starts, self.layout.sizes
        return tuple(starts[place] + sizes[place] for place in self._owner_places())

    def _padding(self):
        return tuple(self.layout.starts[place] for place in self._owner_places())

    def _owner_places(self):
        return map(self.layout.place_of, self.layout.owners)

    def skip_stats(self):
        """Returns what skipping did to each field since training began.

        Returns:
            Dict from a field's name to its `SkipStats`. Fields that share rows have the same: what
            is counted are lookups of rows. Empty before the first step of a `SlipstreamOptimizer`.

        Raises:
            ValueError: On parameter servers and GPUs, where lookups are counted for the collection
                as a whole.
        """
        holders = registry.holders_of((self._shards or [self._table()])[0]) if self.built else []
        if not holders:
            return {}
        stats = dict(zip(self._row_ends(), holders[-1].field_stats(self._table())))
        layout = self.layout
        ends = (start + size for start, size in zip(layout.starts, layout.sizes))
        return {name: stats[end] for name, end in zip(layout.names, ends)}

    def get_config(self):
        config = super().get_config()
        initializer = self.embeddings_initializer
        if isinstance(initializer, collections.abc.Mapping):
            serialized = {name: _initializers.serialize(i) for name, i in initializer.items()}
        else:
            serialized = _initializers.serialize(initializer)
        return config | {
            "input_dims": self.input_dims,
            "output_dim": self.output_dim,
            "embeddings_initializer": serialized,
            "embeddings_regularizer": _compat.keras.regularizers.serialize(
                self.embeddings_regularizer
            ),
            "embeddings_constraint": _compat.keras.constraints.serialize(
                self.embeddings_constraint
            ),
            "mask_zero": self.mask_zero,
        }


def _as_initializers(given, layout):
    """Returns an initializer, or a dict of one for each field that has rows of its own."""
    if not isinstance(given, collections.abc.Mapping) or "class_name" in given:
        return _initializers.get(given)
    unknown = [name for name in given if name not in layout.owners]
    if unknown:
        raise ValueError(
            f"`embeddings_initializer` has one for {unknown}; fields with rows of their own are "
            f"{[*layout.owners]}."
        )
    return {name: _initializers.get(given.get(name, "uniform")) for name in layout.owners}


def _is_list_of_tensors(inputs):
    """Whether it is a list of what has a shape each, where others are one array."""
    is_list = isinstance(inputs, (list, tuple))
    return is_list and bool(inputs) and all(hasattr(one, "shape") for one in inputs)


def _is_list_of_shapes(shape):
    is_list = isinstance(shape, (list, tuple)) and bool(shape)
    return is_list and all(isinstance(one, (list, tuple, tf.TensorShape)) for one in shape)


def _as(given, shape):
    """Returns a shape as one of the kind that was given, which tf_keras's are."""
    return tf.TensorShape(shape) if isinstance(given, tf.TensorShape) else shape


def _split(values, sizes):
    return tf.split(values, sizes) if len(sizes) > 1 else [values]


def _like(inputs, fields, outputs):
    """Returns outputs of fields in the form that the inputs had."""
    if isinstance(inputs, collections.abc.Mapping):
        return dict(zip(fields, outputs, strict=True))
    return outputs
