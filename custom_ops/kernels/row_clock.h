#ifndef SLIPSTREAM_KERNELS_ROW_CLOCK_H_
#define SLIPSTREAM_KERNELS_ROW_CLOCK_H_

// A row's word in `last_steps`: the step that last touched it, and whether its momentum was spent
// then (update_rules.h). 0: no step yet. Else the lower 31 bits are 1 + (step - 1) modulo
// (2^31 - 1), which is never 0, and the highest bit is set if it was spent.

#include <cstdint>

#include "simd.h"

namespace slipstream {

inline constexpr uint32_t kSpentBit = 1u << 31;
inline constexpr int64_t kClockSteps = (int64_t{1} << 31) - 1;

SLIPSTREAM_INLINE uint32_t ClockOf(int64_t step, bool is_spent) {
  const uint32_t clock = static_cast<uint32_t>(1 + (step - 1) % kClockSteps);
  return is_spent ? clock | kSpentBit : clock;
}

// Steps from a row's last one to `step`, which is at least 1; from the beginning where there was
// none. Exact below 2^30. Where the counter was set back, time stands still: 0.
SLIPSTREAM_INLINE int64_t StepsSince(uint32_t clock, int64_t step) {
  constexpr int64_t kMost = kClockSteps / 2;
  if (clock == 0) return step < kMost ? step : kMost;
  int64_t num = 1 + (step - 1) % kClockSteps - static_cast<int64_t>(clock & ~kSpentBit);
  if (num < -kMost) num += kClockSteps;
  if (num > kMost) num -= kClockSteps;
  return num < 0 ? 0 : num;
}

// What a step does to a row, beside its gradient.
struct Touch {
  uint32_t num_batches = 1;  // that the gradient is the sum of
  uint32_t num_missed = 0;   // steps since the last touch in which no batch had the row
  bool was_spent = false;    // at the last touch
  bool is_first = false;
};

SLIPSTREAM_INLINE Touch TouchAt(uint32_t clock, int64_t step, uint32_t num_batches) {
  const int64_t num_steps = StepsSince(clock, step);
  Touch touch;
  touch.num_batches = num_batches;
  // Workers of a cluster share steps: then fewer may have passed than there were batches.
  touch.num_missed = num_steps > num_batches ? static_cast<uint32_t>(num_steps - num_batches) : 0;
  touch.was_spent = (clock & kSpentBit) != 0;
  touch.is_first = clock == 0;
  return touch;
}

// Whether a row is written less than once a step, so that its momentum is spent at once.
SLIPSTREAM_INLINE bool IsRare(const Touch& touch) {
  return touch.num_missed > 0 || touch.num_batches > 1;
}

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_ROW_CLOCK_H_
