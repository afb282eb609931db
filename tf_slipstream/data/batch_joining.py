"""Full batches again, of what is left of some."""

import tensorflow as tf

# Nothing here needs AutoGraph, which takes ten seconds to translate it.
as_written = tf.autograph.experimental.do_not_convert


def join_batches(dataset, static_size):
    """Joins what is left of batches to batches of full size.

    Args:
        dataset: Of pairs: int64 scalar, how many examples a batch had; and what is left of it.
        static_size: The size of every batch, or None. If given, so have the results, and a last
            batch that is smaller is left out.

    Returns:
        Dataset of batches of the size that was the largest so far. It holds less than two batches.
    """
    spec = tf.nest.map_structure(lambda one: _sized(one, None), dataset.element_spec[1])
    nothing = _parts(tf.nest.map_structure(_nothing, spec))

    @as_written
    def join(state, item):
        (size, left), (is_end, num_examples, new) = state, item
        joined = tf.nest.map_structure(_concat, spec, _whole(spec, left), _whole(spec, new))
        size = tf.maximum(size, num_examples)
        num_joined = num_examples_of(tf.nest.flatten(joined)[0])
        num_out = tf.where(num_joined >= size, size, tf.where(is_end, num_joined, 0))
        out = tf.nest.map_structure(lambda x: _between(x, 0, num_out), joined)
        left = tf.nest.map_structure(lambda x: _between(x, num_out, num_joined), joined)
        return (size, _parts(left)), (num_out > 0, _parts(out))

    size = tf.zeros([], tf.int64)
    items = dataset.map(as_written(lambda num, new: (False, num, _parts(new))))
    if static_size is None:
        items = items.concatenate(tf.data.Dataset.from_tensors((True, size, nothing)))
    joined = items.scan((size, nothing), join).filter(as_written(lambda is_any, _: is_any))
    final = tf.nest.map_structure(lambda one: _sized(one, static_size), spec)
    return joined.map(as_written(lambda _, parts: _whole(final, parts)))


def _parts(element):
    """Returns the dense tensors that the tensors of an element consist of."""
    return tuple(tf.nest.flatten(element, expand_composites=True))


def _whole(spec, parts):
    shapes = [one.shape for one in tf.nest.flatten(spec, expand_composites=True)]
    parts = [tf.ensure_shape(part, shape) for part, shape in zip(parts, shapes, strict=True)]
    return tf.nest.pack_sequence_as(spec, parts, expand_composites=True)


def _sized(spec, num_examples):
    """Returns a tensor's spec with the first dimension replaced."""
    shape = [num_examples, *spec.shape[1:]]
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensorSpec(shape, spec.dtype, spec.ragged_rank, spec.row_splits_dtype)
    return type(spec)(shape, spec.dtype)


def _nothing(spec):
    """Returns a tensor of a spec that holds no example."""
    shape = [0 if dim is None else dim for dim in spec.shape]
    if isinstance(spec, tf.SparseTensorSpec):
        indices = tf.zeros([0, len(shape)], tf.int64)
        return tf.SparseTensor(indices, tf.zeros([0], spec.dtype), tf.constant(shape, tf.int64))
    if isinstance(spec, tf.RaggedTensorSpec) and spec.ragged_rank:
        values = tf.zeros([0, *shape[spec.ragged_rank + 1 :]], spec.dtype)
        splits = [tf.zeros([1], spec.row_splits_dtype)] * spec.ragged_rank
        return tf.RaggedTensor.from_nested_row_splits(values, splits, validate=False)
    return tf.zeros(shape, spec.dtype)


def num_examples_of(x):
    if isinstance(x, tf.RaggedTensor):
        return x.nrows(tf.int64)
    return x.dense_shape[0] if isinstance(x, tf.SparseTensor) else tf.shape(x, tf.int64)[0]


def examples_where(x, is_kept):
    """Returns the examples of a tensor that are kept, in order."""
    if isinstance(x, tf.SparseTensor):
        place = tf.cumsum(tf.cast(is_kept, tf.int64), exclusive=True)
        examples = x.indices[:, 0]
        kept = tf.sparse.retain(x, tf.gather(is_kept, examples))
        first = tf.gather(place, kept.indices[:, :1])
        num_kept = tf.math.count_nonzero(is_kept, keepdims=True)
        return tf.SparseTensor(
            tf.concat([first, kept.indices[:, 1:]], axis=1),
            kept.values,
            tf.concat([num_kept, x.dense_shape[1:]], axis=0),
        )
    return tf.gather(x, tf.where(is_kept)[:, 0])


def _between(x, start, stop):
    """Returns the examples of a tensor from `start` on, up to `stop`."""
    if isinstance(x, tf.SparseTensor):
        place = tf.range(x.dense_shape[0])
        return examples_where(x, (place >= start) & (place < stop))
    return x[start:stop]


def _concat(spec, x, y):
    if isinstance(x, tf.SparseTensor):
        return tf.sparse.concat(0, [x, y], expand_nonconcat_dims=True)
    if isinstance(x, tf.Tensor) and not spec.shape[1:].is_fully_defined():
        # Whatever shape it was made with, nothing goes with everything.
        shapes = tf.shape(x)[1:], tf.shape(y)[1:]
        shape_of_x = tf.where(tf.shape(x)[0] == 0, shapes[1], shapes[0])
        shape_of_y = tf.where(tf.shape(y)[0] == 0, shape_of_x, shapes[1])
        check = tf.debugging.assert_equal(
            shape_of_x,
            shape_of_y,
            "drop_stale_inputs joins the examples of several batches, and their shapes differ. Pad "
            "them to the same length in every batch, or use a RaggedTensor",
        )
        with tf.control_dependencies([check]):
            x = tf.reshape(x, tf.concat([tf.shape(x)[:1], shape_of_x], axis=0))
            y = tf.reshape(y, tf.concat([tf.shape(y)[:1], shape_of_y], axis=0))
    return tf.concat([x, y], axis=0)
