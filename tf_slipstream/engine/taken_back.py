"""Rows that a vocabulary took back, on their way to the tables that reset them.

They travel with the rows that it returns, as an attribute of these tensors: whatever table looks
these up resets those first, in the same step.
"""

import dataclasses

import tensorflow as tf

from tf_slipstream.engine import registry
from tf_slipstream.ops import _library
from tf_slipstream.ops.reset_rows import reset_rows, set_rows
from tf_slipstream.state import schema

_ATTRIBUTE = "_slipstream_taken_back"


@dataclasses.dataclass(frozen=True)
class TakenBack:
    """What a step of a vocabulary took back.

    Attributes:
        rows: int64 `[num]`; may repeat.
        step: int64 scalar, the vocabulary's step.
        counters: The vocabulary's `tf.Variable` of counters.
        vocabulary: The `DynamicVocabulary`.
    """

    rows: tf.Tensor
    step: tf.Tensor
    counters: tf.Variable
    vocabulary: object

    def go_with(self, *tensors):
        """Has whoever looks up one of these tensors reset the rows."""
        for tensor in tensors:
            setattr(tensor, _ATTRIBUTE, self)


def taken_back_with(ids):
    """Returns the `TakenBack` that goes with ids of any kind; None where there is none."""
    return getattr(ids, _ATTRIBUTE, None)


def reset(taken_back, table, first_row, values_of):
    """Resets rows of a table, and all that optimizers hold of them.

    Args:
        taken_back: `TakenBack`.
        table: `tf.Variable`.
        first_row: The row of the table that the vocabulary's row 0 is.
        values_of: `values_of(rows, step)` returns the first values of distinct rows of the
            vocabulary, of the table's dtype.
    """
    # A graph keeps what it is traced with; an optimizer that is made while it is traced, has it
    # traced once more.
    held = [(one.rule, one.state_of(table)) for one in registry.holders_of(table)]
    held = [(rule, state) for rule, state in held if state is not None]

    def act():
        rows, _ = tf.unique(taken_back.rows)
        values = values_of(rows, taken_back.step)
        rows += first_row
        if not held:
            set_rows(table, rows, values)
        for rule, state in held:
            reset_rows(rule, state, rows, values)
        place = schema.VOCABULARY_COUNTERS.index("num_reset")
        tf.raw_ops.ResourceScatterAdd(
            resource=taken_back.counters.handle,
            indices=[place],
            updates=[tf.size(taken_back.rows, tf.int64)],
        )

    if _library.native_ops(table.device) is None:
        act()  # what is written on replicas cannot be in a branch
        return
    tf.cond(tf.size(taken_back.rows) > 0, lambda: [act(), 0][1], lambda: 0)
