"""Rows that a vocabulary took back, on their way to the tables that reset them.

They travel with the rows that it returns, as an attribute of these tensors: whatever table looks
these up resets those first, in the same step.
"""

import dataclasses
import itertools

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
        counts: Pairs of a `tf.Variable` of the vocabulary's counters, of which it has one on each
            server, and an int64 scalar, how many of the rows are its own.
        vocabulary: The `DynamicVocabulary`.
    """

    rows: tf.Tensor
    step: tf.Tensor
    counts: tuple
    vocabulary: object

    def go_with(self, *tensors):
        """Has whoever looks up one of these tensors reset the rows."""
        for tensor in tensors:
            setattr(tensor, _ATTRIBUTE, self)


def taken_back_with(ids):
    """Returns the `TakenBack` that goes with ids of any kind; None where there is none."""
    return getattr(ids, _ATTRIBUTE, None)


def reset(taken_back, tables, first_row, values_of):
    """Resets rows of a table, and all that optimizers hold of them.

    Args:
        taken_back: `TakenBack`.
        tables: `tf.Variable`s, one after the other the table.
        first_row: The row of the table that the vocabulary's row 0 is.
        values_of: `values_of(rows, step)` returns the first values of distinct rows of the
            vocabulary, of the table's dtype.
    """
    # A graph keeps what it is traced with; an optimizer that is made while it is traced, has it
    # traced once more.
    held = [
        [(one.rule, one.state_of(table)) for one in registry.holders_of(table)] for table in tables
    ]
    starts = [0, *itertools.accumulate(int(table.shape[0]) for table in tables)]

    def act():
        rows, _ = tf.unique(taken_back.rows)
        values = values_of(rows, taken_back.step)
        rows += first_row
        for table, holders, start, end in zip(tables, held, starts, starts[1:]):
            _reset_in(table, holders, *_between(rows, values, start, end))
        place = schema.VOCABULARY_COUNTERS.index("num_reset")
        for counters, num in taken_back.counts:
            tf.raw_ops.ResourceScatterAdd(resource=counters.handle, indices=[place], updates=[num])

    if _library.native_ops(tables[0].device) is None:
        act()  # what is written on replicas cannot be in a branch
        return
    tf.cond(tf.size(taken_back.rows) > 0, lambda: [act(), 0][1], lambda: 0)


def _between(rows, values, start, end):
    """Returns those of the rows that a part of a table has, as it counts them, and their values."""
    is_there = (start <= rows) & (rows < end)
    return tf.boolean_mask(rows, is_there) - start, tf.boolean_mask(values, is_there)


def _reset_in(table, holders, rows, values):
    holders = [(rule, state) for rule, state in holders if state is not None]
    if not holders:
        set_rows(table, rows, values)
    for rule, state in holders:
        reset_rows(rule, state, rows, values)
