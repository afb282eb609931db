#ifndef SLIPSTREAM_KERNELS_SCHEMA_H_
#define SLIPSTREAM_KERNELS_SCHEMA_H_

// The columns of what a table carries, by name: tf_slipstream/state/schema.py in C++. The library
// says these lists when it loads (SlipstreamSchema), and is refused where they differ. Whoever adds
// a column or changes what one means raises the version here and there.

#include <cstdint>

namespace slipstream {

#define SLIPSTREAM_SCHEMA_VERSION "2"

// An entry of the pool, int64 each.
#define SLIPSTREAM_POOL_INTS(COLUMN) \
  COLUMN(row)                        \
  COLUMN(wake_step)                  \
  COLUMN(live_step)                  \
  COLUMN(num_updates)                \
  COLUMN(held_steps)                 \
  COLUMN(period)                     \
  COLUMN(window_updates)             \
  COLUMN(is_skipped)

// A table's policy state, float64 each. hand: the entry of the pool where the next search for idle
// ones begins.
#define SLIPSTREAM_POLICY_STATE(COLUMN) \
  COLUMN(num_entries)                   \
  COLUMN(num_sleeping)                  \
  COLUMN(woken_at)                      \
  COLUMN(learning_rate)                 \
  COLUMN(threshold)                     \
  COLUMN(strictness)                    \
  COLUMN(control_lookups)               \
  COLUMN(control_stale)                 \
  COLUMN(hand)

// A table's counters, int64 each. The first six are RowCounts. Then: steps that a GPU refused for
// something in this table; the publication that `changed_rows` counts from; the last step of a push
// from a worker.
#define SLIPSTREAM_COUNTERS(COLUMN) \
  COLUMN(num_lookups)               \
  COLUMN(num_skipped_lookups)       \
  COLUMN(num_deferred_lookups)      \
  COLUMN(num_row_updates)           \
  COLUMN(num_skipped_row_updates)   \
  COLUMN(num_deferred_row_updates)  \
  COLUMN(num_refused_steps)         \
  COLUMN(publication)               \
  COLUMN(push_step)

// A vocabulary's counters, int64 each. Training steps; rows that an id has or had; those of
// them that are free again, in `free_rows`; the row where the next search for ids to forget begins,
// counted from the first that ids may have; lookups that the sketch counts; lookups in all, of ids
// with a row, of padding, of strings that are too long; ids that got a row, and that lost it
// because they were not looked up, or to make room; and rows that tables have reset after that.
#define SLIPSTREAM_VOCABULARY_COUNTERS(COLUMN) \
  COLUMN(step)                                 \
  COLUMN(num_given)                            \
  COLUMN(num_free)                             \
  COLUMN(hand)                                 \
  COLUMN(num_sketched)                         \
  COLUMN(num_lookups)                          \
  COLUMN(num_known_lookups)                    \
  COLUMN(num_padding_lookups)                  \
  COLUMN(num_too_long_lookups)                 \
  COLUMN(num_admitted)                         \
  COLUMN(num_forgotten)                        \
  COLUMN(num_evicted)                          \
  COLUMN(num_reset)

// A table's policy: names by which it crosses into this library, with their types here.
#define SLIPSTREAM_POLICY_FIELDS(FIELD) \
  FIELD(bool, skips)                    \
  FIELD(int64_t, min_updates)           \
  FIELD(int64_t, window)                \
  FIELD(int64_t, probe)                 \
  FIELD(int64_t, drift_metric)          \
  FIELD(double, target_skip)            \
  FIELD(double, max_threshold)          \
  FIELD(double, min_drift)              \
  FIELD(int64_t, first_sleep)           \
  FIELD(int64_t, max_sleep)             \
  FIELD(int64_t, updates_per_sleep)     \
  FIELD(double, sleep_growth)           \
  FIELD(int64_t, max_age)               \
  FIELD(double, skip_below)             \
  FIELD(int64_t, refresh_every)         \
  FIELD(int64_t, warm_up)               \
  FIELD(double, correlation)

#define SLIPSTREAM_NAME_OF(name) " " #name
#define SLIPSTREAM_COUNT_OF(name) +1
#define SLIPSTREAM_INT64(name) int64_t name;
#define SLIPSTREAM_DOUBLE(name) double name;

#define SLIPSTREAM_FIELD_NAME(type, name) " " #name
// All of them, as text.
#define SLIPSTREAM_SCHEMA \
  "version " SLIPSTREAM_SCHEMA_VERSION                                     \
  "\npool_ints" SLIPSTREAM_POOL_INTS(SLIPSTREAM_NAME_OF)                   \
  "\npolicy_state" SLIPSTREAM_POLICY_STATE(SLIPSTREAM_NAME_OF)             \
  "\ncounters" SLIPSTREAM_COUNTERS(SLIPSTREAM_NAME_OF)                     \
  "\nvocabulary_counters" SLIPSTREAM_VOCABULARY_COUNTERS(SLIPSTREAM_NAME_OF) \
  "\npolicy_fields" SLIPSTREAM_POLICY_FIELDS(SLIPSTREAM_FIELD_NAME)

inline constexpr int64_t kNumPoolInts = 0 SLIPSTREAM_POOL_INTS(SLIPSTREAM_COUNT_OF);
inline constexpr int64_t kNumPolicyStates = 0 SLIPSTREAM_POLICY_STATE(SLIPSTREAM_COUNT_OF);
inline constexpr int64_t kNumCounters = 0 SLIPSTREAM_COUNTERS(SLIPSTREAM_COUNT_OF);
// After them, for each field of a collection: the row behind its last, and its RowCounts.
inline constexpr int64_t kCountersPerField = 7;

// Where a counter is.
enum Counter {
  kNumLookups,
  kNumSkippedLookups,
  kNumDeferredLookups,
  kNumRowUpdates,
  kNumSkippedRowUpdates,
  kNumDeferredRowUpdates,
  kNumRefusedSteps,
  kPublication,
  kPushStep,
};
static_assert(kPushStep + 1 == kNumCounters);

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_SCHEMA_H_
