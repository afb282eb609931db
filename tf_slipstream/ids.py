"""Ids of any kind as one dense tensor to look up, and what becomes of its rows."""

import tensorflow as tf

from tf_slipstream.combiner import COMBINERS, combine_bags, combine_segments


class Ids:
    """The ids of a call, dense, ragged or sparse.

    Args:
        user: Who looks them up, for errors.
        inputs: Ids of any kind; floats are truncated to int32.
        weights: None, or with a combiner weights of the same kind and shape.
        combiner: None or one of `COMBINERS`.
        mask_zero: Whether id 0 is left out of its bag.

    Attributes:
        dense: int32 or int64, the ids that are to be looked up.

    Raises:
        ValueError: For ids of one axis with a combiner; for weights without a combiner, or unlike
            their ids.
    """

    def __init__(self, user, inputs, weights=None, combiner=None, mask_zero=False):
        self._ids = as_ids(inputs)
        check_rank(user, self._ids.shape, combiner)
        self._weights = None if weights is None else _checked(user, weights, self._ids, combiner)
        self._combiner, self._mask_zero = combiner, mask_zero
        self.dense = self._dense_ids()

    def _dense_ids(self):
        if isinstance(self._ids, tf.RaggedTensor):
            return self._ids.flat_values
        if isinstance(self._ids, tf.SparseTensor):
            return self._ids.values if self._combiner else tf.sparse.to_dense(self._ids)
        return self._ids

    def outputs(self, rows):
        """Returns what the rows `[..., dim]` of `dense` make: as the ids, or combined."""
        ids = self._ids
        if self._combiner is None:
            return ids.with_flat_values(rows) if isinstance(ids, tf.RaggedTensor) else rows
        weights = self._effective_weights(rows.dtype)
        if isinstance(ids, tf.RaggedTensor):
            return self._combine_ragged(ids, rows, weights)
        if isinstance(ids, tf.SparseTensor):
            return self._combine_sparse(rows, weights)
        return combine_bags(rows, weights, self._combiner)

    def _combine_ragged(self, ids, rows, weights):
        if ids.values.shape.rank > 1:
            if isinstance(ids.values, tf.RaggedTensor):
                return ids.with_values(self._combine_ragged(ids.values, rows, weights))
            return ids.with_values(combine_bags(rows, weights, self._combiner))
        return combine_segments(
            rows, weights, ids.value_rowids(), ids.nrows(), self._combiner, in_order=True
        )

    def _combine_sparse(self, rows, weights):
        bags_shape = self._ids.dense_shape[:-1]
        shape = [tf.reduce_prod(bags_shape), self._ids.dense_shape[-1]]
        two_axes = tf.sparse.reshape(self._ids, shape)
        combined = combine_segments(
            rows, weights, two_axes.indices[:, 0], two_axes.dense_shape[0], self._combiner
        )
        return tf.reshape(combined, tf.concat([bags_shape, [rows.shape[-1]]], axis=0))

    def _effective_weights(self, dtype):
        """Returns the weights of `dense`, 0 for padding; None where all are 1."""
        weights = self._weights
        if isinstance(weights, tf.RaggedTensor):
            weights = weights.flat_values
        elif isinstance(weights, tf.SparseTensor):
            weights = weights.values
        weights = None if weights is None else tf.cast(weights, dtype)
        if not self._mask_zero:
            return weights
        is_id = tf.cast(tf.not_equal(self.dense, 0), dtype)
        return is_id if weights is None else weights * is_id

    def mask(self):
        """Returns where ids are not 0, boolean: ragged as they are, else dense."""
        ids = tf.sparse.to_dense(self._ids) if kind(self._ids) is tf.SparseTensor else self._ids
        return tf.not_equal(ids, 0)


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
