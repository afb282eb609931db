"""Which examples are left out, and the weights of those that are not."""

import tensorflow as tf

from tf_slipstream.data.batch_joining import num_examples_of
from tf_slipstream.ops.staleness import stale_lookups


def stale_share(lookups, tables, step, num_examples):
    """Returns the share of each example's lookups that is stale, float32 `[num_examples]`."""
    lookups = [(tables[name], _as_tensor(ids), is_padded) for name, ids, is_padded in lookups]
    check = tf.debugging.assert_equal(
        tf.stack([num_examples_of(ids) for _, ids, _ in lookups]),
        num_examples,
        "drop_stale_inputs: the first axis of the ids is not the batch's in every one of "
        f"{[state.name for state, _, _ in lookups]}",
    )
    num_stale, num_lookups = [], []
    with tf.control_dependencies([check]):
        for state, ids, is_padded in lookups:
            ids, examples = _flat_ids(ids)
            # An id that is not in the table is left to the model, whose error names it.
            is_lookup = (ids >= 0) & (ids < state.num_rows)
            is_stale = stale_lookups(state, tf.where(is_lookup, ids, 0), step)
            if is_padded:
                is_lookup &= ids != 0
            num_stale.append(_per_example(is_stale & is_lookup, examples, num_examples))
            num_lookups.append(_per_example(is_lookup, examples, num_examples))
    return tf.math.divide_no_nan(tf.add_n(num_stale), tf.add_n(num_lookups))


def _as_tensor(ids):
    is_tensor = isinstance(ids, (tf.Tensor, tf.RaggedTensor, tf.SparseTensor))
    return ids if is_tensor else tf.convert_to_tensor(ids)


def _flat_ids(ids):
    """Returns ids `[n]` and the examples they are of `[n]`; or ids `[num_examples, ...]`, None."""
    if isinstance(ids, tf.RaggedTensor):
        ids = ids.merge_dims(1, -1) if ids.shape.rank > 2 else ids
        flat, examples = ids.flat_values, ids.value_rowids()
    elif isinstance(ids, tf.SparseTensor):
        flat, examples = ids.values, ids.indices[:, 0]
    else:
        flat, examples = ids, None
    # As the layer takes them.
    wide = flat.dtype in (tf.int64, tf.uint32, tf.uint64)
    return tf.cast(flat, tf.int64 if wide else tf.int32), examples


def _per_example(is_one, examples, num_examples):
    """Returns how many of each example's are true, float32 `[num_examples]`."""
    ones = tf.cast(is_one, tf.float32)
    if examples is not None:
        return tf.math.unsorted_segment_sum(ones, examples, num_examples)
    if ones.shape.rank is None:
        return tf.reduce_sum(ones, axis=tf.range(1, tf.rank(ones)))
    return tf.reduce_sum(ones, axis=range(1, ones.shape.rank)) if ones.shape.rank > 1 else ones


def choose(is_stale, keep_fraction, max_reads, random):
    """Draws the examples of a batch to keep.

    Args:
        is_stale: bool `[num_examples]`.
        random: int64 scalar, which decides the draw.

    Returns:
        bool `[num_examples]`, whether it is kept; float32 likewise, the inverse of its chance.
    """
    num_examples = tf.size(is_stale)
    num_stale = tf.math.count_nonzero(is_stale, dtype=tf.int32)
    num_missing = -(-num_examples // max_reads) - (num_examples - num_stale)
    expected = tf.maximum(
        keep_fraction * tf.cast(num_stale, tf.float32), tf.cast(num_missing, tf.float32)
    )
    # One number for each example, and one that rounds the expected number up or down.
    draws = tf.random.stateless_uniform([num_examples + 1], tf.stack([random, 0]))
    num_kept = tf.cast(tf.floor(expected + draws[-1]), tf.int32)
    places = tf.argsort(tf.where(is_stale, draws[:-1], 2.0))[: tf.minimum(num_kept, num_stale)]
    is_drawn = tf.scatter_nd(
        places[:, tf.newaxis], tf.ones_like(places, tf.bool), tf.stack([num_examples])
    )
    weight = tf.math.divide_no_nan(tf.cast(num_stale, tf.float32), expected)
    return is_drawn | ~is_stale, tf.where(is_stale, weight, 1.0)


def weighted(weights, labels, sample_weights=None):
    """Returns sample weights: those of a batch, or ones like its labels, times `weights`."""
    if sample_weights is None:
        return tf.nest.map_structure(lambda _: weights, labels)

    def scaled(ones):
        rank = ones.shape.rank or 1
        return ones * tf.cast(tf.reshape(weights, [-1] + [1] * (rank - 1)), ones.dtype)

    return tf.nest.map_structure(scaled, sample_weights)
