"""The rows of tables, and of their state, in a file of weights: written and read in parts.

A whole table may be more than this machine has memory for, and TensorFlow sends nothing of 2 GB or
more from one machine of a cluster to another.
"""

import numpy as np
import tensorflow as tf

from tf_slipstream import _compat
from tf_slipstream.state.schema_version import variables_in, write_version

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
    for table in tables:
        # `scatter_update` turned it on: each read of the whole table, a checkpoint's too, would
        # copy it.
        with tf.device(table.device):
            tf.raw_ops.DisableCopyOnRead(resource=table.handle)


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


def save_optimizer(optimizer, store, save_whole):
    """Writes an optimizer's variables, in parts where they are on servers, and the version.

    Args:
        optimizer: `SlipstreamOptimizer`.
        store: What Keras gives `save_own_variables`.
        save_whole: Keras's own method.
    """
    if _is_on_servers(optimizer):
        for key, variable in _by_key(optimizer).items():
            if variable.shape.rank == 0:
                store[key] = variable.numpy()
            else:
                save_rows([variable], store, key)
    else:
        save_whole(store)
    write_version(store)


def load_optimizer(optimizer, store, load_whole):
    """Reads what `save_optimizer` wrote, if it is of as many variables.

    Args:
        optimizer: `SlipstreamOptimizer`.
        store: What Keras gives `load_own_variables`.
        load_whole: Keras's own method.

    Raises:
        ValueError: If it is of another version, or a variable is of another shape.
    """
    variables = _by_key(optimizer)
    saved = variables_in(store, len(variables))
    if not _is_on_servers(optimizer) or len(saved) != len(variables):
        # Of another number of variables Keras says that it reads none.
        load_whole(saved)
        return
    for key, variable in variables.items():
        if variable.shape.rank == 0:
            variable.assign(np.asarray(store[key]))
        else:
            load_rows(f"optimizer '{optimizer.name}'", [variable], store, key)


def _is_on_servers(optimizer):
    return optimizer.engine is not None and optimizer.engine.is_on_servers


def _by_key(optimizer):
    """Returns an optimizer's `tf.Variable`s by the keys that Keras gives them in a file."""
    return {str(i): _compat.tf_variable(v) for i, v in enumerate(optimizer.variables)}


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
