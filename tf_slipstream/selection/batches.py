"""Taking inputs out of batches, and putting them together to full ones."""

import tensorflow as tf


def take(structure, positions):
    """Returns the inputs of a batch at these positions.

    Args:
        structure: Dense, ragged and sparse tensors `[batch, ...]`, nested; None stays None.
        positions: int64 `[num]`.
    """
    return tf.nest.map_structure(lambda value: _take(value, positions), structure)


def join(first, second):
    """Returns the inputs of two batches in one."""
    return tf.nest.map_structure(_join, first, second)


def size(structure):
    """Returns the number of inputs of a batch, an int where it is known, else a tensor."""
    value = next(part for part in tf.nest.flatten(structure) if part is not None)
    if isinstance(value, tf.SparseTensor):
        return tf.cast(value.dense_shape[0], tf.int32)
    if isinstance(value, tf.RaggedTensor):
        return tf.cast(value.nrows(), tf.int32)
    return value.shape[0] if value.shape[0] is not None else tf.shape(value)[0]


def with_size(structure, num_inputs):
    """Returns a batch whose dense tensors say how many inputs there are."""

    def set_shape(value):
        if isinstance(value, tf.Tensor):
            return tf.ensure_shape(value, [num_inputs, *value.shape[1:]])
        return value

    return tf.nest.map_structure(set_shape, structure)


def _take(value, positions):
    if value is None:
        return None
    if not isinstance(value, tf.SparseTensor):
        return tf.gather(value, positions)
    # Positions are in order and each is there once.
    positions = tf.cast(positions, tf.int64)
    num = tf.size(positions, tf.int64)
    new_place = tf.scatter_nd(positions[:, tf.newaxis], tf.range(1, num + 1), value.dense_shape[:1])
    places = tf.gather(new_place, value.indices[:, 0])  # 0: not kept
    is_kept = places > 0
    indices = tf.concat([places[:, tf.newaxis] - 1, value.indices[:, 1:]], axis=1)
    return tf.SparseTensor(
        tf.boolean_mask(indices, is_kept),
        tf.boolean_mask(value.values, is_kept),
        tf.concat([[num], value.dense_shape[1:]], axis=0),
    )


def _join(first, second):
    if first is None:
        return None
    if isinstance(first, tf.SparseTensor):
        return tf.sparse.concat(0, [first, second], expand_nonconcat_dims=True)
    return tf.concat([first, second], axis=0)


class Waiting(tf.train.Checkpoint):
    """Inputs that were kept and wait until there are enough of them for a batch.

    Variables of no fixed length, which a checkpoint has and Keras's own files have not.

    Args:
        structure: Of a batch, nested tensors with all axes but the first of known length.
    """

    def __init__(self, structure):
        specs = tf.nest.map_structure(_spec_of, structure)
        with tf.init_scope():
            empty = [_empty_components(spec) for spec in tf.nest.flatten(specs)]
            variables = [
                tf.Variable(value, shape=[None, *value.shape[1:]], trainable=False)
                for values in empty
                for value in values
            ]
            self._most = tf.Variable(0, trainable=False)
        super().__init__(**{f"part_{i}": one for i, one in enumerate(variables)})
        # Behind functions: a trackable makes objects of its own of dicts and lists.
        self._variables = lambda: variables
        self._specs = lambda: specs

    def read(self):
        """Returns the inputs that wait."""
        values = iter([one.read_value() for one in self._variables()])
        return tf.nest.map_structure(lambda spec: _value_of(spec, values), self._specs())

    def write(self, structure):
        """Has these inputs wait, in place of those before."""
        values = [part for value in tf.nest.flatten(structure) for part in _components_of(value)]
        for variable, value in zip(self._variables(), values, strict=True):
            variable.assign(value)

    def most(self):
        """Returns the size of the largest batch so far."""
        return self._most.read_value()

    def most_of(self, num_inputs):
        """Returns the size of the largest batch so far, of which this is the size of the next."""
        self._most.assign(tf.maximum(self._most, num_inputs))
        return self._most.read_value()


class _Spec:
    """What a tensor is like, but for the number of inputs. No structure to `tf.nest`."""

    def __init__(self, kind, dtype=None, shape=(), num_splits=0):
        self.kind, self.dtype, self.shape, self.num_splits = kind, dtype, shape, num_splits


def _spec_of(value):
    if value is None:
        return _Spec("none")
    if isinstance(value, tf.RaggedTensor):
        flat = value.flat_values
        return _Spec("ragged", flat.dtype, tuple(flat.shape[1:]), value.ragged_rank)
    shape = tuple(value.shape)
    if isinstance(value, tf.SparseTensor):
        return _Spec("sparse", value.dtype, (len(shape), *shape[1:]))
    if any(dim is None for dim in shape[1:]):
        raise ValueError(
            "Inputs wait for a full batch with tensors whose axes after the first have a known "
            f"length; got one of shape {shape}. Pad them to a fixed length, give a "
            "tf.RaggedTensor, or construct SelectiveModel with batches='shrunk'."
        )
    return _Spec("dense", value.dtype, shape[1:])


def _empty_components(spec):
    if spec.kind == "none":
        return []
    if spec.kind == "sparse":
        rank, *dims = spec.shape
        return [
            tf.zeros([0, rank], tf.int64),
            tf.zeros([0], spec.dtype),
            tf.constant([0, *(dim or 0 for dim in dims)], tf.int64),
        ]
    splits = [tf.zeros([1], tf.int64)] * spec.num_splits
    if spec.dtype == tf.string:
        return [tf.fill([0, *spec.shape], ""), *splits]
    return [tf.zeros([0, *spec.shape], spec.dtype), *splits]


def _components_of(value):
    if value is None:
        return []
    if isinstance(value, tf.SparseTensor):
        return [value.indices, value.values, value.dense_shape]
    if isinstance(value, tf.RaggedTensor):
        splits = [tf.cast(one, tf.int64) for one in value.nested_row_splits]
        return [value.flat_values, *splits]
    return [value]


def _value_of(spec, values):
    if spec.kind == "none":
        return None
    if spec.kind == "sparse":
        rank = spec.shape[0]
        indices, flat, dense_shape = next(values), next(values), next(values)
        indices = tf.ensure_shape(indices, [None, rank])
        return tf.SparseTensor(indices, flat, tf.ensure_shape(dense_shape, [rank]))
    flat = next(values)
    if spec.kind == "ragged":
        splits = [next(values) for _ in range(spec.num_splits)]
        return tf.RaggedTensor.from_nested_row_splits(flat, splits, validate=False)
    return flat
