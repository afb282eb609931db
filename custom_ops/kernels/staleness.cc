#include "staleness.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace slipstream {
namespace {

constexpr int64_t kControlSteps = 100;
constexpr double kControlFactor = 1.25;
constexpr double kControlRange = 1000;
// Beyond this a change of the learning rate wakes rows; the steps of a smooth schedule add up to
// it.
constexpr double kRateChange = 1.25;

SLIPSTREAM_SIMD
float SquaredDistance(const float* a, const float* b, int64_t dim) {
  return LaneSum(dim, [&](int64_t d) { return (a[d] - b[d]) * (a[d] - b[d]); });
}

SLIPSTREAM_SIMD
float AbsoluteDistance(const float* a, const float* b, int64_t dim) {
  return LaneSum(dim, [&](int64_t d) { return std::fabs(a[d] - b[d]); });
}

SLIPSTREAM_SIMD
float SquaredNorm(const float* a, int64_t dim) {
  return LaneSum(dim, [&](int64_t d) { return a[d] * a[d]; });
}

// grad . (a - b)
SLIPSTREAM_SIMD
float DotDifference(const float* grad, const float* a, const float* b, int64_t dim) {
  return LaneSum(dim, [&](int64_t d) { return grad[d] * (a[d] - b[d]); });
}

// |sum of n steps|^2 over the sum of their squares, where a step has the correlation b^i with the
// i-th before it and they are noise otherwise.
double NoiseCoherence(int64_t num_steps, double b) {
  double sum = 1, power = 1;
  for (int64_t i = 1; i < num_steps; ++i) {
    power *= b;
    sum += 2 * (1 - static_cast<double>(i) / num_steps) * power;
  }
  return sum;
}

double Drift(const Staleness& s, const PoolEntry& entry, const float* row, const float* snapshot,
             double path) {
  switch (s.policy.metric) {
    case DriftMetric::kCoherence: {
      if (path == 0) return 0;
      // Of one update with the one before: so many batches apart.
      const int64_t distance = s.policy.skips ? 1 : entry.period;
      const double b = std::pow(s.policy.correlation, static_cast<double>(distance));
      return SquaredDistance(row, snapshot, s.dim) /
             (path * NoiseCoherence(entry.window_updates, b));
    }
    case DriftMetric::kRelativeL2: {
      const double net = std::sqrt(static_cast<double>(SquaredDistance(row, snapshot, s.dim)));
      if (net == 0) return 0;
      return net / std::sqrt(static_cast<double>(SquaredNorm(snapshot, s.dim)));
    }
    case DriftMetric::kL2:
      return std::sqrt(static_cast<double>(SquaredDistance(row, snapshot, s.dim)));
    case DriftMetric::kMeanAbs:
      return static_cast<double>(AbsoluteDistance(row, snapshot, s.dim)) / s.dim;
    case DriftMetric::kLoss:
      return std::max(0.0, path) / entry.window_updates;
  }
  return std::numeric_limits<double>::infinity();
}

// ceil(num_batches * cycle / k): as many of the row's batches in steps, at most `max_age`.
int64_t SleepSteps(int64_t num_batches, int64_t cycle, int64_t k, int64_t max_age) {
  return std::min(max_age, (num_batches * cycle + k - 1) / k);
}

// The longest sleep that a row may have now, in batches.
int64_t SleepLimit(const Staleness& s, const PoolEntry& entry) {
  const int64_t longest =
      static_cast<int64_t>(std::floor(s.policy.max_sleep * s.state->strictness));
  return std::max<int64_t>(1, std::min(longest, entry.num_updates / s.policy.updates_per_sleep));
}

// The row's state after a judgement; returns the batches it may sleep now under "skip", else 0.
int64_t Judge(const Staleness& s, int64_t limit, PoolEntry* entry, const float* row,
              float* snapshot, float* path) {
  const PolicySettings& policy = s.policy;
  const double drift = Drift(s, *entry, row, snapshot, *path);
  const bool at_rest = drift <= s.state->threshold * s.state->strictness;
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
  std::memcpy(snapshot, row, s.dim * sizeof(float));
  *path = 0;
  entry->window_updates = 0;
  return sleep;
}

}  // namespace

PolicySettings::PolicySettings(const double* v)
    : skips(v[0] != 0),
      min_updates(v[1]),
      window(v[2]),
      probe(v[3]),
      metric(static_cast<DriftMetric>(static_cast<int>(v[4]))),
      target_skip(v[5]),
      max_threshold(v[6]),
      first_sleep(v[7]),
      max_sleep(v[8]),
      updates_per_sleep(v[9]),
      max_age(v[10]),
      skip_below(v[11]),
      refresh_every(v[12]),
      warm_up(v[13]),
      correlation(v[14]) {}

bool BeginStep(const PolicySettings& policy, int64_t step, double learning_rate, bool wake_all,
               PolicyState* state) {
  const double before = state->learning_rate;
  if (before == 0) {
    state->learning_rate = learning_rate;
  } else if (learning_rate > kRateChange * before || learning_rate * kRateChange < before) {
    state->learning_rate = learning_rate;
    state->woken_at = step;
  }
  const bool is_refresh =
      wake_all || (policy.refresh_every > 0 && step % policy.refresh_every == 0);
  if (is_refresh) state->woken_at = step;
  return is_refresh;
}

void EndStep(const PolicySettings& policy, int64_t step, int64_t num_lookups, int64_t num_stale,
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

void Measure(const Staleness& s, int64_t entry, const float* row, const float* row_before,
             const float* grad) {
  ++s.entries[entry].window_updates;
  if (s.policy.metric == DriftMetric::kCoherence) {
    *s.path(entry) += SquaredDistance(row, row_before, s.dim);
  } else if (s.policy.metric == DriftMetric::kLoss) {
    *s.path(entry) -= DotDifference(grad, row_before, s.snapshot(entry), s.dim);
  }
}

int64_t AfterUpdate(const Staleness& s, int64_t index, const float* row, int64_t step) {
  const PolicySettings& policy = s.policy;
  PoolEntry* entry = s.entries + index;
  const int64_t cycle = step - entry->live_step;
  const bool slept = entry->wake_step > 0;
  const bool was_woken = entry->live_step < s.state->woken_at;
  // Batches in the cycle. Those of a skipped sleep are not counted; it was made for a period.
  const bool is_counted = policy.skips || !slept || !entry->is_skipped;
  const int64_t k = is_counted ? entry->held_steps + 1 : entry->period;
  ++entry->num_updates;
  entry->live_step = step;
  entry->held_steps = 0;
  entry->wake_step = 0;
  const int64_t num_judged = policy.skips && entry->is_skipped ? policy.probe : policy.window;
  const int64_t period = entry->period;
  const int64_t limit = SleepLimit(s, *entry);
  const bool is_judged = entry->window_updates >= num_judged;
  int64_t num_batches = 0;
  if (is_judged) {
    num_batches = Judge(s, limit, entry, row, s.snapshot(index), s.path(index));
  }
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

int64_t AfterFlush(int64_t step, PoolEntry* entry) {
  const bool slept = entry->wake_step > 0;
  entry->live_step = step;
  entry->held_steps = 0;
  entry->wake_step = 0;
  return -static_cast<int64_t>(slept);
}

void Promote(const Staleness& s, int64_t id, const float* row, int64_t step) {
  const int64_t index = static_cast<int64_t>(s.state->num_entries);
  if (index >= s.capacity) return;
  s.state->num_entries += 1;
  PoolEntry* entry = s.entries + index;
  *entry = {};
  entry->row = id;
  entry->live_step = step;
  entry->num_updates = s.row_states[id];
  entry->period = s.policy.skips ? s.policy.first_sleep : 1;
  std::memset(s.held(index), 0, s.dim * sizeof(float));
  std::memcpy(s.snapshot(index), row, s.dim * sizeof(float));
  *s.path(index) = 0;
  s.row_states[id] = static_cast<int32_t>(-1 - index);
}

}  // namespace slipstream
