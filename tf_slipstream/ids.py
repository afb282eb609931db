"""Ids of any kind as one dense tensor to look up, and what becomes of its rows."""

import tensorflow as tf

from tf_slipstream.combiner import COMBINERS, combine_bags, combine_segments, divide_by_sizes


class Ids:
    """The ids of a call, dense, ragged or sparse.

    Args:
        user: Who looks them up, for errors.
        inputs: Ids of any kind; floats are truncated to int32.
        weights: None, or with a combiner weights of the same kind and shape.
        combiner: None or one of `COMBINERS`.
        mask_zero: Whether id 0 is left out of its bag.

    Attributes:
        dense: int32 or int64, all ids. `of_lookups` says which are to be looked up.

    Raises:
        ValueError: For ids of one axis with a combiner; for weights without a combiner, or unlike
            their ids.
    """

    def __init__(self, user, inputs, weights=None, combiner=None, mask_zero=False):
        self._ids = as_ids(inputs)
        check_rank(user, self._ids.shape, combiner)
        self._weights = None if weights is None else _checked(user, weights, self._ids, combiner)
        self._combiner = combiner
        self.dense = self._dense_ids()
        self._places = None  # of ids that are no padding, among all
        if mask_zero and combiner is not None:
            self._places = tf.where(tf.not_equal(tf.reshape(self.dense, [-1]), 0))[:, 0]

    def _dense_ids(self):
        if isinstance(self._ids, tf.RaggedTensor):
            return self._ids.flat_values
        if isinstance(self._ids, tf.SparseTensor):
            return self._ids.values if self._combiner else tf.sparse.to_dense(self._ids)
        return self._ids

    def of_lookups(self, values):
        """Returns what belongs to the ids that are to be looked up: not to the padding of bags.

        Args:
            values: Tensor of the shape of `dense`.
        """
        if self._places is None:
            return values
        return tf.gather(tf.reshape(values, [-1]), self._places)

    def outputs(self, rows):
        """Returns what rows make: as the ids, or combined.

        Args:
            rows: `[..., dim]` of `of_lookups(dense)`.
        """
        ids, is_ragged = self._ids, isinstance(self._ids, tf.RaggedTensor)
        if self._combiner is None:
            return ids.with_flat_values(rows) if is_ragged else rows
        weights = self._weights_of_lookups(rows.dtype)
        if self._places is None and self._are_alike:
            combined = combine_bags(rows, weights, self._combiner)
        else:
            combined = self._combine_segments(rows, weights)
        return _without_innermost(ids, combined) if is_ragged else combined

    def splits(self):
        """Returns where each bag begins in what is looked up, and its end: int64 `[num_bags + 1]`.

        None where sums of rows by bags are not all that a combiner needs: without one, with
        weights, and for a sparse tensor, whose ids may be in any order.
        """
        is_sparse = kind(self._ids) is tf.SparseTensor
        if self._combiner is None or self._weights is not None or is_sparse:
            return None
        if self._are_alike:
            shape = tf.shape(self.dense, tf.int64)
            splits = tf.range(tf.reduce_prod(shape[:-1]) + 1) * shape[-1]
        else:
            splits = tf.cast(self._innermost.row_splits, tf.int64)
        if self._places is None:
            return splits
        is_lookup = tf.not_equal(tf.reshape(self.dense, [-1]), 0)
        num_before = tf.pad(tf.cumsum(tf.cast(is_lookup, tf.int64)), [[1, 0]])
        return tf.gather(num_before, splits)

    def outputs_of_sums(self, sums, splits):
        """Returns what the sums of all bags make.

        Args:
            sums: `[num_bags, dim]`.
            splits: What `splits` returned.
        """
        sizes = tf.cast(splits[1:] - splits[:-1], sums.dtype)
        combined = divide_by_sizes(sums, sizes, self._combiner)
        if self._are_alike:
            combined = self._in_shape(combined, tf.shape(self.dense)[:-1])
        is_ragged = isinstance(self._ids, tf.RaggedTensor)
        return _without_innermost(self._ids, combined) if is_ragged else combined

    def _combine_segments(self, rows, weights):
        bag_of, shape = self._bags()
        if self._places is not None:
            bag_of = tf.gather(bag_of, self._places)
        # Those of a sparse tensor may be in any order.
        in_order = kind(self._ids) is not tf.SparseTensor
        num_bags = tf.reduce_prod(shape)
        combined = combine_segments(rows, weights, bag_of, num_bags, self._combiner, in_order)
        return self._in_shape(combined, shape)

    def _in_shape(self, combined, shape):
        """Returns combined bags `[num_bags, dim]` as `[*shape, dim]`."""
        combined = tf.reshape(combined, tf.concat([shape, combined.shape[-1:]], axis=0))
        if self._are_alike and self.dense.shape.rank is not None:
            combined = tf.ensure_shape(combined, [*self.dense.shape[:-1], combined.shape[-1]])
        return combined

    @property
    def _are_alike(self):
        """Whether all bags have the size of the last axis of `dense`."""
        return kind(self._ids) is not tf.SparseTensor and (
            kind(self._ids) is tf.Tensor or self.dense.shape.rank > 1
        )

    def _bags(self):
        """Returns the bag of each of all ids, int64 `[num_ids]`, and in what shape bags are."""
        if isinstance(self._ids, tf.SparseTensor):
            shape = self._ids.dense_shape
            two_axes = tf.sparse.reshape(self._ids, [tf.reduce_prod(shape[:-1]), shape[-1]])
            return two_axes.indices[:, 0], shape[:-1]
        if self._are_alike:
            shape = tf.shape(self.dense, tf.int64)
            return tf.repeat(tf.range(tf.reduce_prod(shape[:-1])), shape[-1]), shape[:-1]
        num_bags = tf.cast(self._innermost.nrows(), tf.int64)
        return tf.cast(self._innermost.value_rowids(), tf.int64), num_bags[tf.newaxis]

    @property
    def _innermost(self):
        """Of ragged ids, those whose rows are the bags."""
        innermost = self._ids
        while isinstance(innermost.values, tf.RaggedTensor):
            innermost = innermost.values
        return innermost

    def _weights_of_lookups(self, dtype):
        """Returns the weights of what is looked up; None where all are 1."""
        weights = self._weights
        if isinstance(weights, tf.RaggedTensor):
            weights = weights.flat_values
        elif isinstance(weights, tf.SparseTensor):
            weights = weights.values
        return None if weights is None else self.of_lookups(tf.cast(weights, dtype))

    def mask(self):
        """Returns where ids are not 0, boolean: ragged as they are, else dense."""
        ids = tf.sparse.to_dense(self._ids) if kind(self._ids) is tf.SparseTensor else self._ids
        return tf.not_equal(ids, 0)


def _without_innermost(ids, combined):
    """Returns ragged ids with vectors in the places of their bags."""
    if isinstance(ids.values, tf.RaggedTensor):
        return ids.with_values(_without_innermost(ids.values, combined))
    return ids.with_values(combined) if ids.values.shape.rank > 1 else combined


def join_splits(all_splits):
    """Returns the splits of ids one after the other, each with its `splits`."""
    ends = tf.cumsum([splits[-1] for splits in all_splits])
    parts = [splits[1:] + end - splits[-1] for splits, end in zip(all_splits, tf.unstack(ends))]
    return tf.concat([tf.zeros([1], tf.int64), *parts], axis=0)


def as_ids(inputs):
    """Returns ids of any kind as int32 or int64."""
    if not isinstance(inputs, (tf.Tensor, tf.RaggedTensor, tf.SparseTensor)):
        inputs = tf.convert_to_tensor(inputs)
    if inputs.dtype in (tf.int32, tf.int64):
        return inputs
    return tf.cast(inputs, tf.int64 if inputs.dtype in (tf.uint32, tf.uint64) else tf.int32)


def kind(tensor):
    """Returns the class of a dense, ragged or sparse tensor, eager or not."""
    for one in (tf.RaggedTensor, tf.SparseTensor):
        if isinstance(tensor, one):
            return one
    return tf.Tensor


def check_rank(user, ids_shape, combiner):
    """Checks that ids have an axis for a combiner.

    Args:
        user: Who looks them up, for the error.
        ids_shape: Static shape, as far as it is known.
        combiner: None or one of `COMBINERS`.
    """
    rank = tf.TensorShape(ids_shape).rank
    if combiner is not None and rank is not None and rank < 2:
        raise ValueError(
            f"{user} has combiner '{combiner}', which makes "
            "one vector of the ids of the last axis: it needs ids of at least two axes, "
            f"[batch, ids], got shape {tuple(ids_shape)}. For one id an example give them the "
            "shape [batch, 1], or construct the layer without `combiner`."
        )


def _checked(user, weights, ids, combiner):
    if combiner is None:
        raise ValueError(
            f"{user} got `weights`, which only a combiner uses. "
            f"Construct it with `combiner`, one of {COMBINERS}."
        )
    if not isinstance(weights, (tf.RaggedTensor, tf.SparseTensor)):
        weights = tf.convert_to_tensor(weights)
    if kind(weights) is not kind(ids) or not weights.shape.is_compatible_with(ids.shape):
        raise ValueError(
            f"{user} needs `weights` of the kind and shape of its ids, a {kind(ids).__name__} of "
            f"shape {ids.shape}; got a {kind(weights).__name__} of shape {weights.shape}."
        )
    return weights
