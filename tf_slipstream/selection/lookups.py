"""The ids of a batch, of whatever kind, as rows of one table."""

import tensorflow as tf


class Lookups:
    """What a batch looks up.

    Args:
        rows: Rows of the one table, int `[num_lookups]`.
        num_inputs: Of the batch.
        num_fields: Of the table.
        bags: None where each input has one id per field, in order; else a triple of the input and
            the field that each lookup is of, int32 `[num_lookups]`, and its share of its field,
            float32 `[num_lookups]`.
    """

    def __init__(self, rows, num_inputs, num_fields, bags=None):
        self.rows, self.num_inputs = rows, num_inputs
        self._num_fields, self._bags = num_fields, bags

    # What follows is computed where it is asked for: most steps do not count by field.

    def sums(self, values):
        """Returns the sum over fields of the mean over a field's ids, `[num_inputs]`."""
        if self._bags is None:
            return tf.reduce_sum(tf.reshape(values, [self.num_inputs, self._num_fields]), 1)
        inputs, _, shares = self._bags
        return tf.math.unsorted_segment_sum(values * shares, inputs, self.num_inputs)

    def per_lookup(self, values):
        """Returns the value of each lookup's input, of values `[num_inputs]`."""
        if self._bags is None:
            shape = [self.num_inputs, self._num_fields]
            return tf.reshape(tf.broadcast_to(values[:, tf.newaxis], shape), [-1])
        return tf.gather(values, self._bags[0])

    def gradients(self, grads):
        """Returns the gradient of each lookup of those of `sums`, `[num_inputs]`."""
        grads = self.per_lookup(grads)
        return grads if self._bags is None else grads * self._bags[2]

    def fields(self):
        """Returns the field of each lookup, int32."""
        if self._bags is None:
            return tf.tile(tf.range(self._num_fields), [self.num_inputs])
        return self._bags[1]


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

    def lookups(self, ids):
        """Returns the `Lookups` of a batch.

        Args:
            ids: Int tensor `[batch, num_fields]`, a column per field in order; or, by name or in
                order, one tensor per field: dense `[batch]` or `[batch, ...]`, ragged or sparse.

        Raises:
            ValueError: If these are not the fields that there are.
            tf.errors.InvalidArgumentError: At the call, for an id that is not in its field.
        """
        matrix = self._matrix(ids)
        num_fields = len(self.names)
        if matrix is not None:
            matrix = matrix if matrix.dtype in (tf.int32, tf.int64) else tf.cast(matrix, tf.int64)
            rows = self._checked_rows(matrix, tf.range(num_fields))
            return Lookups(tf.reshape(rows, [-1]), tf.shape(matrix)[0], num_fields)
        parts = [_flat(part) for part in self._parts(ids)]
        fields = [tf.fill(tf.shape(one), place) for place, (one, _, _) in enumerate(parts)]
        fields = tf.concat(fields, axis=0)
        ids = tf.concat([one for one, _, _ in parts], axis=0)
        inputs = tf.concat([one for _, one, _ in parts], axis=0)
        num_inputs = parts[0][2]
        # The mean over a field's ids: a long bag is to weigh as much as a short one.
        bags, num_bags = inputs * num_fields + fields, num_inputs * num_fields
        sizes = tf.math.bincount(bags, minlength=num_bags, maxlength=num_bags)
        shares = 1 / tf.cast(tf.gather(sizes, bags), tf.float32)
        rows = self._checked_rows(ids, fields)
        return Lookups(rows, num_inputs, num_fields, (inputs, fields, shares))

    def _matrix(self, ids):
        """Returns ids `[batch, num_fields]` where each input has one id per field, else None."""
        if not isinstance(ids, (dict, list, tuple)):
            ids = _as_tensor(ids)
            is_matrix = isinstance(ids, tf.Tensor) and ids.shape.rank == 2
            return ids if is_matrix and ids.shape[1] == len(self.names) else None
        parts = [_as_tensor(part) for part in self._parts(ids)]
        if not all(isinstance(part, tf.Tensor) and _is_single(part.shape) for part in parts):
            return None
        return tf.stack([tf.reshape(tf.cast(part, tf.int64), [-1]) for part in parts], axis=1)

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
        if num != len(self.names):
            raise ValueError(
                f"Pilot needs ids of {len(self.names)} fields ({names}), one tensor each or a "
                f"column each of one tensor; got {num}. Give it `ids`, a function of the model's "
                "inputs that returns them."
            )
        return parts

    def _checked_rows(self, ids, fields):
        """Returns the rows of ids, whose fields are of the same shape or of that of their end."""
        dtype = tf.int64 if self.num_rows > tf.int32.max else ids.dtype
        ids = tf.cast(ids, dtype)
        dims = tf.gather(tf.constant(self._dims, dtype), fields)
        begins = tf.gather(tf.constant(self._begins, dtype), fields)
        is_bad = (ids < 0) | (ids >= dims)
        with tf.control_dependencies([self._check(ids, fields, is_bad)]):
            return ids + begins

    def _check(self, ids, fields, is_bad):
        place = tf.where(is_bad)[:1]
        field = tf.gather_nd(tf.broadcast_to(fields, tf.shape(ids)), place)
        return tf.debugging.Assert(
            tf.logical_not(tf.reduce_any(is_bad)),
            [
                "Pilot: id",
                tf.gather_nd(ids, place),
                "is not in [0, input_dim) of its field",
                tf.gather(tf.constant(self.names), field),
                "of input_dim",
                tf.gather(tf.constant(self._dims, tf.int64), field),
            ],
        )


def _is_single(shape):
    return shape.rank is not None and shape[1:].num_elements() == 1


def _as_tensor(value):
    is_tensor = isinstance(value, (tf.Tensor, tf.RaggedTensor, tf.SparseTensor))
    return value if is_tensor else tf.convert_to_tensor(value)


def _concat(parts):
    return tf.concat(parts, axis=0)


def _flat(ids):
    """Returns ids int64 `[num]`, the input of each int32 `[num]`, and the number of inputs."""
    ids = _as_tensor(ids)
    if isinstance(ids, tf.SparseTensor):
        inputs, num_inputs = ids.indices[:, 0], ids.dense_shape[0]
        values = ids.values
    elif isinstance(ids, tf.RaggedTensor):
        ids = ids.merge_dims(1, -1) if ids.shape.rank > 2 else ids
        inputs, num_inputs, values = ids.value_rowids(), ids.nrows(), ids.values
    else:
        num_inputs = tf.shape(ids)[0]
        width = tf.size(ids) // tf.maximum(num_inputs, 1)
        inputs, values = tf.repeat(tf.range(num_inputs), width), tf.reshape(ids, [-1])
    return tf.cast(values, tf.int64), tf.cast(inputs, tf.int32), tf.cast(num_inputs, tf.int32)
