"""The ids of a batch, of whatever kind, as rows of one table."""

import collections

import tensorflow as tf

# What a batch looks up, flat: rows of the one table, int `[num_lookups]`; the input and the field
# that each is of, int32 `[num_lookups]`; its share of its field in the input, float32
# `[num_lookups]`, None where each input has one id per field; and the number of inputs.
Lookups = collections.namedtuple("Lookups", ["rows", "inputs", "fields", "shares", "num_inputs"])


class Fields:
    """Fields whose rows are one after the other in one table.

    Args:
        input_dims: Dict from the name of each field to its number of ids, or a list of numbers.
    """

    def __init__(self, input_dims):
        is_dict = isinstance(input_dims, dict)
        pairs = input_dims.items() if is_dict else enumerate(input_dims)
        self.names = [str(name) for name, _ in pairs]
        self._keys = list(input_dims) if is_dict else None
        self._dims = list(input_dims.values()) if is_dict else list(input_dims)
        self._begins = [sum(self._dims[:place]) for place in range(len(self._dims))]
        self.num_rows = sum(self._dims)
        self._dtype = tf.int32 if self.num_rows <= tf.int32.max else tf.int64

    def lookups(self, ids):
        """Returns the `Lookups` of a batch.

        Args:
            ids: Int tensor `[batch, num_fields]`, a column per field in order; or, by name or in
                order, one tensor per field: dense `[batch]` or `[batch, ...]`, ragged or sparse.

        Raises:
            ValueError: If these are not the fields that there are.
            tf.errors.InvalidArgumentError: At the call, for an id that is not in its field.
        """
        parts = [_flat(part) for part in self._parts(ids)]
        fields = [tf.fill(tf.shape(one), place) for place, (one, _, _, _) in enumerate(parts)]
        is_single = all(width == 1 for _, _, width, _ in parts)
        # One id each: those of an input stand together, as the sum over them needs it.
        join = (lambda some: tf.reshape(tf.stack(some, 1), [-1])) if is_single else _concat
        ids, fields = join([one for one, _, _, _ in parts]), join(fields)
        inputs = join([one for _, one, _, _ in parts])
        num_inputs = parts[0][3]
        with tf.control_dependencies([self._check(ids, fields)]):
            begins = tf.constant(self._begins, self._dtype)
            rows = tf.cast(ids, self._dtype) + tf.gather(begins, fields)
        shares = None
        if not is_single:
            # The mean over a field's ids: a long bag is to weigh as much as a short one.
            bags = inputs * len(self.names) + fields
            num_bags = num_inputs * len(self.names)
            sizes = tf.math.bincount(bags, minlength=num_bags, maxlength=num_bags)
            shares = 1 / tf.cast(tf.gather(sizes, bags), tf.float32)
        return Lookups(rows, inputs, fields, shares, num_inputs)

    def _parts(self, ids):
        names = ", ".join(self.names)
        if isinstance(ids, dict):
            missing = [key for key in self._keys or self.names if key not in ids]
            if missing:
                raise ValueError(
                    f"Pilot needs ids of the fields {names}; got {', '.join(map(str, ids))}. Give "
                    "it `ids`, a function of the model's inputs that returns a dict of them."
                )
            return [ids[key] for key in self._keys or self.names]
        if isinstance(ids, (list, tuple)):
            parts, num = list(ids), len(ids)
        else:
            ids = _as_tensor(ids)
            num = ids.shape[1] if isinstance(ids, tf.Tensor) and ids.shape.rank == 2 else 1
            parts = [ids]
            if isinstance(ids, tf.Tensor) and ids.shape.rank == 2 and num == len(self.names):
                parts = tf.unstack(ids, axis=1)
        if num != len(self.names):
            raise ValueError(
                f"Pilot needs ids of {len(self.names)} fields ({names}), one tensor each or a "
                f"column each of one tensor; got {num}. Give it `ids`, a function of the model's "
                "inputs that returns them."
            )
        return parts

    def _check(self, ids, fields):
        dims = tf.gather(tf.constant(self._dims, ids.dtype), fields)
        is_bad = (ids < 0) | (ids >= dims)
        place = tf.where(is_bad)[:1, 0]
        field = tf.gather(fields, place)
        return tf.debugging.Assert(
            tf.logical_not(tf.reduce_any(is_bad)),
            [
                "Pilot: id",
                tf.gather(ids, place),
                "is not in [0, input_dim) of its field",
                tf.gather(tf.constant(self.names), field),
                "of input_dim",
                tf.gather(dims, place),
            ],
        )


def _as_tensor(value):
    is_tensor = isinstance(value, (tf.Tensor, tf.RaggedTensor, tf.SparseTensor))
    return value if is_tensor else tf.convert_to_tensor(value)


def _concat(parts):
    return tf.concat(parts, axis=0)


def _flat(ids):
    """Returns ids int64 `[num]`, their inputs int32 `[num]`, the width if static, the inputs' number."""
    ids = _as_tensor(ids)
    if isinstance(ids, tf.SparseTensor):
        return (
            tf.cast(ids.values, tf.int64),
            tf.cast(ids.indices[:, 0], tf.int32),
            None,
            tf.cast(ids.dense_shape[0], tf.int32),
        )
    if isinstance(ids, tf.RaggedTensor):
        ids = ids.merge_dims(1, -1) if ids.shape.rank > 2 else ids
        return (
            tf.cast(ids.values, tf.int64),
            tf.cast(ids.value_rowids(), tf.int32),
            None,
            tf.cast(ids.nrows(), tf.int32),
        )
    num_inputs = tf.shape(ids)[0]
    if ids.shape.rank == 1:
        return tf.cast(ids, tf.int64), tf.range(num_inputs), 1, num_inputs
    width = ids.shape[1:].num_elements()
    inputs = tf.repeat(tf.range(num_inputs), tf.size(ids) // tf.maximum(num_inputs, 1))
    return tf.cast(tf.reshape(ids, [-1]), tf.int64), inputs, width, num_inputs
