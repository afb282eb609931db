"""Gives a table of another number of rows the state of the one that it replaces."""

import math

import numpy as np
import tensorflow as tf

from tf_slipstream.state import schema
from tf_slipstream.state.table import pool_capacity

_ROW, _WAKE_STEP, _NUM_UPDATES = map(schema.POOL_INTS.index, ("row", "wake_step", "num_updates"))
_MOST_UPDATES = 2**31 - 1
_ELEMENTS_AT_ONCE = 1 << 24


def num_entries_to_evict(state, num_rows):
    """Returns how many popular rows of a table become unpopular if it has so many rows."""
    if state.policy is None:
        return 0
    num_kept = int((_entries(state)[0][:, _ROW] < num_rows).sum())
    return max(0, num_kept - pool_capacity(state.policy, num_rows))


def copy_state(old, new):
    """Copies the rows of a table and all that belongs to them, as far as the new one has them.

    Rows that only the new table has keep their values, and the state of a row that was never
    trained. Popular rows that it does not have leave the pool. Where the new pool is too small, it
    has the rows with the most updates: they must hold nothing. The publication that
    `changed_rows` count from ends, because no delta leads from one size to another.

    Args:
        old: `TableState`.
        new: `TableState` of the same kind, as `new_table_state` makes it.
    """
    num_kept = min(old.num_rows, new.num_rows)
    for before, after in zip((old.table, *old.slots), (new.table, *new.slots), strict=True):
        copy_rows(before, after)
    if old.last_steps is not None:
        _assign_head(new.last_steps, old.last_steps.numpy()[:num_kept])
    _assign_head(new.changed_rows, _head_of_bits(old.changed_rows.numpy(), num_kept))
    counters = old.counters.numpy()
    counters[schema.COUNTERS.index("publication")] = 0
    new.counters.assign(counters)
    if old.policy is not None:
        _copy_pool(old, new, num_kept)


def copy_rows(old, new):
    """Copies the first rows of a variable, as many as both have, without a copy of all of them.

    Args:
        old: `tf.Variable` of any rank above 0.
        new: `tf.Variable` with another number of rows at most.
    """
    num_rows = min(int(old.shape[0]), int(new.shape[0]))
    at_once = max(1, _ELEMENTS_AT_ONCE // math.prod(old.shape[1:]))
    for start in range(0, num_rows, at_once):
        end = min(start + at_once, num_rows)
        new[start:end].assign(old[start:end])


def _copy_pool(old, new, num_kept):
    ints, floats = _entries(old)
    # Signed, whatever type of the same bits the variable has.
    row_states = old.row_states.numpy()[:num_kept].view(np.int32).copy()
    kept = np.flatnonzero(ints[:, _ROW] < num_kept)
    by_updates = kept[np.argsort(-ints[kept, _NUM_UPDATES], kind="stable")]
    capacity = int(new.pool_ints.shape[0])
    evicted, kept = by_updates[capacity:], np.sort(by_updates[:capacity])
    row_states[ints[evicted, _ROW]] = np.minimum(ints[evicted, _NUM_UPDATES], _MOST_UPDATES)
    row_states[ints[kept, _ROW]] = -1 - np.arange(len(kept))
    _assign_head(new.row_states, row_states.view(old.row_states.dtype.as_numpy_dtype))
    _assign_head(new.pool_ints, ints[kept])
    _assign_head(new.pool_floats, floats[kept])
    policy_state = dict(zip(schema.POLICY_STATE, old.policy_state.numpy(), strict=True))
    policy_state["num_entries"] = len(kept)
    policy_state["num_sleeping"] = (ints[kept, _WAKE_STEP] > 0).sum()
    policy_state["hand"] %= max(1, len(kept))
    new.policy_state.assign(np.array([*policy_state.values()], np.float64))


def _entries(state):
    """Returns the entries of a table's pool that are in use: their ints and their floats."""
    num_entries = int(state.policy_state[schema.POLICY_STATE.index("num_entries")])
    return state.pool_ints[:num_entries].numpy(), state.pool_floats[:num_entries].numpy()


def _assign_head(variable, values):
    """Sets the first elements, or rows, of a variable whose others are 0."""
    padding = [(0, int(variable.shape[0]) - len(values))] + [(0, 0)] * (values.ndim - 1)
    variable.assign(np.pad(values, padding))


def _head_of_bits(words, num_bits):
    """Returns the words of the first bits of words, and 0 for the bits behind them."""
    words = words[: -(-num_bits // 32)].copy()
    if num_bits % 32:
        words[-1] &= words.dtype.type((1 << num_bits % 32) - 1)
    return words


def empty(variables):
    """Takes the values of variables away, for good: whatever still reads one fails.

    A function that was traced with a variable keeps it, and its memory, as long as it lives.

    Args:
        variables: `tf.Variable`s, of rank 1 or more.
    """
    for variable in variables:
        nothing = tf.zeros([0] * variable.shape.rank, variable.dtype)
        tf.raw_ops.AssignVariableOp(resource=variable.handle, value=nothing)
