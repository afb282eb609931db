"""A table and everything that its updates read or write."""

import dataclasses

import tensorflow as tf

# Fields of a table's counters, in their order there; then NUM_REFUSED_STEPS, the id of the
# publication that `changed_rows` counts from (`tf_slipstream.export`), and the last step of a push
# from a worker.
COUNTERS = (
    "num_lookups",
    "num_skipped_lookups",
    "num_deferred_lookups",
    "num_row_updates",
    "num_skipped_row_updates",
    "num_deferred_row_updates",
)
NUM_COUNTERS = 9
NUM_WORKER_COUNTERS = 5
# The field that counts the steps that a GPU refused for an id or a gradient in this table.
NUM_REFUSED_STEPS = 6


@dataclasses.dataclass(frozen=True)
class TableState:
    """A table with its optimizer state, all `tf.Variable`s on one device.

    What is int32 here is uint32, with the same bits, for a table on a GPU with CUDA kernels; read
    and write it by `gather_int32` and `scatter_int32`.

    Attributes:
        name: The table's name in errors and statistics.
        table: float32 or bfloat16 `[num_rows, dim]`.
        slots: One float32 variable per slot of the update rule, in its order: `[num_rows, dim]`, or
            `[num_rows, 1]` for a row-wise slot.
        last_steps: int32 `[num_rows]`, the step that last touched a row (0: none yet); None for a
            rule without moments.
        changed_rows: int32 `[ceil(num_rows / 32)]`: bit `r % 32` of word `r // 32` is set when row
            `r` is written. Whoever publishes changes clears it.
        counters: int64 `[NUM_COUNTERS]`, see `COUNTERS`.
        policy: `StalenessPolicy`, or None: every row is live, and the rest is None as well.
        correlation: The update rule's.
        row_states: int32 `[num_rows]`; this and the rest as docs/policy.md defines it.
        pool_ints: int64 `[capacity, 8]`.
        pool_floats: float32 `[capacity, 2 dim + 1]`.
        policy_state: float64 `[8]`.
        local_held: float32 `[capacity, dim]`, gradients of sleeping rows that one of several
            replicas holds, and which the pool does not; None where the pool holds all.
        worker_counters: int64 `[num_workers, NUM_WORKER_COUNTERS]`, as `Slipstream>ApplyRows` has
            it; None but on a parameter server.
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

    @property
    def num_rows(self):
        return int(self.table.shape[0])


def gather_int32(variable, ids):
    """Returns elements of an int32 variable of a `TableState`."""
    return _bits(tf.gather(variable, ids), tf.int32)


def scatter_int32(variable, ids, values):
    """Sets elements of an int32 variable of a `TableState`, by distinct ids."""
    return variable.scatter_update(tf.IndexedSlices(_bits(values, variable.dtype), ids))


def _bits(values, dtype):
    return values if values.dtype == dtype else tf.bitcast(values, dtype)
