"""The rows of tables, and of their state, in a file of weights: written and read in parts.

A whole table may be more than this machine has memory for, and TensorFlow sends nothing of 2 GB or
more from one machine of a cluster to another.
"""

import numpy as np
import tensorflow as tf

from tf_slipstream import _compat

# Of a message.
_PART_BYTES = 16 << 20


def save_rows(tables, store, key):
    """Writes a table into what Keras gives `save_own_variables`, as one value.

    Args:
        tables: `tf.Variable`s `[num_rows, ...]`, one after the other the table.
        store: Of Keras, or a dict.
        key: String.
    """
    shape, dtype = _shape_of(tables), tables[0].dtype.as_numpy_dtype
    rows = _compat.new_dataset(store, key, shape, dtype)
    in_parts = rows is not None
    rows = rows if in_parts else np.empty(shape, dtype)
    for table, first, last, start in _parts(tables):
        rows[first:last] = read_rows(table, first - start, last - start)
    if not in_parts:
        store[key] = rows


def load_rows(user, tables, store, key):
    """Reads a table from what Keras gives `load_own_variables`.

    Args:
        user: Whose table it is, for the error.
        tables: As of `save_rows`.
        store: Of Keras, or a dict.
        key: String.

    Raises:
        ValueError: If it is of another shape. No row has changed then.
    """
    rows = _compat.dataset_of(store, key)
    rows = store[key] if rows is None else rows
    shape = _shape_of(tables)
    if tuple(rows.shape) != shape:
        raise ValueError(f"The file has {list(rows.shape)} for what is {list(shape)} in {user}.")
    for table, first, last, start in _parts(tables):
        with tf.device(table.device):
            ids = tf.range(first - start, last - start, dtype=tf.int64)
            part = tf.IndexedSlices(tf.convert_to_tensor(rows[first:last], table.dtype), ids)
            table.scatter_update(part)


def read_rows(table, first, last):
    """Returns rows of a `tf.Variable` as an array, and reads no others.

    Args:
        table: `[num_rows, ...]`, here or on a server. There a slice would be one of a copy of all.
        first: Number of the first row.
        last: Of that after the last.
    """
    # Where the table is, so that ids are not sent.
    with tf.device(table.device):
        return tf.gather(table, tf.range(first, last, dtype=tf.int64)).numpy()


def save_variables(variables, store):
    """Writes variables on servers as Keras's optimizers do: as "0", "1" and so on."""
    for number, variable in enumerate(variables):
        if variable.shape.rank == 0:
            store[str(number)] = variable.numpy()
        else:
            save_rows([variable], store, str(number))


def load_variables(user, variables, store):
    """Reads what `save_variables` wrote.

    Args:
        user: Whose variables they are, for the error.
        variables: `tf.Variable`s.
        store: What Keras gives `load_own_variables`.

    Raises:
        ValueError: If one is of another shape.
    """
    for number, variable in enumerate(variables):
        if variable.shape.rank == 0:
            variable.assign(np.asarray(store[str(number)]))
        else:
            load_rows(user, [variable], store, str(number))


def _shape_of(tables):
    return (sum(int(table.shape[0]) for table in tables), *map(int, tables[0].shape[1:]))


def _parts(tables):
    """Yields each table's parts: which rows of the whole they are, and where the table begins."""
    row_bytes = tables[0].dtype.size * int(np.prod(tables[0].shape[1:]))
    step, start = max(1, _PART_BYTES // max(1, row_bytes)), 0
    for table in tables:
        end = start + int(table.shape[0])
        for first in range(start, end, step):
            yield table, first, min(first + step, end), start
        start = end
