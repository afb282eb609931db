"""Makes rows of a table as if they had never been trained."""

import tensorflow as tf

from tf_slipstream.ops import _library
from tf_slipstream.ops._tables import pool_arguments
from tf_slipstream.ops.row_updates import mark_changed
from tf_slipstream.state.table import bits_as


def reset_rows(rule, state, rows, values):
    """Gives distinct rows new values and the state of rows that were never trained.

    They are marked as changed. What is held of them is gone.

    Args:
        rule: The `UpdateRule` of the table.
        state: `TableState`.
        rows: int64 `[num]`.
        values: `[num, dim]`, of the table's dtype.

    Raises:
        tf.errors.InvalidArgumentError: For a row outside of the table, or state that was not
            restored whole.
    """
    device = state.table.device
    native = None if _library.is_gpu(device) else _library.native_ops(device)
    if native is not None:
        held = [] if state.local_held is None else [state.local_held.handle]
        native.slipstream_reset_rows(
            table=state.table.handle,
            slots=[slot.handle for slot in state.slots],
            last_steps=[] if state.last_steps is None else [state.last_steps.handle],
            changed_rows=state.changed_rows.handle,
            **pool_arguments([state]),
            local_held=held,
            rows=rows,
            values=values,
            slot_values=[slot.initial_value for slot in rule.slots],
            table_name=state.name,
        )
        return
    set_rows(state.table, rows, values)
    for slot, variable in zip(rule.slots, state.slots, strict=True):
        shape = [tf.size(rows), variable.shape[1]]
        set_rows(variable, rows, tf.fill(shape, tf.constant(slot.initial_value, variable.dtype)))
    if state.last_steps is not None:
        zeros = tf.zeros([tf.size(rows)], tf.int32)
        set_rows(state.last_steps, rows, bits_as(zeros, state.last_steps.dtype))
    mark_changed(state.changed_rows, rows)


def set_rows(variable, rows, values):
    """Sets rows of a variable, of its own on each replica."""
    tf.raw_ops.ResourceScatterUpdate(resource=variable.handle, indices=rows, updates=values)
