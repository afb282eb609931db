"""Writes rows of a table."""

import tensorflow as tf

from tf_slipstream.ops import _library
from tf_slipstream.state.table import bits_as


def set_rows(state, ids, rows):
    """Sets distinct rows of a table. Whoever calls it has marked them as changed.

    Unlike `scatter_update` the native op leaves the table as it is for whoever reads it: TensorFlow
    would turn it to copy-on-read, and the next read of all of it would copy it.

    Args:
        state: `TableState`.
        ids: int64 `[num_rows]`.
        rows: `[num_rows, dim]`, of the table's dtype.
    """
    device = state.table.device
    native = None if _library.is_gpu(device) else _library.native_ops(device)
    if native is None:
        state.table.scatter_update(tf.IndexedSlices(rows, ids))
    else:
        native.slipstream_set_rows(state.table.handle, ids, rows, table_name=state.name)


def mark_all_changed(state):
    """Notes that every row of a table may have been written."""
    words = tf.fill(tf.shape(state.changed_rows), -1)
    state.changed_rows.assign(bits_as(words, state.changed_rows.dtype))
