"""The columns of what a table carries, by name. `custom_ops/kernels/schema.h` is the same in C++.

This list is the one that counts: the native library says its own when it loads, and is refused
where it differs; docs/reference/sleeping_rows.md is checked against it. Whoever adds a column or
changes what one means raises `VERSION` here and in C++, and says in `docs/` what becomes of older
checkpoints.
"""

from tf_slipstream.policy import StalenessPolicy

VERSION = 2

# An entry of the pool of popular rows, int64 each: docs/reference/sleeping_rows.md.
POOL_INTS = (
    "row",
    "wake_step",
    "live_step",
    "num_updates",
    "held_steps",
    "period",
    "window_updates",
    "is_skipped",
)

# A table's policy state, float64 each: docs/reference/sleeping_rows.md.
POLICY_STATE = (
    "num_entries",
    "num_sleeping",
    "woken_at",
    "learning_rate",
    "threshold",
    "strictness",
    "control_lookups",
    "control_stale",
    "hand",
)

# Counts of lookups and rows, as in `SkipStats`.
ROW_COUNTS = (
    "num_lookups",
    "num_skipped_lookups",
    "num_deferred_lookups",
    "num_row_updates",
    "num_skipped_row_updates",
    "num_deferred_row_updates",
)
# A table's counters, int64 each: those; steps that a GPU refused for an id or a gradient in this
# table; the publication that `changed_rows` counts from; the last step of a push from a worker.
COUNTERS = (*ROW_COUNTS, "num_refused_steps", "publication", "push_step")

# Of a collection's table, after those for each field that has rows: the row behind its last, and
# its `ROW_COUNTS`.
COUNTERS_PER_FIELD = 1 + len(ROW_COUNTS)

# What a parameter server counts of each worker, int64 each: rows that it read, rows that it had
# instead, batches that it holds now, batches that a worker held which was replaced, and which
# worker it is.
WORKER_COUNTERS = (
    "num_pulled_rows",
    "num_cached_rows",
    "num_held_batches",
    "num_lost_batches",
    "worker_id",
)

# A vocabulary's counters, int64 each: `custom_ops/kernels/schema.h` says what they count.
VOCABULARY_COUNTERS = (
    "step",
    "num_given",
    "num_free",
    "hand",
    "num_sketched",
    "num_lookups",
    "num_known_lookups",
    "num_padding_lookups",
    "num_too_long_lookups",
    "num_admitted",
    "num_forgotten",
    "num_evicted",
    "num_reset",
)


def text():
    """Returns the schema as the native library says its own."""
    fields = StalenessPolicy().numbers(correlation=0.0)
    lists = {
        "version": [str(VERSION)],
        "pool_ints": POOL_INTS,
        "policy_state": POLICY_STATE,
        "counters": COUNTERS,
        "vocabulary_counters": VOCABULARY_COUNTERS,
        "policy_fields": fields,
    }
    return "\n".join(" ".join([name, *columns]) for name, columns in lists.items())
