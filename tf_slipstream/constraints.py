"""Keras constraints on the rows that a step updated."""

import tensorflow as tf

from tf_slipstream import _keras


def constrain_rows(constraint, state, ids):
    """Applies a constraint after an update.

    One that acts on each row alone is applied to the rows given. Any other (a norm along axis 0, a
    user's function) is applied to the whole table, as Keras does it.

    Args:
        constraint: Keras constraint.
        state: The `TableState`; where the whole table is written, every row is marked as changed.
        ids: `[num_lookups]`, the rows updated; may repeat.
    """
    table = state.table
    if not _is_row_by_row(constraint):
        table.assign(constraint(table))
        all_changed = tf.fill(tf.shape(state.changed_rows), -1)
        state.changed_rows.assign(tf.bitcast(all_changed, state.changed_rows.dtype))
        return
    ids, _ = tf.unique(ids)
    table.scatter_update(tf.IndexedSlices(constraint(tf.gather(table, ids)), ids))


def _is_row_by_row(constraint):
    # Not isinstance: a subclass may do something else.
    kinds = _keras.keras.constraints
    if type(constraint) is kinds.NonNeg:
        return True
    norms = (kinds.MaxNorm, kinds.MinMaxNorm, kinds.UnitNorm)
    return type(constraint) in norms and constraint.axis in (1, -1)
