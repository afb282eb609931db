#ifndef SLIPSTREAM_KERNELS_UPDATE_RULES_H_
#define SLIPSTREAM_KERNELS_UPDATE_RULES_H_

// One struct per update rule: what it does to one row, given the row's summed gradient. The
// equations and the operations' order are Keras's, so that a row touched in every step gets, to the
// bit, what Keras's dense update gives it. Each has:
//   Rule(settings)        reads `settings.hyperparameters`, whose order is that of the fields of
//                         the Python rule of the same name (tf_slipstream/update_rules)
//   NumSlots(hyperparameters), at most kNumSlots; kNumHyperparameters
//   kSlotsPerRow          whether a slot has one value per row instead of one per element
//   kHasMoments           whether it must know the steps that a row missed
//   Adjust(row, dim, touch)
//                         brings a row and its slots to the step before this one; to be called
//                         where it missed a step or was spent
//   Update(row, grad, dim, k, spends)
//                         row: the row and its slots; grad [dim]: the sum over k batches; spends:
//                         whether to spend its momentum, see below
//   can_spend()           whether the rule has momentum to spend
//   moves_when_missed()   whether a dense optimizer moves a row in a step that misses it
// Elements do not depend on each other, so that any part of a row, with the same part of its slots,
// can be updated alone: on a GPU each lane updates its own elements, in registers. What a rule with
// kSlotsPerRow needs of the whole row is apart.
//
// A dense optimizer with momentum goes on moving a row after its last gradient, until the momentum
// is gone: that movement is the gradient's *tail*, nine tenths of its whole effect where momentum
// is 0.9. A row that is not touched in every step (IsRare) gets the whole tail at its touch, and is
// then called *spent*. When it is touched again, what the tail had done beyond the steps that it
// missed is taken back, and its momentum is as in a dense optimizer. So each gradient's effect
// reaches the row once, before the row is read again. One that is not spent catches up when it is
// next touched. The equations are derived in docs/reference/rare_rows.md.

#include <cmath>
#include <cstdint>

#include "row_clock.h"
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
  // Of Adam: tails[t] [num_tails] is what a unit of movement in step t is followed by in the steps
  // after it, with the corrections of the bias of those steps; none: momentum is not spent.
  const float* tails = nullptr;
  int64_t num_tails = 0;
  // The learning rates that the tails of the step before and of this one will meet.
  double tail_rates[2] = {0, 0};
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

// base + base^2 + ... + base^n, given base^n.
SLIPSTREAM_INLINE double GeometricSum(double base, double power, uint32_t n) {
  return base == 1 ? static_cast<double>(n) : base * (1 - power) / (1 - base);
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

// What the weight decay of several steps leaves of a weight.
SLIPSTREAM_INLINE float KeptWeight(float decay, float learning_rate, uint32_t num_steps) {
  const double kept = 1 - static_cast<double>(decay) * learning_rate;
  return decay == 0 ? 1 : static_cast<float>(IntegerPower(kept, num_steps));
}

// The weight decay of so many steps, before the rule.
SLIPSTREAM_INLINE void DecayWeights(float* __restrict row, int64_t dim, float decay,
                                    float learning_rate, uint32_t num_steps) {
  if (decay == 0) return;
  if (num_steps == 1) {
    for (int64_t d = 0; d < dim; ++d) row[d] -= row[d] * decay * learning_rate;
  } else {
    Scale(row, dim, KeptWeight(decay, learning_rate, num_steps));
  }
}

// A step's weight decay and update of a row that was last touched as `touch` says.
//   decay  the weight decay of one step
template <typename Rule>
SLIPSTREAM_INLINE void UpdateRowInPasses(const Rule& rule, const Touch& touch, float decay,
                                         float learning_rate, const float* grad, int64_t dim,
                                         RowState r) {
  // In this order: what is taken back is as large as what was spent.
  if (touch.num_missed > 0 || touch.was_spent) rule.Adjust(r, dim, touch);
  DecayWeights(r.row, dim, decay, learning_rate, touch.num_batches + touch.num_missed);
  rule.Update(r, grad, dim, touch.num_batches, rule.can_spend() && IsRare(touch));
}
template <typename Rule>
SLIPSTREAM_INLINE void UpdateRow(const Rule& rule, const Touch& touch, float decay,
                                 float learning_rate, const float* grad, int64_t dim, RowState r) {
  UpdateRowInPasses(rule, touch, decay, learning_rate, grad, dim, r);
}

// Brings a row up to date that missed the last steps. The rule is that of the step to come.
template <typename Rule>
SLIPSTREAM_INLINE void SettleRow(const Rule& rule, const Touch& touch, float decay,
                                 float learning_rate, int64_t dim, RowState r) {
  rule.Adjust(r, dim, touch, !touch.was_spent);
  DecayWeights(r.row, dim, decay, learning_rate, touch.num_missed);
}

// A rule without momentum has nothing to spend, and nothing changes in a step that misses a row.
struct WithoutMomentum {
  SLIPSTREAM_INLINE bool can_spend() const { return false; }
  SLIPSTREAM_INLINE bool moves_when_missed() const { return false; }
  SLIPSTREAM_INLINE void Adjust(RowState, int64_t, const Touch&, bool = true) const {}
};

// A moment m that moves the row by `factor m` in each step and decays by `base`, as momentum of SGD
// and RMSprop does.
struct PlainMomentum {
  SLIPSTREAM_HOST_DEVICE PlainMomentum(double base, double factor)
      : base(base), tail(base < 1 ? factor * base / (1 - base) : 0), factor(factor) {}
  SLIPSTREAM_INLINE bool can_spend() const { return 0 < base && base < 1; }
  // What to move by, per unit of the moment of the last touch: catches up with missed steps, or
  // takes back what the tail did beyond them. Then the moment decays by `power`.
  SLIPSTREAM_INLINE float Adjustment(const Touch& touch, double* power) const {
    *power = touch.num_missed > 0 ? IntegerPower(base, touch.num_missed) : 1;
    if (touch.was_spent) return static_cast<float>(-tail * *power);
    return static_cast<float>(factor * GeometricSum(base, *power, touch.num_missed));
  }
  double base, tail, factor;
};

struct Sgd : WithoutMomentum {
  static constexpr int kNumHyperparameters = 0, kNumSlots = 0;
  static constexpr bool kSlotsPerRow = false, kHasMoments = false;
  static int NumSlots(const double*) { return 0; }
  SLIPSTREAM_HOST_DEVICE explicit Sgd(const StepSettings& s) : learning_rate(s.learning_rate) {}
  SLIPSTREAM_INLINE void Update(RowState r, const float* __restrict grad, int64_t dim, uint32_t,
                                bool) const {
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
        nesterov(s.hyperparameters[1] != 0),
        momentum(s.hyperparameters[0], nesterov ? s.hyperparameters[0] : 1) {}
  SLIPSTREAM_INLINE bool can_spend() const { return momentum.can_spend(); }
  SLIPSTREAM_INLINE bool moves_when_missed() const { return true; }
  SLIPSTREAM_INLINE void Update(RowState r, const float* __restrict grad, int64_t dim, uint32_t k,
                                bool spends) const {
    float* __restrict row = r.row;
    float* __restrict m = r.slots[0];
    const float mu = static_cast<float>(momentum.base);
    if (k == 1) {
      for (int64_t d = 0; d < dim; ++d) {
        m[d] = m[d] * mu - grad[d] * learning_rate;
        row[d] += nesterov ? m[d] * mu - grad[d] * learning_rate : m[d];
      }
    } else {
      const MomentumSteps steps(momentum.base, k);
      const float rate = learning_rate / k;
      for (int64_t d = 0; d < dim; ++d) {
        const float i = -(grad[d] * rate);
        const float sum = steps.from_m * m[d] + steps.from_i * i;
        m[d] = steps.power * m[d] + steps.held * i;
        row[d] += nesterov ? sum * mu - grad[d] * learning_rate : sum;
      }
    }
    if (spends) {
      const float tail = static_cast<float>(momentum.tail);
      for (int64_t d = 0; d < dim; ++d) row[d] += m[d] * tail;
    }
  }
  SLIPSTREAM_INLINE void Adjust(RowState r, int64_t dim, const Touch& touch,
                                bool moves = true) const {
    float* __restrict row = r.row;
    float* __restrict m = r.slots[0];
    double power;
    const float adjustment = momentum.Adjustment(touch, &power), moved = moves ? adjustment : 0;
    const float decay = static_cast<float>(power);
    for (int64_t d = 0; d < dim; ++d) {
      row[d] += m[d] * moved;
      m[d] *= decay;
    }
  }
  float learning_rate;
  bool nesterov;
  PlainMomentum momentum;
};

struct Adagrad : WithoutMomentum {
  static constexpr int kNumHyperparameters = 1, kNumSlots = 1;
  static constexpr bool kSlotsPerRow = false, kHasMoments = false;
  static int NumSlots(const double*) { return 1; }
  SLIPSTREAM_HOST_DEVICE explicit Adagrad(const StepSettings& s)
      : learning_rate(s.learning_rate), epsilon(s.hyperparameters[0]) {}
  SLIPSTREAM_INLINE void Update(RowState r, const float* __restrict grad, int64_t dim, uint32_t,
                                bool) const {
    float* __restrict row = r.row;
    float* __restrict accumulator = r.slots[0];
    for (int64_t d = 0; d < dim; ++d) {
      accumulator[d] += grad[d] * grad[d];
      row[d] -= learning_rate * grad[d] / std::sqrt(accumulator[d] + epsilon);
    }
  }
  float learning_rate, epsilon;
};

struct RowWiseAdagrad : WithoutMomentum {
  static constexpr int kNumHyperparameters = 1, kNumSlots = 1;
  static constexpr bool kSlotsPerRow = true, kHasMoments = false;
  static int NumSlots(const double*) { return 1; }
  SLIPSTREAM_HOST_DEVICE explicit RowWiseAdagrad(const StepSettings& s)
      : learning_rate(s.learning_rate), epsilon(s.hyperparameters[0]) {}
  SLIPSTREAM_INLINE void Update(RowState r, const float* __restrict grad, int64_t dim, uint32_t,
                                bool) const {
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
        amsgrad(s.hyperparameters[3] != 0),
        epsilon(s.hyperparameters[2]),
        // Of v's root in one step; AMSGrad divides by one that does not decay.
        root_decay(amsgrad ? 1 : std::sqrt(beta_2)),
        learning_rate(s.learning_rate),
        tails(s.tails),
        num_tails(s.num_tails),
        step(s.step) {
    const double t = static_cast<double>(s.step);
    const double correction = std::sqrt(1 - std::pow(beta_2, t)) / (1 - std::pow(beta_1, t));
    alpha = s.learning_rate * correction;
    unit = correction;
    if (!can_spend()) return;
    const double r = beta_1 / root_decay;
    last_tail = correction * r / (1 - r);
    ratio = static_cast<float>(beta_1 / (1 - beta_1) / (r / (1 - r)));
    const double after = s.tail_rates[1] * Tail(step);
    spent = static_cast<float>(ratio * after);
    spent_ratio = static_cast<float>((alpha + ratio * after) / (alpha + after));
    taken_back = static_cast<float>(-ratio * s.tail_rates[0] * Tail(step - 1));
  }
  SLIPSTREAM_INLINE bool can_spend() const { return num_tails > 0; }
  SLIPSTREAM_INLINE bool moves_when_missed() const { return beta_1 > 0; }

  // row -= rate m / (ratio root + epsilon), root being that of v, or of AMSGrad's largest: the sum
  // of several steps, in which m / root changes by a known factor each. `ratio` makes it exact
  // where epsilon is far below the root or far above it; in between it is off by less than a
  // thousandth (with Keras's betas).
  struct Movement {
    float rate = 0, ratio = 1;
  };
  // What so many steps without a gradient make of m, of v and of the root.
  struct Decay {
    float m, v, root;
  };
  SLIPSTREAM_INLINE Decay DecayOf(uint32_t num_missed) const {
    if (num_missed < num_decays) return decays[num_missed];
    const double power_2 = IntegerPower(beta_2, num_missed);
    return {static_cast<float>(IntegerPower(beta_1, num_missed)), static_cast<float>(power_2),
            amsgrad ? 1 : static_cast<float>(std::sqrt(power_2))};
  }
  // How a row gets to the step before this one, from its m and v at its last touch, which then
  // decay as `decay` says.
  SLIPSTREAM_INLINE Movement Adjustment(const Touch& touch, Decay* decay) const {
    *decay = DecayOf(touch.num_missed);
    if (touch.is_first || beta_1 == 0) return {};
    if (touch.was_spent) {
      // Of a tail that is gone there is nothing to take back.
      if (decay->m < 1e-7f) return {};
      return {taken_back * decay->m, ratio * decay->root};
    }
    const double power_1 = IntegerPower(beta_1, touch.num_missed);
    if (power_1 == 0) return CatchUp(touch.num_missed, 0, 0);
    const double power_2 = IntegerPower(beta_2, touch.num_missed);
    return CatchUp(touch.num_missed, power_1, power_1 / (amsgrad ? 1 : std::sqrt(power_2)));
  }
  // What the missed steps would have moved. power_1: beta_1 to their number; power_r: the same of
  // m / root.
  SLIPSTREAM_INLINE Movement CatchUp(uint32_t num_missed, double power_1, double power_r) const {
    if (num_missed == 0) return {};
    const double r = beta_1 / root_decay;
    const double sum_1 = GeometricSum(beta_1, power_1, num_missed);
    double sum_r = GeometricSum(r, power_r, num_missed), steps;
    if (can_spend()) {
      steps = Tail(step - 1 - num_missed) - power_r * Tail(step - 1);
    } else {
      // Where v decays as fast as m^2 does, the sum may grow beyond all bounds.
      if (!(0 < sum_r && sum_r < 2 * sum_1)) sum_r = 2 * sum_1;
      steps = unit * sum_r;
    }
    const double ratio = sum_1 / sum_r;
    return {static_cast<float>(learning_rate * steps * ratio), static_cast<float>(ratio)};
  }
  // Of a unit of movement in step t, see StepSettings.
  SLIPSTREAM_INLINE double Tail(int64_t t) const {
    return t < num_tails ? (t < 0 ? 0 : tails[t]) : last_tail;
  }
  template <bool kAmsgrad>
  SLIPSTREAM_INLINE void Move(Movement by, RowState r, int64_t dim) const {
    if (by.rate == 0) return;
    float* __restrict row = r.row;
    const float* __restrict m = r.slots[0];
    const float* __restrict v = r.slots[kAmsgrad ? 2 : 1];
    for (int64_t d = 0; d < dim; ++d) {
      row[d] -= m[d] * by.rate / (std::sqrt(v[d]) * by.ratio + epsilon);
    }
  }

  // Which slot is which is known to the compiler in the functions below, without which a GPU holds
  // none in registers.
  SLIPSTREAM_INLINE void Adjust(RowState r, int64_t dim, const Touch& touch,
                                bool moves = true) const {
    Decay decay;
    const Movement by = Adjustment(touch, &decay);
    if (moves && amsgrad) Move<true>(by, r, dim);
    if (moves && !amsgrad) Move<false>(by, r, dim);
    Scale(r.slots[0], dim, decay.m);
    Scale(r.slots[1], dim, decay.v);
  }
  SLIPSTREAM_INLINE void Update(RowState r, const float* __restrict grad, int64_t dim, uint32_t k,
                                bool spends) const {
    if (amsgrad) {
      UpdateAs<true>(r, grad, dim, k, spends);
    } else {
      UpdateAs<false>(r, grad, dim, k, spends);
    }
  }
  template <bool kAmsgrad>
  SLIPSTREAM_INLINE void UpdateAs(RowState r, const float* __restrict grad, int64_t dim, uint32_t k,
                                  bool spends) const {
    float* __restrict row = r.row;
    float* __restrict m = r.slots[0];
    float* __restrict v = r.slots[1];
    float* __restrict v_max = r.slots[2];  // with amsgrad only
    const double kept_1 = IntegerPower(beta_1, k), kept_2 = IntegerPower(beta_2, k);
    const float new_1 = static_cast<float>(1 - kept_1), new_2 = static_cast<float>(1 - kept_2);
    const float tail = spends ? spent : 0;
    if (k == 1) {
      const float rate = alpha + tail, root_ratio = spends ? spent_ratio : 1;
      for (int64_t d = 0; d < dim; ++d) {
        m[d] += (grad[d] - m[d]) * new_1;
        v[d] += (grad[d] * grad[d] - v[d]) * new_2;
        if (kAmsgrad) v_max[d] = v_max[d] > v[d] ? v_max[d] : v[d];
        row[d] -= m[d] * rate / (std::sqrt(kAmsgrad ? v_max[d] : v[d]) * root_ratio + epsilon);
      }
      return;
    }
    // k steps with the mean gradient: the sum of their values of m, over the root of the last v.
    const float from_m = static_cast<float>(beta_1 * (1 - kept_1) / (1 - beta_1));
    const float from_mean = k - from_m, share = 1.0f / k;
    for (int64_t d = 0; d < dim; ++d) {
      const float mean = grad[d] * share, sum = from_m * m[d] + from_mean * mean;
      m[d] += (mean - m[d]) * new_1;
      v[d] += (grad[d] * mean - v[d]) * new_2;
      if (kAmsgrad) v_max[d] = v_max[d] > v[d] ? v_max[d] : v[d];
      const float root = std::sqrt(kAmsgrad ? v_max[d] : v[d]);
      row[d] -= sum * alpha / (root + epsilon) + m[d] * tail / (root * ratio + epsilon);
    }
  }
  // Adjust, the weight decay and Update with one gradient, of a row that missed steps: the same
  // operations in one pass; docs/evidence/parity.md has what that saves.
  //   kept  of each weight, by the weight decay
  SLIPSTREAM_INLINE void AdjustAndUpdate(RowState r, const float* __restrict grad, int64_t dim,
                                         const Touch& touch, float kept) const {
    Decay decay;
    const Movement by = Adjustment(touch, &decay);
    if (by.rate != 0) {
      AdjustAndUpdateAs<true>(r, grad, dim, by, decay, kept);
    } else {
      AdjustAndUpdateAs<false>(r, grad, dim, by, decay, kept);
    }
  }
  template <bool kMoves>
  SLIPSTREAM_INLINE void AdjustAndUpdateAs(RowState r, const float* grad, int64_t dim, Movement by,
                                           Decay decay, float kept) const {
    if (amsgrad) {
      AdjustAndUpdateAs<kMoves, true>(r, grad, dim, by, decay, kept);
    } else {
      AdjustAndUpdateAs<kMoves, false>(r, grad, dim, by, decay, kept);
    }
  }
  template <bool kMoves, bool kAmsgrad>
  SLIPSTREAM_INLINE void AdjustAndUpdateAs(RowState r, const float* __restrict grad, int64_t dim,
                                           Movement by, Decay decay, float kept) const {
    float* __restrict row = r.row;
    float* __restrict m = r.slots[0];
    float* __restrict v = r.slots[1];
    float* __restrict v_max = r.slots[2];  // with amsgrad only
    const float new_1 = static_cast<float>(1 - beta_1), new_2 = static_cast<float>(1 - beta_2);
    const bool spends = can_spend();
    const float rate = alpha + (spends ? spent : 0), root_ratio = spends ? spent_ratio : 1;
    for (int64_t d = 0; d < dim; ++d) {
      float w = row[d];
      if (kMoves) {
        w -= m[d] * by.rate / (std::sqrt(kAmsgrad ? v_max[d] : v[d]) * by.ratio + epsilon);
      }
      w *= kept;
      const float m_before = m[d] * decay.m, v_before = v[d] * decay.v;
      m[d] = m_before + (grad[d] - m_before) * new_1;
      v[d] = v_before + (grad[d] * grad[d] - v_before) * new_2;
      if (kAmsgrad) v_max[d] = v_max[d] > v[d] ? v_max[d] : v[d];
      row[d] = w - m[d] * rate / (std::sqrt(kAmsgrad ? v_max[d] : v[d]) * root_ratio + epsilon);
    }
  }
  double beta_1, beta_2;
  bool amsgrad;
  float epsilon;
  double root_decay, learning_rate;
  const float* tails;
  int64_t num_tails, step;
  double unit, last_tail = 0;
  float alpha, ratio = 1;
  float spent = 0, spent_ratio = 1, taken_back = 0;
  // DecayOf of 0, 1, ..., where somebody has them ready.
  const Decay* decays = nullptr;
  uint32_t num_decays = 0;
};

// Most rows missed steps and come with one gradient.
template <>
SLIPSTREAM_INLINE void UpdateRow(const Adam& rule, const Touch& touch, float decay,
                                 float learning_rate, const float* grad, int64_t dim, RowState r) {
  if (touch.num_missed > 0 && touch.num_batches == 1) {
    rule.AdjustAndUpdate(r, grad, dim, touch,
                         KeptWeight(decay, learning_rate, 1 + touch.num_missed));
  } else {
    UpdateRowInPasses(rule, touch, decay, learning_rate, grad, dim, r);
  }
}

struct RmsProp {
  static constexpr int kNumHyperparameters = 4, kNumSlots = 3;
  static constexpr bool kSlotsPerRow = false, kHasMoments = true;
  static int NumSlots(const double* h) { return 1 + (h[1] > 0) + (h[3] != 0); }
  SLIPSTREAM_HOST_DEVICE explicit RmsProp(const StepSettings& s)
      : learning_rate(s.learning_rate),
        rho(s.hyperparameters[0]),
        momentum(s.hyperparameters[1], 1),
        epsilon(s.hyperparameters[2]),
        centered(s.hyperparameters[3] != 0) {}
  SLIPSTREAM_INLINE bool can_spend() const { return momentum.can_spend(); }
  SLIPSTREAM_INLINE bool moves_when_missed() const { return momentum.base > 0; }
  SLIPSTREAM_INLINE void Update(RowState r, const float* __restrict grad, int64_t dim, uint32_t k,
                                bool spends) const {
    if (centered) {
      UpdateAs<true>(r, grad, dim, k, spends);
    } else {
      UpdateAs<false>(r, grad, dim, k, spends);
    }
  }
  template <bool kCentered>
  SLIPSTREAM_INLINE void UpdateAs(RowState r, const float* __restrict grad, int64_t dim, uint32_t k,
                                  bool spends) const {
    float* __restrict row = r.row;
    float* __restrict velocity = r.slots[0];
    float* __restrict mean = r.slots[1];                    // centered only
    float* __restrict buffer = r.slots[kCentered ? 2 : 1];  // with momentum only
    const double kept = IntegerPower(rho, k);
    const float keep = static_cast<float>(kept), take = static_cast<float>(1 - kept);
    const float mu = static_cast<float>(momentum.base), share = 1.0f / k, batches = k;
    const float tail = spends ? static_cast<float>(momentum.tail) : 0;
    // Of a single step it is not used, and most are single.
    const MomentumSteps steps = k > 1 ? MomentumSteps(momentum.base, k) : MomentumSteps();
    for (int64_t d = 0; d < dim; ++d) {
      velocity[d] = keep * velocity[d] + take * (grad[d] * grad[d] * share);
      float denominator = velocity[d] + epsilon;
      if (kCentered) {
        mean[d] = keep * mean[d] + take * (grad[d] * share);
        denominator = velocity[d] - mean[d] * mean[d] + epsilon;
      }
      const float increment = learning_rate * (grad[d] * share) / std::sqrt(denominator);
      if (mu == 0) {
        row[d] -= increment * batches;
      } else if (k == 1) {
        buffer[d] = mu * buffer[d] + increment;
        row[d] -= buffer[d] + buffer[d] * tail;
      } else {
        row[d] -= steps.from_m * buffer[d] + steps.from_i * increment;
        buffer[d] = steps.power * buffer[d] + steps.held * increment;
        row[d] -= buffer[d] * tail;
      }
    }
  }
  SLIPSTREAM_INLINE void Adjust(RowState r, int64_t dim, const Touch& touch,
                                bool moves = true) const {
    if (centered) {
      AdjustAs<true>(r, dim, touch, moves);
    } else {
      AdjustAs<false>(r, dim, touch, moves);
    }
  }
  template <bool kCentered>
  SLIPSTREAM_INLINE void AdjustAs(RowState r, int64_t dim, const Touch& touch, bool moves) const {
    float* __restrict row = r.row;
    float* __restrict buffer = r.slots[kCentered ? 2 : 1];
    const float decay = static_cast<float>(IntegerPower(rho, touch.num_missed));
    Scale(r.slots[0], dim, decay);
    if (kCentered) Scale(r.slots[1], dim, decay);
    if (momentum.base == 0) return;
    double power;
    const float adjustment = momentum.Adjustment(touch, &power), moved = moves ? adjustment : 0;
    const float buffer_decay = static_cast<float>(power);
    for (int64_t d = 0; d < dim; ++d) {
      row[d] -= buffer[d] * moved;
      buffer[d] *= buffer_decay;
    }
  }
  float learning_rate;
  double rho;
  PlainMomentum momentum;
  float epsilon;
  bool centered;
};

struct Ftrl : WithoutMomentum {
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
  SLIPSTREAM_INLINE void Update(RowState r, const float* __restrict grad, int64_t dim, uint32_t k,
                                bool) const {
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
