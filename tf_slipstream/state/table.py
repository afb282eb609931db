"""A table and everything that its updates read or write."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from tf_slipstream.state import schema

# Least rows of a table that may be popular.
_MIN_CAPACITY = 4096
_MAKES_NO_SENSE = (
    "makes no sense: it was not restored whole. Restore the model with its optimizer, or start "
    "with a new optimizer."
)


@dataclasses.dataclass(frozen=True)
class TableState:
    """A table with its optimizer state, all `tf.Variable`s on one device.

    What is int32 here is uint32, with the same bits, for a table on a GPU with CUDA kernels.

    Attributes:
        name: The table's name in errors and statistics.
        table: float32 or bfloat16 `[num_rows, dim]`.
        slots: One float32 variable per slot of the update rule, in its order: `[num_rows, dim]`, or
            `[num_rows, 1]` for a row-wise slot.
        last_steps: int32 `[num_rows]`, when a row was last touched and whether its momentum was
            spent then (`custom_ops/kernels/row_clock.h`; 0: not yet); None for a rule without
            moments and weight decay.
        changed_rows: int32 `[ceil(num_rows / 32)]`: bit `r % 32` of word `r / 32` is set when row
            `r` is written. Whoever publishes changes clears it.
        counters: int64 `[len(schema.COUNTERS)]`, and `schema.COUNTERS_PER_FIELD` more for each of
            `row_ends`.
        policy: `StalenessPolicy`, or None: every row is live, and the rest is None as well.
        correlation: The update rule's.
        row_states: int32 `[num_rows]`; this and the rest as docs/reference/sleeping_rows.md defines
        it.
        pool_ints: int64 `[capacity, len(schema.POOL_INTS)]`.
        pool_floats: float32 `[capacity, 2 dim + 1]`: held, snapshot, path.
        policy_state: float64 `[len(schema.POLICY_STATE)]`.
        local_held: float32 `[capacity, dim]`, gradients of sleeping rows that one of several
            replicas holds, and which the pool does not; None where the pool holds all.
        row_ends: Of a collection whose lookups are counted by field, for each field the row behind
            its last; else empty.
        worker_counters: int64 `[num_workers, len(schema.WORKER_COUNTERS)]`; None but on a parameter
            server.
    """

    name: str
    table: tf.Variable
    slots: tuple
    last_steps: tf.Variable | None
    changed_rows: tf.Variable
    counters: tf.Variable
    policy: object = None
    correlation: float = 0.0
    row_states: tf.Variable | None = None
    pool_ints: tf.Variable | None = None
    pool_floats: tf.Variable | None = None
    policy_state: tf.Variable | None = None
    local_held: tf.Variable | None = None
    worker_counters: tf.Variable | None = None
    row_ends: tuple = ()

    @property
    def num_rows(self):
        return int(self.table.shape[0])

    @property
    def dim(self):
        return int(self.table.shape[1])


def pool_capacity(policy, num_rows):
    """Returns how many rows of a table may be popular."""
    return min(num_rows, max(_MIN_CAPACITY, math.ceil(policy.popular_share * num_rows)))


def new_table_state(
    add,
    name,
    table,
    rule,
    policy,
    row_int,
    has_clock,
    num_workers=None,
    local_held=None,
    row_ends=(),
):
    """Returns the `TableState` of a table that was never trained.

    Args:
        add: `add(name, shape, dtype, value)` adds a variable whose elements, or rows, are `value`.
        name: The table's name.
        table: `tf.Variable`.
        rule: `UpdateRule`.
        policy: `StalenessPolicy` or None.
        row_int: Dtype of what has an int32 per row.
        has_clock: Whether there are `last_steps`.
        num_workers: Of a cluster, where the table is on a parameter server; else None.
        local_held: As the attribute.
        row_ends: As the attribute.
    """
    num_rows, dim = map(int, table.shape)
    slots = tuple(
        add(s.name, (num_rows, 1 if s.per_row else dim), "float32", s.initial_value)
        for s in rule.slots
    )
    counters = [0] * len(schema.COUNTERS)
    for end in row_ends:
        counters += [end, *[0] * len(schema.ROW_COUNTS)]
    state = TableState(
        name=name,
        table=table,
        slots=slots,
        last_steps=add("last_steps", (num_rows,), row_int, 0) if has_clock else None,
        changed_rows=add("changed_rows", (-(-num_rows // 32),), row_int, 0),
        counters=add("counters", (len(counters),), "int64", counters),
        row_ends=tuple(row_ends),
        correlation=rule.correlation,
        local_held=local_held,
    )
    if num_workers is not None:
        shape = (num_workers, len(schema.WORKER_COUNTERS))
        state = dataclasses.replace(
            state, worker_counters=add("worker_counters", shape, "int64", 0)
        )
    if policy is None:
        return state
    capacity = pool_capacity(policy, num_rows)
    initial = dict.fromkeys(schema.POLICY_STATE, 0.0) | {"strictness": 1.0}
    is_found = policy.threshold is None
    initial["threshold"] = policy.max_threshold if is_found else policy.threshold
    return dataclasses.replace(
        state,
        policy=policy,
        row_states=add("row_states", (num_rows,), row_int, 0),
        pool_ints=add("pool_ints", (capacity, len(schema.POOL_INTS)), "int64", 0),
        pool_floats=add("pool_floats", (capacity, 2 * dim + 1), "float32", 0),
        policy_state=add(
            "policy_state", (len(schema.POLICY_STATE),), "float64", [*initial.values()]
        ),
    )


def variables_of(state):
    """Returns the variables of a table's state that are the optimizer's, in a fixed order."""
    others = (
        state.last_steps,
        state.changed_rows,
        state.counters,
        state.worker_counters,
        state.row_states,
        state.pool_ints,
        state.pool_floats,
        state.policy_state,
    )
    return [*state.slots, *(variable for variable in others if variable is not None)]


def gather_int32(variable, ids):
    """Returns elements of an int32 variable of a `TableState`."""
    return bits_as(tf.gather(variable, ids), tf.int32)


def scatter_int32(variable, ids, values):
    """Sets elements of an int32 variable of a `TableState`, by distinct ids."""
    return variable.scatter_update(tf.IndexedSlices(bits_as(values, variable.dtype), ids))


def bits_as(values, dtype):
    """Returns 32-bit integers as another type of the same bits."""
    return values if values.dtype == dtype else tf.bitcast(values, dtype)


def read_policy_states(states):
    """Returns the policy states of tables that have a policy, as a list of dicts by column.

    Raises:
        ValueError: If one was not restored with its table.
    """
    if not states:
        return []
    # One read, where one of each variable would take ten times as long.
    read = tf.stack([state.policy_state for state in states]).numpy().tolist()
    found = [dict(zip(schema.POLICY_STATE, values, strict=True)) for values in read]
    for state, columns in zip(states, found):
        # The learning rate is the user's.
        if not all(math.isfinite(v) for name, v in columns.items() if name != "learning_rate"):
            raise ValueError(f"table '{state.name}': its policy state {_MAKES_NO_SENSE}")
    return found


def num_entries(state):
    """Returns how many entries of a table's pool are in use.

    Raises:
        ValueError: If it has fewer: it was not restored with its table.
    """
    capacity = int(state.pool_ints.shape[0])
    number = float(state.policy_state[schema.POLICY_STATE.index("num_entries")])
    if not 0 <= number <= capacity:
        raise ValueError(
            f"table '{state.name}': a pool of {capacity} entries with {number} in use "
            f"{_MAKES_NO_SENSE}"
        )
    return int(number)


def num_sleeping(state, start, end):
    """Returns how many of the rows from `start` to before `end` sleep."""
    if state.policy is None:
        return 0
    ints = state.pool_ints[: num_entries(state)].numpy()
    rows, wake_steps = (ints[:, schema.POOL_INTS.index(name)] for name in ("row", "wake_step"))
    return int(((start <= rows) & (rows < end) & (wake_steps > 0)).sum())


def set_policy_state(state, column, value):
    """Sets one column of a table's policy state, whatever a step that runs now writes of others."""
    place = np.array([schema.POLICY_STATE.index(column)])
    values = tf.constant([value], tf.float64)
    state.policy_state.scatter_update(tf.IndexedSlices(values, place))


def counters_of(states):
    """Returns the counters of tables, a list of dicts by column."""
    if not states:
        return []
    num = len(schema.COUNTERS)
    parts = [state.counters[:num] if state.row_ends else state.counters for state in states]
    read = tf.stack(parts).numpy().tolist()
    return [dict(zip(schema.COUNTERS, values, strict=True)) for values in read]


def field_counts_of(state):
    """Returns int64 `[num_fields, len(schema.ROW_COUNTS)]`, what a table counts of its fields."""
    fields = state.counters.numpy()[len(schema.COUNTERS) :]
    return fields.reshape(-1, schema.COUNTERS_PER_FIELD)[:, 1:]


def set_counter(state, column, value):
    """Sets one column of a table's counters, whatever a step that runs now adds to others."""
    place = np.array([schema.COUNTERS.index(column)])
    state.counters.scatter_update(tf.IndexedSlices(tf.constant([value], tf.int64), place))
