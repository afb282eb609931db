"""Writes rows of a table."""

import tensorflow as tf

from tf_slipstream.ops import _library
from tf_slipstream.ops._checks import refusal


def set_rows(state, ids, rows):
    """Sets distinct rows of a table. Whoever calls it has marked them as changed.

    Unlike `scatter_update` the native op leaves the table as it is for whoever reads it: TensorFlow
    would turn it to copy-on-read, and the next read of all of it would copy it.

    Args:
        state: `TableState`.
        ids: int64 `[num_rows]`.
        rows: `[num_rows, dim]`, of the table's dtype.

    Raises:
        tf.errors.InvalidArgumentError: For another shape or dtype, or an id outside the table.
    """
    device = state.table.device
    native = None if _library.is_gpu(device) else _library.native_ops(device)
    if native is None:
        with tf.control_dependencies(_checked(state, ids, rows)):
            state.table.scatter_update(tf.IndexedSlices(rows, ids))
    else:
        native.slipstream_set_rows(state.table.handle, ids, rows, table_name=state.name)


def _checked(state, ids, rows):
    """Checks what the native op does, and returns what to wait for."""
    if rows.dtype != state.table.dtype:
        raise refusal(
            f"variable '{state.table.name}': expected {rows.dtype.name}, got "
            f"{state.table.dtype.name}"
        )
    if ids.shape.rank != 1 or not rows.shape.is_compatible_with([ids.shape[0], state.dim]):
        raise refusal(
            f"table '{state.name}' {state.table.shape}: got {ids.shape} ids and rows {rows.shape}"
        )
    if _library.is_gpu(state.table.device):
        return []  # a step refuses such ids there; to look at them would be to wait for it
    position = tf.where((ids < 0) | (ids >= state.num_rows))[:1, 0]
    message = f"is not in [0, {state.num_rows}). No row was changed."
    said = [f"table '{state.name}': id", tf.gather(ids, position), "at position", position, message]
    return [tf.debugging.Assert(tf.equal(tf.size(position), 0), said)]
