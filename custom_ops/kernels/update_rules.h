#ifndef SLIPSTREAM_KERNELS_UPDATE_RULES_H_
#define SLIPSTREAM_KERNELS_UPDATE_RULES_H_

// One struct per update rule: what it does to one row, given the row's summed gradient. The
// equations and the operations' order are Keras's, so that a batch that touches every row gives
// what Keras's dense update gives. Each has:
//   Rule(settings)        reads `settings.hyperparameters`, whose order is that of the fields of
//                         the Python rule of the same name (tf_slipstream/update_rules)
//   NumSlots(hyperparameters), at most kNumSlots; kNumHyperparameters
//   kSlotsPerRow          whether a slot has one value per row instead of one per element
//   kHasMoments           whether it must know the steps that a row missed
//   Update(row, grad, dim, missed, k)
//                         row: the row and its slots; grad [dim]: the sum over k batches; missed:
//                         the steps since the row was last touched that had no gradient of it, for
//                         which its moments decay. With k > 1 as docs/policy.md derives it; with 1
//                         operation for operation the plain rule.
// Elements do not depend on each other, so that any part of a row, with the same part of its slots,
// can be updated alone: on a GPU each lane updates its own elements, in registers. What a rule with
// kSlotsPerRow needs of the whole row is apart.

#include <cmath>
#include <cstdint>

#include "simd.h"

namespace slipstream {

inline constexpr int kMaxSlots = 3;

// What a step applies alike to every row of a table.
struct StepSettings {
  int64_t step = 1;  // 1 in the first step
  double learning_rate = 0;
  double weight_decay = 0;  // 0: none
  double clip_value = 0;    // 0: none
  double grad_scale = 1;    // multiplies the summed gradient, before clip_value
  const double* hyperparameters = nullptr;
};

// A row [dim] and its slots: [dim] each, or [1] where the rule keeps one value per row.
struct RowState {
  float* row;
  float* slots[kMaxSlots];
};

// base^exponent for exponent >= 0 by squaring; exact powers repeat on any machine.
SLIPSTREAM_INLINE double IntegerPower(double base, uint32_t exponent) {
  double power = 1;
  for (; exponent != 0; exponent >>= 1) {
    if (exponent & 1) power *= base;
    base *= base;
  }
  return power;
}

// What k steps `m = base m + i` with a constant i make of m, and of the sum of the k values of m:
// `m_k = power m + held i` and `sum = from_m m + from_i i`.
struct MomentumSteps {
  MomentumSteps() = default;
  SLIPSTREAM_HOST_DEVICE MomentumSteps(double base, uint32_t k) : power(IntegerPower(base, k)) {
    const double n = k;
    held = base == 1 ? n : (1 - power) / (1 - base);
    from_m = base * held;
    from_i = base == 1 ? n * (n + 1) / 2 : (n - from_m) / (1 - base);
  }
  float power = 0, held = 0, from_m = 0, from_i = 0;
};

SLIPSTREAM_INLINE void Scale(float* __restrict values, int64_t dim, float factor) {
  for (int64_t d = 0; d < dim; ++d) values[d] *= factor;
}

// An element of a summed gradient, scaled, and clipped where limit is not 0.
SLIPSTREAM_INLINE float ScaledAndClipped(float grad, float scale, float limit) {
  const float scaled = grad * scale;
  if (limit == 0) return scaled;
  const float above = scaled < -limit ? -limit : scaled;
  return limit < above ? limit : above;
}

// The weight decay of k batches, before the rule.
SLIPSTREAM_INLINE void DecayWeights(float* __restrict row, int64_t dim, float decay,
                                    float learning_rate, uint32_t k) {
  if (decay == 0) return;
  if (k == 1) {
    for (int64_t d = 0; d < dim; ++d) row[d] -= row[d] * decay * learning_rate;
  } else {
    const double kept = 1 - static_cast<double>(decay) * learning_rate;
    Scale(row, dim, static_cast<float>(IntegerPower(kept, k)));
  }
}

struct Sgd {
  static constexpr int kNumHyperparameters = 0, kNumSlots = 0;
  static constexpr bool kSlotsPerRow = false, kHasMoments = false;
  static int NumSlots(const double*) { return 0; }
  SLIPSTREAM_HOST_DEVICE explicit Sgd(const StepSettings& s) : learning_rate(s.learning_rate) {}
  SLIPSTREAM_INLINE void Update(RowState r, const float* __restrict grad, int64_t dim, uint32_t,
                                uint32_t) const {
    float* __restrict row = r.row;
    for (int64_t d = 0; d < dim; ++d) row[d] -= grad[d] * learning_rate;
  }
  float learning_rate;
};

struct Momentum {
  static constexpr int kNumHyperparameters = 2, kNumSlots = 1;
  static constexpr bool kSlotsPerRow = false, kHasMoments = true;
  static int NumSlots(const double*) { return 1; }
  SLIPSTREAM_HOST_DEVICE explicit Momentum(const StepSettings& s)
      : learning_rate(s.learning_rate),
        momentum(s.hyperparameters[0]),
        nesterov(s.hyperparameters[1] != 0) {}
  SLIPSTREAM_INLINE void Update(RowState r, const float* __restrict grad, int64_t dim,
                                uint32_t missed, uint32_t k) const {
    float* __restrict row = r.row;
    float* __restrict m = r.slots[0];
    const float mu = static_cast<float>(momentum);
    if (missed > 0) Scale(m, dim, IntegerPower(momentum, missed));
    if (k > 1) {
      const MomentumSteps steps(momentum, k);
      const float rate = learning_rate / k;
      for (int64_t d = 0; d < dim; ++d) {
        const float i = -(grad[d] * rate);
        const float sum = steps.from_m * m[d] + steps.from_i * i;
        m[d] = steps.power * m[d] + steps.held * i;
        row[d] += nesterov ? sum * mu - grad[d] * learning_rate : sum;
      }
      return;
    }
    for (int64_t d = 0; d < dim; ++d) {
      m[d] = m[d] * mu - grad[d] * learning_rate;
      row[d] += nesterov ? m[d] * mu - grad[d] * learning_rate : m[d];
    }
  }
  float learning_rate;
  double momentum;
  bool nesterov;
};

struct Adagrad {
  static constexpr int kNumHyperparameters = 1, kNumSlots = 1;
  static constexpr bool kSlotsPerRow = false, kHasMoments = false;
  static int NumSlots(const double*) { return 1; }
  SLIPSTREAM_HOST_DEVICE explicit Adagrad(const StepSettings& s)
      : learning_rate(s.learning_rate), epsilon(s.hyperparameters[0]) {}
  SLIPSTREAM_INLINE void Update(RowState r, const float* __restrict grad, int64_t dim, uint32_t,
                                uint32_t) const {
    float* __restrict row = r.row;
    float* __restrict accumulator = r.slots[0];
    for (int64_t d = 0; d < dim; ++d) {
      accumulator[d] += grad[d] * grad[d];
      row[d] -= learning_rate * grad[d] / std::sqrt(accumulator[d] + epsilon);
    }
  }
  float learning_rate, epsilon;
};

struct RowWiseAdagrad {
  static constexpr int kNumHyperparameters = 1, kNumSlots = 1;
  static constexpr bool kSlotsPerRow = true, kHasMoments = false;
  static int NumSlots(const double*) { return 1; }
  SLIPSTREAM_HOST_DEVICE explicit RowWiseAdagrad(const StepSettings& s)
      : learning_rate(s.learning_rate), epsilon(s.hyperparameters[0]) {}
  SLIPSTREAM_INLINE void Update(RowState r, const float* __restrict grad, int64_t dim, uint32_t,
                                uint32_t) const {
    const float squares = LaneSum(dim, [&](int64_t d) { return grad[d] * grad[d]; });
    float* accumulator = r.slots[0];
    *accumulator = Accumulated(*accumulator, squares, dim);
    UpdatePart(r.row, grad, dim, *accumulator);
  }
  SLIPSTREAM_INLINE float Accumulated(float accumulator, float squares, int64_t dim) const {
    return accumulator + squares / static_cast<float>(dim);
  }
  SLIPSTREAM_INLINE void UpdatePart(float* __restrict row, const float* __restrict grad,
                                    int64_t num_elements, float accumulator) const {
    const float denominator = std::sqrt(accumulator) + epsilon;
    for (int64_t d = 0; d < num_elements; ++d) row[d] -= learning_rate * grad[d] / denominator;
  }
  float learning_rate, epsilon;
};

struct Adam {
  static constexpr int kNumHyperparameters = 4, kNumSlots = 3;
  static constexpr bool kSlotsPerRow = false, kHasMoments = true;
  static int NumSlots(const double* h) { return h[3] != 0 ? 3 : 2; }
  SLIPSTREAM_HOST_DEVICE explicit Adam(const StepSettings& s)
      : beta_1(s.hyperparameters[0]),
        beta_2(s.hyperparameters[1]),
        epsilon(s.hyperparameters[2]),
        amsgrad(s.hyperparameters[3] != 0) {
    const double step = static_cast<double>(s.step);
    alpha = s.learning_rate * std::sqrt(1 - std::pow(beta_2, step)) / (1 - std::pow(beta_1, step));
  }
  SLIPSTREAM_INLINE void Update(RowState r, const float* __restrict grad, int64_t dim,
                                uint32_t missed, uint32_t k) const {
    float* __restrict row = r.row;
    float* __restrict m = r.slots[0];
    float* __restrict v = r.slots[1];
    if (missed > 0) {
      Scale(m, dim, IntegerPower(beta_1, missed));
      Scale(v, dim, IntegerPower(beta_2, missed));
    }
    const float new_1 = static_cast<float>(1 - IntegerPower(beta_1, k));
    const float new_2 = static_cast<float>(1 - IntegerPower(beta_2, k));
    const float share = 1.0f / k, rate = alpha * k;
    if (amsgrad) {
      float* __restrict v_max = r.slots[2];
      for (int64_t d = 0; d < dim; ++d) {
        m[d] += (grad[d] * share - m[d]) * new_1;
        v[d] += (grad[d] * grad[d] * share - v[d]) * new_2;
        v_max[d] = v_max[d] > v[d] ? v_max[d] : v[d];
        row[d] -= m[d] * rate / (std::sqrt(v_max[d]) + epsilon);
      }
      return;
    }
    for (int64_t d = 0; d < dim; ++d) {
      m[d] += (grad[d] * share - m[d]) * new_1;
      v[d] += (grad[d] * grad[d] * share - v[d]) * new_2;
      row[d] -= m[d] * rate / (std::sqrt(v[d]) + epsilon);
    }
  }
  double beta_1, beta_2;
  float alpha, epsilon;
  bool amsgrad;
};

struct RmsProp {
  static constexpr int kNumHyperparameters = 4, kNumSlots = 3;
  static constexpr bool kSlotsPerRow = false, kHasMoments = true;
  static int NumSlots(const double* h) { return 1 + (h[1] > 0) + (h[3] != 0); }
  SLIPSTREAM_HOST_DEVICE explicit RmsProp(const StepSettings& s)
      : learning_rate(s.learning_rate),
        rho(s.hyperparameters[0]),
        momentum(s.hyperparameters[1]),
        epsilon(s.hyperparameters[2]),
        centered(s.hyperparameters[3] != 0) {}
  SLIPSTREAM_INLINE void Update(RowState r, const float* __restrict grad, int64_t dim,
                                uint32_t missed, uint32_t k) const {
    if (centered) {
      UpdateAs<true>(r, grad, dim, missed, k);
    } else {
      UpdateAs<false>(r, grad, dim, missed, k);
    }
  }
  // Which slot is which is then known to the compiler, without which a GPU holds none in registers.
  template <bool kCentered>
  SLIPSTREAM_INLINE void UpdateAs(RowState r, const float* __restrict grad, int64_t dim,
                                  uint32_t missed, uint32_t k) const {
    float* __restrict row = r.row;
    float* __restrict velocity = r.slots[0];
    float* __restrict mean = r.slots[1];                    // centered only
    float* __restrict buffer = r.slots[kCentered ? 2 : 1];  // with momentum only
    const double kept = IntegerPower(rho, k);
    const float keep = static_cast<float>(kept), take = static_cast<float>(1 - kept);
    const float mu = static_cast<float>(momentum), share = 1.0f / k, batches = k;
    // Of a single step it is not used, and most are single.
    const MomentumSteps steps = k > 1 ? MomentumSteps(momentum, k) : MomentumSteps();
    if (missed > 0) {
      const float decay = static_cast<float>(IntegerPower(rho, missed));
      Scale(velocity, dim, decay);
      if (kCentered) Scale(mean, dim, decay);
      if (momentum > 0) Scale(buffer, dim, IntegerPower(momentum, missed));
    }
    for (int64_t d = 0; d < dim; ++d) {
      velocity[d] = keep * velocity[d] + take * (grad[d] * grad[d] * share);
      float denominator = velocity[d] + epsilon;
      if (kCentered) {
        mean[d] = keep * mean[d] + take * (grad[d] * share);
        denominator = velocity[d] - mean[d] * mean[d] + epsilon;
      }
      const float increment = learning_rate * (grad[d] * share) / std::sqrt(denominator);
      if (momentum == 0) {
        row[d] -= increment * batches;
      } else if (k == 1) {
        buffer[d] = mu * buffer[d] + increment;
        row[d] -= buffer[d];
      } else {
        row[d] -= steps.from_m * buffer[d] + steps.from_i * increment;
        buffer[d] = steps.power * buffer[d] + steps.held * increment;
      }
    }
  }
  float learning_rate;
  double rho, momentum;
  float epsilon;
  bool centered;
};

struct Ftrl {
  static constexpr int kNumHyperparameters = 5, kNumSlots = 2;
  static constexpr bool kSlotsPerRow = false, kHasMoments = false;
  static int NumSlots(const double*) { return 2; }
  SLIPSTREAM_HOST_DEVICE explicit Ftrl(const StepSettings& s)
      : learning_rate(s.learning_rate),
        power(-s.hyperparameters[0]),
        l1(s.hyperparameters[1]),
        l2(s.hyperparameters[2] + s.hyperparameters[4] / (2 * s.learning_rate)),
        l2_shrinkage(s.hyperparameters[3]) {}
  SLIPSTREAM_INLINE float Power(float x) const {
    return power == 0.5f ? std::sqrt(x) : std::pow(x, power);
  }
  SLIPSTREAM_INLINE void Update(RowState r, const float* __restrict grad, int64_t dim, uint32_t,
                                uint32_t k) const {
    float* __restrict row = r.row;
    float* __restrict accumulator = r.slots[0];
    float* __restrict linear = r.slots[1];
    const float shrinkage = 2 * l2_shrinkage * k;
    for (int64_t d = 0; d < dim; ++d) {
      const float accumulated = accumulator[d] + grad[d] * grad[d];
      const float new_power = Power(accumulated);
      linear[d] += grad[d] + shrinkage * row[d] -
                   (new_power - Power(accumulator[d])) / learning_rate * row[d];
      const float clipped = std::fmin(std::fmax(linear[d], -l1), l1);
      row[d] = (clipped - linear[d]) / (new_power / learning_rate + 2 * l2);
      accumulator[d] = accumulated;
    }
  }
  float learning_rate, power, l1, l2, l2_shrinkage;
};

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_UPDATE_RULES_H_
