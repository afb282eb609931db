#include "staleness.h"

#include <cmath>
#include <cstring>

namespace slipstream {
namespace {

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

// A row and its snapshot, for Judge.
struct RowPair {
  float SquaredDistance() const { return slipstream::SquaredDistance(row, snapshot, num); }
  float AbsoluteDistance() const { return slipstream::AbsoluteDistance(row, snapshot, num); }
  float SnapshotNorm() const { return SquaredNorm(snapshot, num); }
  int64_t dim() const { return num; }
  void TakeSnapshot() const { std::memcpy(snapshot, row, num * sizeof(float)); }
  const float* row;
  float* snapshot;
  int64_t num;
};

}  // namespace

int64_t CheckPool(const Staleness& s, int64_t num_rows) {
  for (int64_t e = 0; e < s.state->num_entries; ++e) {
    if (!IsWhole(s, e, num_rows)) return e;
  }
  return -1;
}

void Measure(const Staleness& s, int64_t entry, const float* row, const float* row_before,
             const float* grad) {
  ++s.entries[entry].window_updates;
  if (s.policy.metric() == DriftMetric::kCoherence) {
    *s.path(entry) += SquaredDistance(row, row_before, s.dim);
  } else if (s.policy.metric() == DriftMetric::kLoss) {
    *s.path(entry) -= DotDifference(grad, row_before, s.snapshot(entry), s.dim);
  }
}

int64_t AfterUpdate(const Staleness& s, int64_t entry, const float* row, int64_t step) {
  return AfterUpdate(s.policy, *s.state, entry, step, RowPair{row, s.snapshot(entry), s.dim},
                     s.entries + entry, s.path(entry));
}

void Promote(const Staleness& s, int64_t index, int64_t id, const float* row, int64_t step) {
  s.entries[index] = NewEntry(s.policy, id, s.row_states[id], step);
  std::memset(s.held(index), 0, s.dim * sizeof(float));
  std::memcpy(s.snapshot(index), row, s.dim * sizeof(float));
  *s.path(index) = 0;
  s.row_states[id] = static_cast<int32_t>(-1 - index);
}

void LeavePool(const Staleness& s, int64_t row, float* local_held) {
  const int64_t index = -1 - static_cast<int64_t>(s.row_states[row]);
  s.row_states[row] = 0;
  if (index < 0) return;
  const int64_t last = static_cast<int64_t>(s.state->num_entries) - 1;
  s.state->num_sleeping -= s.entries[index].wake_step > 0;
  s.state->num_entries = static_cast<double>(last);
  if (index != last) {
    s.entries[index] = s.entries[last];
    s.row_states[s.entries[index].row] = static_cast<int32_t>(-1 - index);
    std::memcpy(s.held(index), s.held(last), (2 * s.dim + 1) * sizeof(float));
  }
  s.entries[last] = PoolEntry{};
  std::memset(s.held(last), 0, (2 * s.dim + 1) * sizeof(float));
  if (local_held == nullptr) return;
  if (index != last) {
    std::memcpy(local_held + index * s.dim, local_held + last * s.dim, s.dim * sizeof(float));
  }
  std::memset(local_held + last * s.dim, 0, s.dim * sizeof(float));
}

}  // namespace slipstream
