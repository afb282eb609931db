#ifndef SLIPSTREAM_KERNELS_STALENESS_H_
#define SLIPSTREAM_KERNELS_STALENESS_H_

// Which rows are stale, and when they wake: docs/reference/sleeping_rows.md in C++, with its names.
// What decides is here, for the CPU and for a GPU; what goes over a row's elements each has of its
// own.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "schema.h"
#include "simd.h"

namespace slipstream {

enum class DriftMetric { kCoherence, kRelativeL2, kL2, kMeanAbs, kLoss };

// A table's StalenessPolicy. All 0: no row ever becomes popular.
//   skips          whether the gradients of a row that sleeps are not read
//   target_skip    0: the threshold is given
//   correlation    the rule's, of one step with the one before
struct PolicySettings {
#define SLIPSTREAM_FIELD(type, name) type name = 0;
  SLIPSTREAM_POLICY_FIELDS(SLIPSTREAM_FIELD)
#undef SLIPSTREAM_FIELD

  // Sets a field by name. Returns whether there is one.
  bool Set(const std::string& field, double value) {
#define SLIPSTREAM_FIELD(type, name) \
  if (field == #name) {              \
    name = static_cast<type>(value); \
    return true;                     \
  }
    SLIPSTREAM_POLICY_FIELDS(SLIPSTREAM_FIELD)
#undef SLIPSTREAM_FIELD
    return false;
  }
  SLIPSTREAM_HOST_DEVICE DriftMetric metric() const {
    return static_cast<DriftMetric>(drift_metric);
  }
};

// A popular row.
struct PoolEntry {
  SLIPSTREAM_POOL_INTS(SLIPSTREAM_INT64)
};
static_assert(sizeof(PoolEntry) == kNumPoolInts * sizeof(int64_t));

struct PolicyState {
  SLIPSTREAM_POLICY_STATE(SLIPSTREAM_DOUBLE)
};
static_assert(sizeof(PolicyState) == kNumPolicyStates * sizeof(double));

// A table's row states and pool, in place.
//   row_states [num_rows]: the batches that looked a row up so far, or -1 - e for entry e
//   entries    [capacity]
//   floats     [capacity, 2 dim + 1]: held [dim], snapshot [dim], path
struct Staleness {
  int32_t* row_states = nullptr;
  PoolEntry* entries = nullptr;
  float* floats = nullptr;
  PolicyState* state = nullptr;
  int64_t capacity = 0;
  int64_t dim = 0;
  PolicySettings policy = {};

  float* held(int64_t entry) const { return floats + entry * (2 * dim + 1); }
  float* snapshot(int64_t entry) const { return held(entry) + dim; }
  float* path(int64_t entry) const { return held(entry) + 2 * dim; }
};

// Bounds on what is restored: below them no sum or product here is too large for its type.
inline constexpr int64_t kMostSteps = int64_t{1} << 61;
inline constexpr int64_t kMostHeld = (int64_t{1} << 31) - 1;

// Whether a row's state may point to this entry. One that was not restored with its table, or that
// would make a number here too large, is not followed anywhere.
SLIPSTREAM_INLINE bool IsOf(const PoolEntry& entry, int64_t row) {
  // The largest of them, or more than it; a negative one is larger than any.
  const uint64_t most = static_cast<uint64_t>(entry.wake_step) | entry.live_step |
                        entry.num_updates | entry.held_steps | entry.window_updates;
  // A period below 1 is taken for 1; twice it must be a number.
  const uint64_t least = uint64_t{1} << 62, period = static_cast<uint64_t>(entry.period) + least;
  return entry.row == row && most < static_cast<uint64_t>(kMostSteps) &&
         entry.held_steps <= kMostHeld && period < least + static_cast<uint64_t>(kMostSteps);
}

// Whether training can have made a table's policy state. The learning rate is the user's.
SLIPSTREAM_INLINE bool IsWhole(const PolicyState& state, int64_t capacity) {
  const double most = static_cast<double>(kMostSteps);
  return 0 <= state.num_entries && state.num_entries <= capacity &&  // false for NaN
         std::fabs(state.num_sleeping) <= most && 0 <= state.woken_at && state.woken_at <= most &&
         0 <= state.threshold && state.threshold <= std::numeric_limits<double>::max() &&
         0 <= state.strictness && state.strictness <= 1 && 0 <= state.control_lookups &&
         state.control_lookups <= most && 0 <= state.control_stale && state.control_stale <= most &&
         0 <= state.hand && state.hand <= most;
}

// Whether an entry is that of a row which has it.
SLIPSTREAM_INLINE bool IsWhole(const Staleness& staleness, int64_t index, int64_t num_rows) {
  const PoolEntry& entry = staleness.entries[index];
  return static_cast<uint64_t>(entry.row) < static_cast<uint64_t>(num_rows) &&
         staleness.row_states[entry.row] == -1 - index && IsOf(entry, entry.row);
}
// The first entry in use that is not; -1: there is none.
int64_t CheckPool(const Staleness& staleness, int64_t num_rows);

// What a lookup needs to know. `row_states` is null where every row is live.
struct RowStates {
  const int32_t* row_states = nullptr;
  const PoolEntry* entries = nullptr;
  int64_t num_entries = 0;
  int64_t woken_at = 0;
  const int32_t* batches = nullptr;  // as Table's
};

enum class RowKind { kLive, kDeferred, kSkipped };

// held_elsewhere: batches that a worker held of the row, and now sends
SLIPSTREAM_INLINE RowKind KindOf(const PoolEntry& entry, int64_t step, int64_t woken_at,
                                 int64_t held_elsewhere = 0) {
  if (step >= entry.wake_step || entry.live_step < woken_at) return RowKind::kLive;
  if (step < entry.live_step) return RowKind::kLive;  // the counter of steps was set back
  if (entry.is_skipped) return RowKind::kSkipped;
  // The steps of a sleep are for as many batches as came before it; when more come, they end it.
  const int64_t num_held = entry.held_steps + held_elsewhere;
  return num_held < entry.period - 1 ? RowKind::kDeferred : RowKind::kLive;
}

inline constexpr int64_t kControlSteps = 100;
inline constexpr double kControlFactor = 1.25;
inline constexpr double kControlRange = 1000;
// Beyond this a change of the learning rate wakes rows; the steps of a smooth schedule add up to
// it.
inline constexpr double kRateChange = 1.25;

// Begins a step: wakes rows if the learning rate has changed. Returns whether it is a refresh.
SLIPSTREAM_HOST_DEVICE inline bool BeginStep(const PolicySettings& policy, int64_t step,
                                             double learning_rate, PolicyState* state) {
  const double before = state->learning_rate;
  if (before == 0 || before != before) {  // none yet, or NaN
    state->learning_rate = learning_rate;
  } else if (learning_rate > kRateChange * before || learning_rate * kRateChange < before) {
    state->learning_rate = learning_rate;
    state->woken_at = step;
  }
  const bool is_refresh = policy.refresh_every > 0 && step % policy.refresh_every == 0;
  // The counter of steps may have been set back.
  if (is_refresh || state->woken_at > step) state->woken_at = step;
  return is_refresh;
}

// Ends it: counts, and moves the threshold where it is found.
SLIPSTREAM_HOST_DEVICE inline void EndStep(const PolicySettings& policy, int64_t step,
                                           int64_t num_lookups, int64_t num_stale,
                                           int64_t sleeping_change, PolicyState* state) {
  state->num_sleeping += sleeping_change;
  if (policy.target_skip == 0) return;
  state->control_lookups += num_lookups;
  state->control_stale += num_stale;
  if (step % kControlSteps != 0 || state->control_lookups == 0) return;
  const bool too_few = state->control_stale < policy.target_skip * state->control_lookups;
  // A threshold that rose under a strictness would undo it.
  if (!too_few || state->strictness == 1) {
    state->threshold *= too_few ? kControlFactor : 1 / kControlFactor;
  }
  state->threshold = std::max(std::min(state->threshold, policy.max_threshold),
                              policy.max_threshold / kControlRange);
  state->control_lookups = state->control_stale = 0;
}

// Notes that the row [dim] of an entry was updated, given the row before and the gradient [dim]
// that it was updated with.
void Measure(const Staleness& staleness, int64_t entry, const float* row, const float* row_before,
             const float* grad);

inline constexpr int64_t kMostTerms = int64_t{1} << 20;

// |sum of n steps|^2 over the sum of their squares, where a step has the correlation b^i with the
// i-th before it and they are noise otherwise.
SLIPSTREAM_HOST_DEVICE inline double NoiseCoherence(int64_t num_steps, double b) {
  double sum = 1, power = b;
  // What is less than half of the last bit of 1 changes nothing.
  // No window is longer than the bound; what was restored may say so.
  for (int64_t i = 1; i < num_steps && i < kMostTerms && power > 1e-17; ++i, power *= b) {
    sum += 2 * (1 - static_cast<double>(i) / num_steps) * power;
  }
  return sum;
}

// Rows: what a judgement needs of a row [dim] and its snapshot; Judge says which functions.
//       cycle: steps from the row's last update to this one
template <typename Rows>
SLIPSTREAM_HOST_DEVICE double Drift(const PolicySettings& policy, const PoolEntry& entry,
                                    int64_t cycle, double path, const Rows& rows) {
  switch (policy.metric()) {
    case DriftMetric::kCoherence: {
      if (path == 0) return 0;
      // Of one update with the one before. A row that is not updated in every step gets the whole
      // effect of each gradient at once.
      const double b = cycle == 1 ? policy.correlation : 0;
      return rows.SquaredDistance() / (path * NoiseCoherence(entry.window_updates, b));
    }
    case DriftMetric::kRelativeL2: {
      const double net = std::sqrt(static_cast<double>(rows.SquaredDistance()));
      if (net == 0) return 0;
      return net / std::sqrt(static_cast<double>(rows.SnapshotNorm()));
    }
    case DriftMetric::kL2:
      return std::sqrt(static_cast<double>(rows.SquaredDistance()));
    case DriftMetric::kMeanAbs:
      return static_cast<double>(rows.AbsoluteDistance()) / rows.dim();
    case DriftMetric::kLoss:
      return std::max(0.0, path) / entry.window_updates;
  }
  return std::numeric_limits<double>::infinity();
}

// ceil(num_batches * cycle / k): as many of the row's batches in steps, at most `max_age`.
SLIPSTREAM_HOST_DEVICE inline int64_t SleepSteps(int64_t num_batches, int64_t cycle, int64_t k,
                                                 int64_t max_age) {
  if (num_batches > kMostSteps / cycle) return max_age;
  return std::min(max_age, (num_batches * cycle + k - 1) / k);
}

// The longest sleep that a row may have now, in batches.
SLIPSTREAM_HOST_DEVICE inline int64_t SleepLimit(const PolicySettings& policy,
                                                 const PolicyState& state, const PoolEntry& entry) {
  const double longest = std::floor(policy.max_sleep * state.strictness);
  const double age = static_cast<double>(entry.num_updates) / policy.updates_per_sleep;
  // No bit of a whole number is lost: both of the quotient are below 2^31.
  const double grown = policy.sleep_growth == 1 ? age : std::pow(age, policy.sleep_growth);
  return std::max<int64_t>(1, static_cast<int64_t>(std::min(longest, grown)));
}

// Whether a row that sleeps overshoots, and swings back: its path is long, and leads nowhere.
SLIPSTREAM_HOST_DEVICE inline bool Swings(const PolicySettings& policy, double drift, double path) {
  return !policy.skips && policy.metric() == DriftMetric::kCoherence && path > 0 &&
         drift < policy.min_drift;
}

// The row's state after a judgement; returns the batches it may sleep now under "skip", else 0.
//   rows  SquaredDistance() and AbsoluteDistance() of row and snapshot, SnapshotNorm(), squared:
//         sums over the elements; dim(); TakeSnapshot() copies the row to its snapshot
template <typename Rows>
SLIPSTREAM_HOST_DEVICE int64_t Judge(const PolicySettings& policy, const PolicyState& state,
                                     const Rows& rows, int64_t limit, int64_t cycle,
                                     PoolEntry* entry, float* path) {
  const double drift = Drift(policy, *entry, cycle, *path, rows);
  const bool at_rest = !Swings(policy, drift, *path) && drift <= state.threshold * state.strictness;
  int64_t sleep = 0;
  if (policy.skips) {
    if (at_rest) sleep = std::min(entry->period, limit);
    entry->period = at_rest ? std::min(2 * entry->period, policy.max_sleep) : policy.first_sleep;
    entry->is_skipped = at_rest;
  } else {
    entry->period = at_rest ? std::min(std::max(2 * entry->period, policy.first_sleep), limit)
                            : std::max<int64_t>(1, entry->period / 2);
    entry->is_skipped = policy.skip_below > 0 && drift <= policy.skip_below;
  }
  rows.TakeSnapshot();
  *path = 0;
  entry->window_updates = 0;
  return sleep;
}

// Judges a popular row that was updated in a batch of its own, and puts it to sleep or not: one
// that a refresh or a change of the learning rate woke stays live until it is judged. Returns what
// to add to `num_sleeping`.
//   index its entry's, which is `*entry`
//   rows  as for Judge
//   path  the entry's
template <typename Rows>
SLIPSTREAM_HOST_DEVICE int64_t AfterUpdate(const PolicySettings& policy, const PolicyState& state,
                                           int64_t index, int64_t step, const Rows& rows,
                                           PoolEntry* entry, float* path) {
  // At least 1, though the counter of steps was set back.
  const int64_t cycle = std::max<int64_t>(1, step - entry->live_step);
  const bool slept = entry->wake_step > 0;
  const bool was_woken = entry->live_step < state.woken_at;
  // Batches in the cycle. Those of a skipped sleep are not counted; it was made for a period.
  const bool is_counted = policy.skips || !slept || !entry->is_skipped;
  // At least 1, whatever was restored.
  const int64_t k = std::max<int64_t>(1, is_counted ? entry->held_steps + 1 : entry->period);
  ++entry->num_updates;
  entry->live_step = step;
  entry->held_steps = 0;
  entry->wake_step = 0;
  const int64_t num_judged = policy.skips && entry->is_skipped ? policy.probe : policy.window;
  const int64_t period = entry->period;
  const int64_t limit = SleepLimit(policy, state, *entry);
  bool is_judged = entry->window_updates >= num_judged;
  if (!is_judged && !policy.skips && policy.metric() == DriftMetric::kCoherence && period > 1 &&
      2 * entry->window_updates >= policy.window) {
    // It swings farther with each update.
    is_judged = Swings(policy, Drift(policy, *entry, cycle, *path, rows), *path);
  }
  int64_t num_batches = 0;
  if (is_judged) num_batches = Judge(policy, state, rows, limit, cycle, entry, path);
  const bool sleeps_on = slept && !was_woken;
  if (!policy.skips && (is_judged || sleeps_on)) {
    num_batches = std::min(entry->period, limit) - 1;
  }
  if (num_batches > 0) {
    int64_t sleep = SleepSteps(num_batches, cycle, k, policy.max_age);
    if (!policy.skips && (entry->period != period || !sleeps_on)) {
      // Rows that became popular or were woken together would otherwise be updated together, all
      // in one step and none in those between.
      sleep -= (step + 1 + sleep + index) % (sleep + 1);
    }
    entry->wake_step = step + 1 + sleep;
  }
  return (entry->wake_step > 0) - slept;
}

// Judges the row [dim] of an entry, see above. Changes nothing else than its entry.
int64_t AfterUpdate(const Staleness& staleness, int64_t entry, const float* row, int64_t step);

// The same for a row whose held gradients alone were applied; it may sleep on.
SLIPSTREAM_HOST_DEVICE inline void AfterFlush(int64_t step, PoolEntry* entry) {
  entry->live_step = step;
  entry->held_steps = 0;
}

// The updates of a row that is not popular after one more.
SLIPSTREAM_INLINE int32_t OneMore(int32_t num_updates) {
  return num_updates == std::numeric_limits<int32_t>::max() ? num_updates : num_updates + 1;
}

// Whether a row with so many updates becomes popular in a step, if there is an entry left.
SLIPSTREAM_INLINE bool HasEnough(const PolicySettings& policy, int64_t num_updates, int64_t step) {
  return num_updates >= policy.min_updates && step > policy.warm_up;
}

// The entry of a row that becomes popular in a step.
SLIPSTREAM_INLINE PoolEntry NewEntry(const PolicySettings& policy, int64_t row, int64_t num_updates,
                                     int64_t step) {
  PoolEntry entry = {};
  entry.row = row;
  entry.live_step = step;
  entry.num_updates = num_updates;
  entry.period = policy.skips ? policy.first_sleep : 1;
  return entry;
}

// Entries that one step looks at when rows want to become popular and the pool is full, and for how
// many steps nobody must have looked a row up, for another to get its entry.
inline constexpr int64_t kIdleWindow = 256;
inline constexpr int64_t kIdleSteps = 1000;

// holds_elsewhere: whether what is held of it is not in the pool, and would be lost
SLIPSTREAM_INLINE bool IsIdle(const PoolEntry& entry, int64_t step, bool holds_elsewhere) {
  if (holds_elsewhere && entry.held_steps != 0) return false;
  // A row that is looked up while it sleeps leaves no trace but what it holds.
  return std::max(entry.live_step, entry.wake_step) <= step - kIdleSteps;
}

// The entry where a search begins.
SLIPSTREAM_INLINE int64_t FirstIdle(const PolicyState& state) {
  return 0 <= state.hand && state.hand < state.num_entries ? static_cast<int64_t>(state.hand) : 0;
}

// The row state of a row whose entry another one gets.
SLIPSTREAM_INLINE int32_t StateOfEvicted(const PoolEntry& entry) {
  return static_cast<int32_t>(
      std::min<int64_t>(entry.num_updates, std::numeric_limits<int32_t>::max()));
}

// Makes a row popular that was just updated for the num_updates-th time, as entry `index`.
void Promote(const Staleness& staleness, int64_t index, int64_t id, const float* row, int64_t step);

// Makes a row as if it had never been looked up. Where it has an entry, the last one takes its
// place, and what is held is gone.
//   local_held  [capacity, dim], what a replica holds; null: the pool holds all
void LeavePool(const Staleness& staleness, int64_t row, float* local_held);

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_STALENESS_H_
