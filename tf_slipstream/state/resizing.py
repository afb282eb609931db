"""Gives a table the state of rows that others have, where they are numbered otherwise."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from tf_slipstream.state import schema
from tf_slipstream.state.table import TableState, field_counts_of, num_entries, pool_capacity

_ROW, _WAKE_STEP, _NUM_UPDATES = map(schema.POOL_INTS.index, ("row", "wake_step", "num_updates"))
_MOST_UPDATES = 2**31 - 1
_ELEMENTS_AT_ONCE = 1 << 24


@dataclasses.dataclass(frozen=True)
class RowRange:
    """Rows of one table that become rows of another.

    Attributes:
        start: The first of them in the old table.
        new_start: The first of them in the new one.
        num_rows: How many there are.
    """

    start: int
    new_start: int
    num_rows: int


@dataclasses.dataclass(frozen=True)
class Source:
    """A table, and what of it another table is to have.

    Attributes:
        state: Its `TableState`.
        ranges: List of `RowRange`.
        is_counted: Whether its counters go on in the new table; else those of fields alone.
    """

    state: TableState
    ranges: list
    is_counted: bool = True


def head_of(old_rows, new_rows):
    """Returns the ranges of a table that keeps its first rows, as many as both sizes have."""
    return [RowRange(0, 0, min(old_rows, new_rows))]


def num_entries_to_evict(state, ranges, num_rows):
    """Returns how many popular rows of a table become unpopular in another.

    Args:
        state: `TableState` of the table.
        ranges: List of `RowRange` from it to the other.
        num_rows: Of the other.
    """
    if state.policy is None:
        return 0
    rows = _entries(state)[0][:, _ROW]
    num_kept = sum(int(_is_in(rows, one).sum()) for one in ranges)
    return max(0, num_kept - pool_capacity(state.policy, num_rows))


def fill_state(new, sources):
    """Gives a table rows of others, and all that belongs to them.

    Its other rows keep their values, and the state of a row that was never trained. Popular rows of
    the old tables that it does not have leave the pool. Where its own pool is too small, it has the
    rows with the most updates: they must hold nothing. The publication that `changed_rows` count
    from ends, because no delta leads from one numbering to another.

    Args:
        new: `TableState`, as `new_table_state` makes it.
        sources: List of `Source`, of tables with the same kind of state, or without a policy.
    """
    for source in sources:
        old = source.state
        for before, after in zip((old.table, *old.slots), (new.table, *new.slots), strict=True):
            copy_rows(before, after, source.ranges)
    if new.last_steps is not None:
        _fill(new.last_steps, [(s.state.last_steps.numpy(), s.ranges) for s in sources])
    bits = np.zeros(32 * int(new.changed_rows.shape[0]), bool)
    for source in sources:
        words = source.state.changed_rows.numpy()
        old_bits = np.unpackbits(words.view(np.uint8), bitorder="little").astype(bool)
        for one in source.ranges:
            bits[_new(one)] = old_bits[_old(one)]
    words = np.packbits(bits, bitorder="little").view(words.dtype)
    new.changed_rows.assign(words)
    new.counters.assign(_joined_counters(new, sources))
    sources = [source for source in sources if source.state.policy is not None]
    if new.policy is not None and sources:
        _fill_pool(new, sources)


def _joined_counters(new, sources):
    """Returns the counters of a table: those of the old ones, and of fields that it has of them."""
    counters = new.counters.numpy()
    fields = counters[len(schema.COUNTERS) :].reshape(-1, schema.COUNTERS_PER_FIELD)
    num = len(schema.ROW_COUNTS)
    for source in sources:
        old = source.state.counters.numpy()
        of_fields = field_counts_of(source.state)
        if source.is_counted:
            counters[: len(schema.COUNTERS)] += old[: len(schema.COUNTERS)]
        for one in source.ranges:
            place = _field_of(source.state, one.start)
            counts = old[:num] if place is None else of_fields[place]
            new_place = _field_of(new, one.new_start)
            if new_place is not None:
                fields[new_place, 1:] += counts
            if not source.is_counted and place is not None:
                counters[:num] += counts
    counters[schema.COUNTERS.index("publication")] = 0
    return counters


def _field_of(state, row):
    """Returns the place of the field that has a row of a table; None where it counts none."""
    return int(np.searchsorted(state.row_ends, row, side="right")) if state.row_ends else None


def copy_rows(old, new, ranges):
    """Copies rows of a variable to another, without a copy of all of them.

    Args:
        old: `tf.Variable` of any rank above 0.
        new: `tf.Variable`.
        ranges: List of `RowRange`.
    """
    at_once = max(1, _ELEMENTS_AT_ONCE // math.prod(old.shape[1:]))
    for one in ranges:
        for start in range(0, one.num_rows, at_once):
            end = min(start + at_once, one.num_rows)
            rows = old[one.start + start : one.start + end]
            new[one.new_start + start : one.new_start + end].assign(rows)


def _fill_pool(new, sources):
    all_ints, all_floats, row_states = [], [], []
    for source in sources:
        ints, floats = _entries(source.state)
        for one in source.ranges:
            is_in = _is_in(ints[:, _ROW], one)
            moved = ints[is_in]
            moved[:, _ROW] += one.new_start - one.start
            all_ints.append(moved)
            all_floats.append(floats[is_in])
        row_states.append((source.state.row_states.numpy(), source.ranges))
    ints, floats = np.concatenate(all_ints), np.concatenate(all_floats)
    by_updates = np.argsort(-ints[:, _NUM_UPDATES], kind="stable")
    capacity = int(new.pool_ints.shape[0])
    evicted, kept = by_updates[capacity:], np.sort(by_updates[:capacity])
    # Signed, whatever type of the same bits the variable has.
    states = _filled(new.row_states, row_states).view(np.int32)
    states[ints[evicted, _ROW]] = np.minimum(ints[evicted, _NUM_UPDATES], _MOST_UPDATES)
    states[ints[kept, _ROW]] = -1 - np.arange(len(kept))
    new.row_states.assign(states.view(new.row_states.dtype.as_numpy_dtype))
    _assign_head(new.pool_ints, ints[kept])
    _assign_head(new.pool_floats, floats[kept])
    policy_state = _joined_policy_state([source.state for source in sources])
    policy_state["num_entries"] = len(kept)
    policy_state["num_sleeping"] = (ints[kept, _WAKE_STEP] > 0).sum()
    policy_state["hand"] %= max(1, len(kept))
    new.policy_state.assign(np.array([*policy_state.values()], np.float64))


def _joined_policy_state(states):
    """Returns one policy state for the rows of tables, a dict by column."""
    columns = dict(zip(schema.POLICY_STATE, np.stack([s.policy_state.numpy() for s in states]).T))
    num_entries = columns["num_entries"]
    weights = num_entries if num_entries.sum() else np.ones(len(states))
    return {name: values.max() for name, values in columns.items()} | {
        # What has been found for tables whose popular rows are many counts for more.
        "threshold": np.average(columns["threshold"], weights=weights),
        "strictness": columns["strictness"].min(),
        "control_lookups": columns["control_lookups"].sum(),
        "control_stale": columns["control_stale"].sum(),
    }


def _entries(state):
    """Returns the entries of a table's pool that are in use: their ints and their floats."""
    num = num_entries(state)
    return state.pool_ints[:num].numpy(), state.pool_floats[:num].numpy()


def _is_in(rows, one):
    return (one.start <= rows) & (rows < one.start + one.num_rows)


def _old(one):
    return slice(one.start, one.start + one.num_rows)


def _new(one):
    return slice(one.new_start, one.new_start + one.num_rows)


def _filled(variable, sources):
    """Returns a variable's values with ranges of arrays in it: pairs of an array and ranges."""
    values = variable.numpy().copy()
    for array, ranges in sources:
        for one in ranges:
            values[_new(one)] = array[_old(one)]
    return values


def _fill(variable, sources):
    variable.assign(_filled(variable, sources))


def _assign_head(variable, values):
    """Sets the first elements, or rows, of a variable whose others are 0."""
    padding = [(0, int(variable.shape[0]) - len(values))] + [(0, 0)] * (values.ndim - 1)
    variable.assign(np.pad(values, padding))


def empty(variables):
    """Takes the values of variables away, for good: whatever still reads one fails.

    A function that was traced with a variable keeps it, and its memory, as long as it lives.

    Args:
        variables: `tf.Variable`s, of rank 1 or more.
    """
    for variable in variables:
        nothing = tf.zeros([0] * variable.shape.rank, variable.dtype)
        tf.raw_ops.AssignVariableOp(resource=variable.handle, value=nothing)
