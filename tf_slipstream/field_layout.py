"""Which rows of one table belong to which field."""

import collections.abc
import itertools

import tensorflow as tf

from tf_slipstream.ops.field_rows import field_rows
from tf_slipstream.table_layer import check_dim


class FieldLayout:
    """The fields of a collection, one after the other in the rows of its table.

    Args:
        input_dims: List of the number of rows of each field; or a dict from its name to that
            number, or to the name of the field whose rows it shares.

    Attributes:
        names: Of the fields in order; of a list `"0"`, `"1"`, ...
        starts, sizes: By field in that order, its first row in the table, and how many it has.
        owners: Names of the fields that share no other field's rows, in the order of their rows.
        num_rows: Rows of the table.

    Raises:
        ValueError: For input_dims that are none.
    """

    def __init__(self, input_dims):
        is_dict = isinstance(input_dims, collections.abc.Mapping)
        if not input_dims or not is_dict and not isinstance(input_dims, (list, tuple)):
            raise ValueError(
                "`input_dims` must be a list of the number of rows of each field, or a dict from "
                f"its name to that number, with one field at least; got {input_dims!r}."
            )
        self._given = dict(input_dims) if is_dict else [*input_dims]
        dims = self._given if is_dict else dict(zip(map(str, itertools.count()), input_dims))
        self.names = tuple(dims)
        self.owners = tuple(name for name, dim in dims.items() if not isinstance(dim, str))
        for name, dim in dims.items():
            _check_field(name, dim, self.owners)
        sizes = [int(dims[name]) for name in self.owners]
        *starts, self.num_rows = itertools.accumulate(sizes, initial=0)
        start_of, size_of = dict(zip(self.owners, starts)), dict(zip(self.owners, sizes))
        owner_of = [dim if isinstance(dim, str) else name for name, dim in dims.items()]
        self.starts = tuple(start_of[name] for name in owner_of)
        self.sizes = tuple(size_of[name] for name in owner_of)

    @property
    def is_list(self):
        """Whether fields have places, and no names of their own."""
        return isinstance(self._given, list)

    @property
    def input_dims(self):
        """A copy of the argument, with plain integers."""
        if self.is_list:
            return [*self.sizes]
        given = self._given.items()
        return {name: dim if isinstance(dim, str) else int(dim) for name, dim in given}

    def place_of(self, field):
        """Returns the place of a field among `names`.

        Args:
            field: Its name, or its place itself.

        Raises:
            ValueError: If there is none.
        """
        if field in self.names:
            return self.names.index(field)
        is_place = isinstance(field, int) and not isinstance(field, bool)
        if is_place and 0 <= field < len(self.names):
            return field
        raise ValueError(f"There is no field {field!r}; there are {[*self.names]}.")

    def resized(self, changes):
        """Returns the layout with other numbers of rows.

        Args:
            changes: Dict from the names or places of fields to their number of rows.

        Raises:
            ValueError: If it is none.
        """
        if not isinstance(changes, collections.abc.Mapping):
            raise ValueError(
                "`input_dim` of a collection must be a dict from the names of fields to their "
                f"numbers of rows, got {changes!r}."
            )
        dims = dict(zip(self.names, self.sizes)) if self.is_list else self.input_dims
        for field, dim in changes.items():
            name = self.names[self.place_of(field)]
            if name not in self.owners:
                raise ValueError(
                    f"Field {name!r} shares the rows of {dims[name]!r}: resize that one."
                )
            check_dim(f"input_dim[{field!r}]", dim)
            dims[name] = int(dim)
        return FieldLayout([*dims.values()] if self.is_list else dims)

    def index_dtype(self, dtypes):
        """Returns the dtype of rows of the table that are made of ids of these dtypes."""
        is_long = tf.int64 in dtypes or self.num_rows > tf.int32.max
        return tf.int64 if is_long else tf.int32

    def rows_of_array(self, user, ids, axis, is_native=False):
        """Returns the rows of the table that ids of all fields name.

        Args:
            user: Who asks, for errors.
            ids: int32 or int64 `[..., num_fields, ...]`.
            axis: That of the fields, an int >= 0.
            is_native: Whether an op of ours does it, which is not to be exported.

        Raises:
            tf.errors.InvalidArgumentError: If an id is not in its field's range, or there are more
                fields or fewer.
        """
        if ids.shape[axis] is None:
            shape = ids.shape.as_list()
            shape[axis] = len(self.names)
            ids = tf.ensure_shape(ids, shape)
        if is_native:
            return self._native_rows(user, range(len(self.names)), [ids], axis)
        others = [one for one in range(ids.shape.rank) if one != axis]
        largest = tf.reduce_max(_unsigned(ids), axis=others)
        # [num_fields, 1, ...]
        shape = [-1] + [1] * (ids.shape.rank - 1 - axis)
        ids = tf.cast(ids, self.index_dtype([ids.dtype]))
        rows = ids + tf.reshape(tf.constant(self.starts, ids.dtype), shape)
        # Not the sum waits for the checks: the two passes over the ids go on at once.
        with tf.control_dependencies(self._checks(user, range(len(self.names)), largest)):
            return tf.identity(rows)

    def rows_of_fields(self, user, places, ids, is_native=False):
        """Returns the rows that ids of some fields name, all in one tensor.

        Args:
            user: Who asks, for errors.
            places: List of the fields' places.
            ids: List of int32 or int64 tensors, one per place.
            is_native: Whether an op of ours does it, which is not to be exported.

        Returns:
            `[num_lookups]`, those of the first field first.

        Raises:
            tf.errors.InvalidArgumentError: If an id is not in its field's range.
        """
        dtype = self.index_dtype([one.dtype for one in ids])
        if is_native:
            same = tf.int64 if any(one.dtype == tf.int64 for one in ids) else tf.int32
            return self._native_rows(user, places, [tf.cast(one, same) for one in ids])
        ids = [tf.reshape(tf.cast(one, dtype), [-1]) for one in ids]
        largest = tf.stack([tf.reduce_max(_unsigned(one)) for one in ids])
        rows = [
            one + tf.constant(self.starts[place], dtype) if self.starts[place] else one
            for place, one in zip(places, ids, strict=True)
        ]
        rows = rows[0] if len(rows) == 1 else tf.concat(rows, axis=0)
        with tf.control_dependencies(self._checks(user, places, largest)):
            return tf.identity(rows)

    def _native_rows(self, user, places, ids, axis=-1):
        return field_rows(
            ids,
            [self.starts[place] for place in places],
            [self.sizes[place] for place in places],
            [self.names[place] for place in places],
            user,
            self.index_dtype([ids[0].dtype]),
            axis,
        )

    def _checks(self, user, places, largest):
        """Returns what to wait for in a graph, which fails for an id outside of its field.

        Args:
            user: Who asks.
            places: The fields' places.
            largest: `[num_places]`, each field's largest id as an unsigned integer. That of a
                negative one is larger than any range.
        """
        sizes = tf.constant([self.sizes[place] for place in places], largest.dtype)
        names = tf.constant([self.names[place] for place in places])
        is_good = tf.reduce_all(largest < sizes)

        def message():
            bad = tf.argmax(tf.cast(largest >= sizes, tf.int32))
            signed = tf.int64 if largest.dtype == tf.uint64 else tf.int32
            # No quotes: the op writes a backslash before each.
            return tf.strings.join(
                [
                    f"{user}: field ".replace("'", ""),
                    names[bad],
                    ": id ",
                    tf.strings.as_string(tf.bitcast(largest[bad], signed)),
                    " is not in [0, ",
                    tf.strings.as_string(tf.bitcast(sizes[bad], signed)),
                    ")",
                ]
            )

        if tf.executing_eagerly():
            if not is_good:
                raise tf.errors.InvalidArgumentError(None, None, message().numpy().decode())
            return []
        # The message is made on failure alone.
        return [tf.cond(is_good, tf.no_op, lambda: tf.debugging.Assert(False, [message()]))]


def _check_field(name, dim, owners):
    if not isinstance(name, str):
        raise ValueError(f"A field of `input_dims` must have a string for its name, got {name!r}.")
    if not isinstance(dim, str):
        check_dim(f"input_dims[{name!r}]", dim)
    elif dim not in owners:
        raise ValueError(
            f"Field {name!r} of `input_dims` shares the rows of {dim!r}, which must be a field "
            f"with rows of its own: one of {[*owners]}."
        )


def _unsigned(ids):
    return tf.bitcast(ids, tf.uint64 if ids.dtype == tf.int64 else tf.uint32)
