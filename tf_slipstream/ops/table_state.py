"""A table and everything that its updates read or write."""

import dataclasses

import tensorflow as tf

# Fields of a table's counters, in their order there; the last two are not in use yet.
COUNTERS = (
    "num_lookups",
    "num_skipped_lookups",
    "num_deferred_lookups",
    "num_row_updates",
    "num_skipped_row_updates",
    "num_deferred_row_updates",
)
NUM_COUNTERS = 8


@dataclasses.dataclass(frozen=True)
class TableState:
    """A table with its optimizer state, all `tf.Variable`s on one device.

    Attributes:
        name: The table's name in errors and statistics.
        table: float32 `[num_rows, dim]`.
        slots: One float32 variable per slot of the update rule, in its order: `[num_rows, dim]`, or
            `[num_rows, 1]` for a row-wise slot.
        last_steps: int32 `[num_rows]`, the step that last touched a row (0: none yet); None for a
            rule without moments.
        wake_steps: int32 `[num_rows]`; a row is stale in every step below its wake step. `[0]`:
            every row is live.
        changed_rows: int32 `[ceil(num_rows / 32)]`: bit `r % 32` of word `r // 32` is set when row
            `r` is written. Whoever publishes changes clears it.
        counters: int64 `[NUM_COUNTERS]`, see `COUNTERS`.
    """

    name: str
    table: tf.Variable
    slots: tuple
    last_steps: tf.Variable | None
    wake_steps: tf.Variable
    changed_rows: tf.Variable
    counters: tf.Variable

    @property
    def num_rows(self):
        return int(self.table.shape[0])
