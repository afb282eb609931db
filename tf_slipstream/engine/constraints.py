"""Keras constraints on the rows that a step updated."""

import tensorflow as tf

from tf_slipstream import _compat
from tf_slipstream.ops.mark_rows import mark_all_changed
from tf_slipstream.ops.set_rows import set_rows


def constrain_rows(constraint, state, ids):
    """Applies a constraint after an update.

    One that acts on each row alone is applied to the rows given. Any other (a norm along axis 0, a
    user's function) is applied to the whole table, as Keras does it.

    Args:
        constraint: Keras constraint.
        state: The `TableState`; where the whole table is written, every row is marked as changed.
        ids: `[num_lookups]`, the rows updated; may repeat.
    """
    if not _is_row_by_row(constraint):
        # Not the variable's own `assign`, which ends what is held of the table.
        type(state.table).assign(state.table, constraint(state.table))
        mark_all_changed(state)
        return
    ids, _ = tf.unique(tf.cast(ids, tf.int64))
    set_rows(state, ids, constraint(tf.gather(state.table, ids)))


def constrain_table(constraint, state):
    """Applies a constraint to every row of a table, and writes those that it changes."""
    if not _is_row_by_row(constraint):
        constrain_rows(constraint, state, None)
        return
    table = tf.convert_to_tensor(state.table)
    constrained = constraint(table)
    ids = tf.where(tf.reduce_any(constrained != table, axis=1))[:, 0]
    set_rows(state, ids, tf.gather(constrained, ids))


def _is_row_by_row(constraint):
    # Not isinstance: a subclass may do something else.
    kinds = _compat.keras.constraints
    if type(constraint) is kinds.NonNeg:
        return True
    norms = (kinds.MaxNorm, kinds.MinMaxNorm, kinds.UnitNorm)
    return type(constraint) in norms and constraint.axis in (1, -1)
