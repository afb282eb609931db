#ifndef SLIPSTREAM_KERNELS_STALENESS_H_
#define SLIPSTREAM_KERNELS_STALENESS_H_

// Which rows are stale, and when they wake: docs/policy.md in C++, with its names.

#include <cstdint>

#include "simd.h"

namespace slipstream {

enum class DriftMetric { kCoherence, kRelativeL2, kL2, kMeanAbs, kLoss };

// A table's StalenessPolicy, in the order in which the op gets its numbers.
struct PolicySettings {
  static constexpr int kNumFields = 15;
  explicit PolicySettings(const double* values);
  bool skips;
  int64_t min_updates, window, probe;
  DriftMetric metric;
  double target_skip;  // 0: the threshold is given
  double max_threshold;
  int64_t first_sleep, max_sleep, updates_per_sleep, max_age;
  double skip_below;
  int64_t refresh_every, warm_up;
  double correlation;  // the rule's, of one step with the one before
};

// A popular row.
struct PoolEntry {
  int64_t row, wake_step, live_step, num_updates, held_steps, period, window_updates, is_skipped;
};

struct PolicyState {
  double num_entries, num_sleeping, woken_at, learning_rate, threshold, strictness, control_lookups,
      control_stale;
};

// A table's row states and pool, in place.
//   row_states [num_rows]: the batches that looked a row up so far, or -1 - e for entry e
//   entries    [capacity]
//   floats     [capacity, 2 dim + 1]: held [dim], snapshot [dim], path
struct Staleness {
  int32_t* row_states;
  PoolEntry* entries;
  float* floats;
  PolicyState* state;
  int64_t capacity;
  int64_t dim;
  PolicySettings policy;

  float* held(int64_t entry) const { return floats + entry * (2 * dim + 1); }
  float* snapshot(int64_t entry) const { return held(entry) + dim; }
  float* path(int64_t entry) const { return held(entry) + 2 * dim; }
};

// What a lookup needs to know. `row_states` is null where every row is live.
struct RowStates {
  const int32_t* row_states = nullptr;
  const PoolEntry* entries = nullptr;
  int64_t num_entries = 0;
  int64_t woken_at = 0;
};

enum class RowKind { kLive, kDeferred, kSkipped };

SLIPSTREAM_INLINE RowKind KindOf(const PoolEntry& entry, int64_t step, int64_t woken_at) {
  if (step >= entry.wake_step || entry.live_step < woken_at) return RowKind::kLive;
  return entry.is_skipped ? RowKind::kSkipped : RowKind::kDeferred;
}

// Begins a step: wakes rows if the learning rate has changed. Returns whether it is a refresh.
bool BeginStep(const PolicySettings& policy, int64_t step, double learning_rate, bool wake_all,
               PolicyState* state);

// Ends it: counts, and moves the threshold where it is found.
void EndStep(const PolicySettings& policy, int64_t step, int64_t num_lookups, int64_t num_stale,
             int64_t sleeping_change, PolicyState* state);

// Notes that the row [dim] of an entry was updated, given the row before and the gradient [dim]
// that it was updated with.
void Measure(const Staleness& staleness, int64_t entry, const float* row, const float* row_before,
             const float* grad);

// Judges a popular row that was updated in a batch of its own, and puts it to sleep or not: one
// that a refresh or a change of the learning rate woke stays live until it is judged. Changes
// nothing else than its entry. Returns what to add to `num_sleeping`.
int64_t AfterUpdate(const Staleness& staleness, int64_t entry, const float* row, int64_t step);

// The same for a row whose held gradients alone were applied.
int64_t AfterFlush(int64_t step, PoolEntry* entry);

// Makes a row popular that was just updated for the num_updates-th time, if there is an entry left.
void Promote(const Staleness& staleness, int64_t id, const float* row, int64_t step);

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_STALENESS_H_
