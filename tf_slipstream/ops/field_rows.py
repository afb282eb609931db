"""Rows of a collection's table of the ids of its fields: in training, in one pass.

What is exported has TensorFlow's own ops for it (field_layout.py).
"""

from tf_slipstream.ops import _library


def field_rows(ids, starts, sizes, names, user, dtype, axis=-1):
    """Returns the rows that ids of fields name, where there are native ops.

    Args:
        ids: List of int tensors of one dtype: one of all fields, along `axis`; or one per field.
        starts: List by field, its first row.
        sizes: List by field, its number of rows.
        names: List of the fields' names, for errors.
        user: Who asks, for errors.
        dtype: Of the rows; int64 where that of the ids is.
        axis: That of the fields, or -1 where there is a tensor for each.

    Returns:
        Of the shape of ids; or of a tensor per field `[num_lookups]`, the first field's first.

    Raises:
        tf.errors.InvalidArgumentError: If an id is not in its field's range.
    """
    return _library.native_ops().slipstream_field_rows(
        ids,
        axis=axis,
        starts=starts,
        sizes=sizes,
        names=names,
        # As in TensorFlow's own assertion, which would escape them.
        user=user.replace("'", ""),
        Trows=dtype,
    )
