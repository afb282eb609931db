// Row updates on a GPU: update_rows.h in CUDA, with the rules of update_rules.h and the decisions
// of staleness.h.
//
// A group of lanes has a row; each lane holds its own elements of the row, its slots and its
// gradient in registers and gives them to the rule as if they were a row. Rows are distinct, so
// nothing is written twice. Rows that are not popular, and popular ones with their entries in the
// pool, are updated by kernels of their own: what only the latter need would cost the former
// registers. Entries have an odd number of floats, so the latter read single ones.
//
// Every kernel first looks whether a lookup of the step was bad, in any table, and then does
// nothing.
#include <new>
#include <type_traits>

#include "gpu_rows.cuh"

namespace slipstream::gpu {
namespace {

template <typename Rule>
__device__ const Rule& RuleOf(const TableState& state) {
  static_assert(sizeof(Rule) <= sizeof(state.rule));
  return *reinterpret_cast<const Rule*>(state.rule);
}

// Begins a table's step; or, between steps, what brings it up to date (`settles`), after the last
// one.
template <typename Rule>
__global__ void BeginTable(View view, StepInputs inputs, const float* grad_scale,
                           float weight_decay, bool settles, bool wake) {
  TableState& state = *view.state;
  StepSettings settings;
  settings.step = *inputs.step > 1 ? *inputs.step : 1;
  settings.learning_rate = *inputs.learning_rate;
  settings.weight_decay = weight_decay;
  settings.clip_value = inputs.clip_value;
  settings.grad_scale = grad_scale == nullptr ? 1 : *grad_scale;
  settings.hyperparameters = inputs.hyperparameters;
  settings.tails = inputs.tails;
  settings.num_tails = inputs.num_tails;
  for (int i = 0; i < 2; ++i) settings.tail_rates[i] = inputs.tail_rates[i];
  state.settings = settings;
  new (state.rule) Rule(settings);
  state.settings.hyperparameters = nullptr;  // this kernel's
  state.num_found = state.num_idle = 0;
  state.sleeping_change = 0;
  for (int i = 0; i < 4; ++i) state.num_stale[i] = 0;
  state.is_refresh = false;
  if (view.pool.row_states == nullptr) return;
  TakePolicy(view);
  if (settles) {
    state.is_refresh = true;
    if (wake) state.next_policy.woken_at = settings.step;
  } else {
    state.is_refresh =
        BeginStep(view.pool.policy, settings.step, settings.learning_rate, &state.next_policy);
  }
}

// This lane's elements from d on of what a row is updated with: the gradient of the batch, scaled
// and clipped; what is held of it; or both.
//   grad null if there is none
//   held null if there is nothing
template <int kVector>
__device__ void LoadGrad(const float* grad, const float* held, const StepSettings& settings,
                         int64_t d, float (&values)[kVector]) {
  if (grad != nullptr) {
    Load(grad + d, values);
    const float scale = static_cast<float>(settings.grad_scale);
    const float limit = static_cast<float>(settings.clip_value);
    if (scale != 1 || limit != 0) {
      for (int j = 0; j < kVector; ++j) values[j] = ScaledAndClipped(values[j], scale, limit);
    }
    if (held == nullptr) return;
  }
  for (int j = 0; j < kVector; ++j) {
    values[j] = grad == nullptr ? held[d + j] : held[d + j] + values[j];
  }
}

// Sets the row's bit. Rows of other groups share the word; most have been changed before.
__device__ void MarkChanged(uint32_t* changed_rows, int64_t id) {
  uint32_t* word = changed_rows + id / 32;
  const uint32_t bit = uint32_t{1} << (id % 32);
  if ((*static_cast<volatile uint32_t*>(word) & bit) == 0) atomicOr(word, bit);
}

__global__ void __launch_bounds__(kThreads)
    MarkWords(const uint32_t* words, int64_t num_words, bool clear, uint32_t* changed_rows) {
  const int64_t num_threads = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < num_words;
       i += num_threads) {
    changed_rows[i] = clear ? changed_rows[i] & ~words[i] : changed_rows[i] | words[i];
  }
}

// This lane's elements from d on of a row of the table.
template <int kVector>
__device__ void LoadRow(const Table& table, int64_t id, int64_t d, float (&values)[kVector]) {
  if (table.bfloat16_table == nullptr) {
    Load(table.table + id * table.dim + d, values);
    return;
  }
  const uint16_t* from = table.bfloat16_table + id * table.dim + d;
  if constexpr (kVector == 4) {
    const uint2 loaded = *reinterpret_cast<const uint2*>(from);
    values[0] = FromBfloat16(loaded.x & 0xffffu), values[1] = FromBfloat16(loaded.x >> 16);
    values[2] = FromBfloat16(loaded.y & 0xffffu), values[3] = FromBfloat16(loaded.y >> 16);
  } else {
    for (int j = 0; j < kVector; ++j) values[j] = FromBfloat16(from[j]);
  }
}

// Stores them; `values` become what the table has then.
//   key RoundingKey of the row, where the table is bfloat16
template <int kVector>
__device__ void StoreRow(const Table& table, int64_t id, int64_t d, uint32_t key,
                         float (&values)[kVector]) {
  if (table.bfloat16_table == nullptr) {
    Store(table.table + id * table.dim + d, values);
    return;
  }
  uint32_t rounded[kVector];
  for (int j = 0; j < kVector; ++j) {
    const uint32_t random_bits = RoundingBits(key, static_cast<uint32_t>(d) + j);
    rounded[j] = ToBfloat16(values[j], random_bits);
    values[j] = FromBfloat16(static_cast<uint16_t>(rounded[j]));
  }
  uint16_t* to = table.bfloat16_table + id * table.dim + d;
  if constexpr (kVector == 4) {
    const uint2 packed = {rounded[0] | rounded[1] << 16, rounded[2] | rounded[3] << 16};
    *reinterpret_cast<uint2*>(to) = packed;
  } else {
    for (int j = 0; j < kVector; ++j) to[j] = static_cast<uint16_t>(rounded[j]);
  }
}

// What a popular row brings to its update, and takes from it.
//   held     [dim], set to 0; null if nothing is held
//   snapshot [dim]
//   moved    what Measure needs: the squared movement or the change of the loss, in all lanes
struct PopularRow {
  DriftMetric metric;
  float* held;
  const float* snapshot;
  float moved;
};

// Updates a row with a gradient [dim] of this batch, which may be null for a popular one. All lanes
// of the group call it.
//   k       the batches that the gradient, with what is held, is the sum of
//   popular null for a row that is not
template <typename Rule, typename Group>
__device__ void UpdateRow(const Group& group, const View& view, const Rule& rule, int64_t id,
                          const float* grad, uint32_t k, PopularRow* popular) {
  constexpr int kVector = Group::kVector;
  const Table& table = view.table;
  const StepSettings& settings = view.state->settings;
  const int64_t dim = table.dim;
  const float decay = static_cast<float>(settings.weight_decay);
  const float learning_rate = static_cast<float>(settings.learning_rate);
  const float* held = popular == nullptr ? nullptr : popular->held;

  Touch touch;
  touch.num_batches = k;
  if (table.last_steps != nullptr) {
    touch = TouchAt(static_cast<uint32_t>(table.last_steps[id]), settings.step, k);
    group.Sync();  // all lanes have read it
    const bool is_spent = rule.can_spend() && IsRare(touch);
    if (group.lane == 0)
      table.last_steps[id] = static_cast<int32_t>(ClockOf(settings.step, is_spent));
  }
  if (group.lane == 0) MarkChanged(table.changed_rows, id);

  float accumulator = 0;  // of a rule with a slot per row
  if constexpr (Rule::kSlotsPerRow) {
    RowSum<Group> squares;
    group.ForEach(dim, [&](int64_t d, bool is_inside) {
      float values[kVector] = {};
      if (is_inside) LoadGrad(grad, held, settings, d, values);
      for (int j = 0; j < kVector; ++j) values[j] *= values[j];
      squares.Add(group, values);
    });
    accumulator = rule.Accumulated(table.slots[0][id], squares.Total(group), dim);
    group.Sync();  // all lanes have read it
    if (group.lane == 0) table.slots[0][id] = accumulator;
  }

  const uint32_t key = RoundingKey(table.rounding_seed, settings.step, id);
  RowSum<Group> moved;
  group.ForEach(dim, [&](int64_t d, bool is_inside) {
    float terms[kVector] = {};
    if (is_inside) {
      float row[kVector], used[kVector], before[kVector];
      LoadRow(table, id, d, row);
      LoadGrad(grad, held, settings, d, used);
      if (popular != nullptr) {
        for (int j = 0; j < kVector; ++j) {
          before[j] = row[j];
          if (held != nullptr) popular->held[d + j] = 0;
        }
      }
      if constexpr (Rule::kSlotsPerRow) {
        DecayWeights(row, kVector, decay, learning_rate, k + touch.num_missed);
        rule.UpdatePart(row, used, kVector, accumulator);
      } else {
        constexpr int kNumSlots = Rule::kNumSlots;
        float slots[kNumSlots == 0 ? 1 : kNumSlots][kVector];
        RowState state = {row, {}};
#pragma unroll
        for (int s = 0; s < kNumSlots; ++s) {
          state.slots[s] = slots[s];
          if (s < table.num_slots) Load(table.slots[s] + id * dim + d, slots[s]);
        }
        slipstream::UpdateRow(rule, touch, decay, learning_rate, used, kVector, state);
#pragma unroll
        for (int s = 0; s < kNumSlots; ++s) {
          if (s < table.num_slots) Store(table.slots[s] + id * dim + d, slots[s]);
        }
      }
      StoreRow(table, id, d, key, row);
      if (popular != nullptr) {
        for (int j = 0; j < kVector; ++j) {
          const float step = row[j] - before[j];
          if (popular->metric == DriftMetric::kCoherence) terms[j] = step * step;
          if (popular->metric == DriftMetric::kLoss) {
            terms[j] = used[j] * (before[j] - popular->snapshot[d + j]);
          }
        }
      }
    }
    if (popular != nullptr) moved.Add(group, terms);
  });
  if (popular != nullptr) popular->moved = moved.Total(group);
}

// The gradient of a row that was found, summed.
__device__ const float* GradOf(const View& view, const FoundRow& row) {
  return row.sum == kOwnGrad ? view.grads + row.first_lookup * view.table.dim
                             : view.sums + row.sum * view.table.dim;
}

// Updates the rows that are not popular, and counts that. Marks those that become popular.
template <typename Rule, typename Group>
__global__ void __launch_bounds__(kThreads) UpdateOthers(View view) {
  if (IsFaulty(*view.fault)) return;
  const Group group = Group::Own();
  const TableState& state = *view.state;
  const Rule& rule = RuleOf<Rule>(state);
  for (int64_t r = Group::Index(); r < state.num_found; r += Group::Number()) {
    const FoundRow row = view.rows[r];
    if (row.sum == kNotRead || row.state < 0) continue;
    UpdateRow(group, view, rule, row.id, GradOf(view, row), 1, nullptr);
    if (view.pool.row_states == nullptr || group.lane != 0) continue;
    const int32_t num_updates = OneMore(row.state);
    view.pool.row_states[row.id] = num_updates;
    if (HasEnough(view.pool.policy, num_updates, state.settings.step)) {
      view.marks[row.first_lookup] = 1;
    }
  }
}

// A popular row and its snapshot spread over a group, for Judge. Each lane reads what it wrote.
template <typename Group>
class RowPair {
 public:
  __device__ RowPair(const Group& group, const Table& table, int64_t id, float* snapshot)
      : group_(group), table_(table), id_(id), snapshot_(snapshot) {}
  __device__ float SquaredDistance() const {
    return Sum([&](int64_t d) {
      const float net = Element(d) - snapshot_[d];
      return net * net;
    });
  }
  __device__ float AbsoluteDistance() const {
    return Sum([&](int64_t d) { return fabsf(Element(d) - snapshot_[d]); });
  }
  __device__ float SnapshotNorm() const {
    return Sum([&](int64_t d) { return snapshot_[d] * snapshot_[d]; });
  }
  __device__ int64_t dim() const { return table_.dim; }
  __device__ void TakeSnapshot() const {
    group_.ForEach(dim(), [&](int64_t d, bool is_inside) {
      for (int j = 0; j < Group::kVector && is_inside; ++j) snapshot_[d + j] = Element(d + j);
    });
  }

 private:
  __device__ float Element(int64_t d) const {
    float element[1];
    LoadRow(table_, id_, d, element);
    return element[0];
  }
  template <typename Term>
  __device__ float Sum(Term term) const {
    RowSum<Group> sum;
    group_.ForEach(dim(), [&](int64_t d, bool is_inside) {
      float terms[Group::kVector] = {};
      for (int j = 0; j < Group::kVector && is_inside; ++j) terms[j] = term(d + j);
      sum.Add(group_, terms);
    });
    return sum.Total(group_);
  }

  Group group_;
  const Table& table_;
  int64_t id_;
  float* snapshot_;
};

// The pool as the CPU's functions know it.
struct EntryMemory {
  __device__ EntryMemory(const View& view, int64_t entry)
      : ints(view.pool.entries + entry),
        held(view.pool.floats + entry * (2 * view.table.dim + 1)),
        snapshot(held + view.table.dim),
        path(snapshot + view.table.dim) {}
  PoolEntry* ints;
  float *held, *snapshot, *path;
};

// Updates a popular row with a gradient [dim] of its batch, or null, and what is held of it.
template <typename Rule, typename Group>
__device__ void UpdatePopularRow(const Group& group, const View& view, const Rule& rule,
                                 int64_t index, const float* grad) {
  TableState& state = *view.state;
  const PolicySettings& policy = view.pool.policy;
  const EntryMemory memory(view, index);
  // Every lane works on its own copy, to the same result.
  PoolEntry entry = *memory.ints;
  float path = *memory.path;
  const bool has_held = entry.held_steps != 0;
  const uint32_t k = static_cast<uint32_t>(entry.held_steps) + (grad != nullptr);
  PopularRow popular = {policy.metric(), has_held ? memory.held : nullptr, memory.snapshot, 0};
  UpdateRow(group, view, rule, entry.row, grad, k, &popular);

  ++entry.window_updates;
  if (policy.metric() == DriftMetric::kCoherence) path += popular.moved;
  if (policy.metric() == DriftMetric::kLoss) path -= popular.moved;
  int64_t sleeping_change = 0;
  if (grad != nullptr) {
    const RowPair<Group> rows(group, view.table, entry.row, memory.snapshot);
    sleeping_change =
        AfterUpdate(policy, state.next_policy, index, state.settings.step, rows, &entry, &path);
  } else {
    AfterFlush(state.settings.step, &entry);
  }
  group.Sync();  // all lanes have read the entry
  if (group.lane != 0) return;
  *memory.ints = entry;
  *memory.path = path;
  if (sleeping_change != 0) {
    atomicAdd(&state.sleeping_change, static_cast<unsigned long long>(sleeping_change));
  }
}

// Adds the gradient [dim] of a row that is asleep to what is held of it.
template <typename Group>
__device__ void Hold(const Group& group, const View& view, int64_t index, const float* grad) {
  const EntryMemory memory(view, index);
  group.ForEach(view.table.dim, [&](int64_t d, bool is_inside) {
    if (!is_inside) return;
    float used[Group::kVector];
    LoadGrad(grad, nullptr, view.state->settings, d, used);
    for (int j = 0; j < Group::kVector; ++j) memory.held[d + j] += used[j];
  });
  if (group.lane == 0) {
    ++memory.ints->held_steps;
    ++memory.ints->num_updates;
  }
}

// Updates the popular rows that are awake and holds the gradients of those that are deferred.
template <typename Rule>
__global__ void __launch_bounds__(kThreads) UpdatePopular(View view) {
  if (IsFaulty(*view.fault)) return;
  const auto group = Group<1, 32>::Own();
  const TableState& state = *view.state;
  const Rule& rule = RuleOf<Rule>(state);
  const int64_t woken_at = static_cast<int64_t>(state.next_policy.woken_at);
  for (int64_t r = group.Index(); r < state.num_found; r += group.Number()) {
    const FoundRow row = view.rows[r];
    if (row.sum == kNotRead || row.state >= 0) continue;
    const int64_t index = -1 - static_cast<int64_t>(row.state);
    const RowKind kind = KindOf(view.pool.entries[index], state.settings.step, woken_at);
    group.Sync();  // all lanes have read the entry
    if (kind == RowKind::kDeferred) {
      Hold(group, view, index, GradOf(view, row));
    } else {
      UpdatePopularRow(group, view, rule, index, GradOf(view, row));
    }
  }
}

// How many of the marked rows can have no new entry.
__device__ int64_t NumWanted(const View& view) {
  const int64_t last = view.num_lookups - 1;
  const int64_t num_entries = static_cast<int64_t>(view.state->next_policy.num_entries);
  return view.places[last] + view.marks[last] - (view.pool.capacity - num_entries);
}

// Where rows want entries that there are none for, looks for idle ones, as EvictIdle does. One
// warp.
__global__ void FindIdle(View view) {
  TableState& state = *view.state;
  if (IsFaulty(*view.fault) || NumWanted(view) <= 0 || state.next_policy.num_entries == 0) return;
  const int lane = threadIdx.x;
  const int64_t num_entries = static_cast<int64_t>(state.next_policy.num_entries);
  const int64_t hand = FirstIdle(state.next_policy), num_wanted = NumWanted(view);
  const int64_t window = kIdleWindow < num_entries ? kIdleWindow : num_entries;
  int64_t num_idle = 0;
  for (int64_t first = 0; first < window; first += 32) {
    const int64_t index = (hand + first + lane) % num_entries;
    const bool is_idle =
        first + lane < window &&
        IsIdle(view.pool.entries[index], state.settings.step, view.table.holds_elsewhere) &&
        IsWhole(view.pool, index, view.table.num_rows);
    const unsigned found = __ballot_sync(~0u, is_idle);
    const int64_t place = num_idle + __popc(found & ((1u << lane) - 1));
    if (is_idle && place < num_wanted) state.idle[place] = static_cast<int32_t>(index);
    num_idle += __popc(found);
  }
  if (lane != 0) return;
  state.num_idle = static_cast<int32_t>(num_idle < num_wanted ? num_idle : num_wanted);
  state.next_policy.hand = static_cast<double>((hand + kIdleWindow) % num_entries);
}

// Applies what is held of the rows that lose their entries.
template <typename Rule>
__global__ void __launch_bounds__(kThreads) EvictIdle(View view) {
  if (IsFaulty(*view.fault)) return;
  const auto group = Group<1, 32>::Own();
  TableState& state = *view.state;
  const Rule& rule = RuleOf<Rule>(state);
  for (int64_t i = group.Index(); i < state.num_idle; i += group.Number()) {
    const PoolEntry* entry = view.pool.entries + state.idle[i];
    if (entry->held_steps > 0) UpdatePopularRow(group, view, rule, state.idle[i], nullptr);
    group.Sync();
    if (group.lane != 0) continue;
    if (entry->wake_step > 0) atomicAdd(&state.sleeping_change, ~0ull);
    view.pool.row_states[entry->row] = StateOfEvicted(*entry);
  }
}

// Makes the marked rows popular, in order of first appearance while there are entries left.
__global__ void __launch_bounds__(kThreads) PromoteRows(View view) {
  if (IsFaulty(*view.fault)) return;
  const auto group = Group<1, 32>::Own();
  const TableState& state = *view.state;
  const int64_t dim = view.table.dim;
  const int64_t num_entries = static_cast<int64_t>(state.next_policy.num_entries);
  for (int64_t r = group.Index(); r < state.num_found; r += group.Number()) {
    const FoundRow row = view.rows[r];
    if (row.sum == kNotRead || row.state < 0 || view.marks[row.first_lookup] == 0) continue;
    int64_t index = num_entries + view.places[row.first_lookup];
    if (index >= view.pool.capacity) {
      index -= view.pool.capacity;
      if (index >= state.num_idle) continue;
      index = state.idle[index];
    }
    const EntryMemory memory(view, index);
    group.ForEach(dim, [&](int64_t d, bool is_inside) {
      if (!is_inside) return;
      float element[1];
      LoadRow(view.table, row.id, d, element);
      memory.held[d] = 0;
      memory.snapshot[d] = element[0];
    });
    if (group.lane != 0) continue;
    *memory.path = 0;
    *memory.ints =
        NewEntry(view.pool.policy, row.id, view.pool.row_states[row.id], state.settings.step);
    view.pool.row_states[row.id] = static_cast<int32_t>(-1 - index);
  }
}

__global__ void CountPromoted(View view) {
  if (IsFaulty(*view.fault)) return;
  const int64_t last = view.num_lookups - 1;
  PolicyState& policy = view.state->next_policy;
  const double num_entries = policy.num_entries + view.places[last] + view.marks[last];
  const double capacity = static_cast<double>(view.pool.capacity);
  policy.num_entries = num_entries < capacity ? num_entries : capacity;
}

// In a refresh, or where a table is settled: applies all that is held, and wakes every row or lets
// it sleep on.
template <typename Rule>
__global__ void __launch_bounds__(kThreads) FlushHeld(View view, bool wake) {
  TableState& state = *view.state;
  if (IsFaulty(*view.fault) || !state.is_refresh) return;
  const auto group = Group<1, 32>::Own();
  const Rule& rule = RuleOf<Rule>(state);
  const int64_t num_entries = static_cast<int64_t>(state.next_policy.num_entries);
  for (int64_t e = group.Index(); e < num_entries; e += group.Number()) {
    PoolEntry* entry = view.pool.entries + e;
    const bool has_held = entry->held_steps > 0;
    if (wake && entry->wake_step > 0) {
      group.Sync();  // all lanes have read it
      if (group.lane == 0) {
        entry->wake_step = 0;
        atomicAdd(&state.sleeping_change, ~0ull);
      }
    }
    group.Sync();
    if (has_held) UpdatePopularRow(group, view, rule, e, nullptr);
  }
}

// Brings rows up to date that missed the last steps, as Settle of update_rows.cc does. The rule is
// that of the step to come.
template <typename Rule, typename Group>
__global__ void __launch_bounds__(kThreads) SettleOthers(View view, StepInputs inputs) {
  if (IsFaulty(*view.fault)) return;
  const Group group = Group::Own();
  const Table& table = view.table;
  StepSettings next = view.state->settings;
  ++next.step;
  next.hyperparameters = inputs.hyperparameters;
  const Rule rule(next);
  const float decay = static_cast<float>(next.weight_decay);
  if (!rule.moves_when_missed() && decay == 0) return;
  for (int64_t id = Group::Index(); id < table.num_rows; id += Group::Number()) {
    const uint32_t clock = static_cast<uint32_t>(table.last_steps[id]);
    if (clock == 0 || (decay == 0 && (clock & kSpentBit) != 0)) continue;
    const Touch touch = TouchAt(clock, next.step, 1);
    if (touch.num_missed == 0) continue;
    group.Sync();  // all lanes have read it
    if (group.lane == 0) {
      table.last_steps[id] = static_cast<int32_t>(ClockOf(next.step - 1, touch.was_spent));
      MarkChanged(table.changed_rows, id);
    }
    const uint32_t key = RoundingKey(table.rounding_seed ^ kSettleSeed, next.step, id);
    constexpr int kVector = Group::kVector, kNumSlots = Rule::kNumSlots;
    group.ForEach(table.dim, [&](int64_t d, bool is_inside) {
      if (!is_inside) return;
      float row[kVector], slots[kNumSlots == 0 ? 1 : kNumSlots][kVector];
      LoadRow(table, id, d, row);
      RowState state = {row, {}};
      if constexpr (!Rule::kSlotsPerRow) {
#pragma unroll
        for (int s = 0; s < kNumSlots; ++s) {
          state.slots[s] = slots[s];
          if (s < table.num_slots) Load(table.slots[s] + id * table.dim + d, slots[s]);
        }
      }
      SettleRow(rule, touch, decay, static_cast<float>(next.learning_rate), kVector, state);
      if constexpr (!Rule::kSlotsPerRow) {
#pragma unroll
        for (int s = 0; s < kNumSlots; ++s) {
          if (s < table.num_slots) Store(table.slots[s] + id * table.dim + d, slots[s]);
        }
      }
      StoreRow(table, id, d, key, row);
    });
  }
}

// Ends what SettleTables does to a table.
__global__ void EndSettle(View view, int64_t* counters, Report* report) {
  if (IsFaulty(*view.fault)) {
    counters[kNumRefusedSteps] += TellFault<int32_t>(view, nullptr, report);
    return;
  }
  if (view.pool.row_states == nullptr) return;
  TableState& state = *view.state;
  state.next_policy.num_sleeping +=
      static_cast<double>(static_cast<int64_t>(state.sleeping_change));
  *view.pool.state = state.next_policy;
}

// Ends a table's step: counters and policy, or what was bad.
template <typename Index>
__global__ void EndTable(View view, const Index* ids, const int64_t* counted, int64_t* counters,
                         Report* report) {
  if (IsFaulty(*view.fault)) {
    counters[kNumRefusedSteps] += TellFault(view, ids, report);
    return;
  }
  TableState& state = *view.state;
  const int64_t num_lookups = counted == nullptr ? view.num_lookups : counted[0];
  const int64_t num_skipped = counted == nullptr ? state.num_stale[0] : counted[1];
  const int64_t num_deferred = counted == nullptr ? state.num_stale[1] : counted[2];
  counters[0] += num_lookups;
  counters[1] += num_skipped;
  counters[2] += num_deferred;
  counters[3] += state.num_found;
  counters[4] += state.num_stale[2];
  counters[5] += state.num_stale[3];
  if (view.pool.row_states == nullptr) return;
  EndStep(view.pool.policy, state.settings.step, num_lookups, num_skipped + num_deferred,
          static_cast<int64_t>(state.sleeping_change), &state.next_policy);
  *view.pool.state = state.next_policy;
}

template <typename Rule>
Error UpdateTable(const View& view, const FindMemory& memory, cudaStream_t stream) {
  const bool has_policy = view.pool.row_states != nullptr;
  const int64_t num = view.num_lookups;
  constexpr int kPopularLanes = Group<1, 32>::kLanes;
  if (num > 0) {
    if (has_policy) {
      SLIPSTREAM_RETURN_IF_ERROR(cudaMemsetAsync(view.marks, 0, num * sizeof(int32_t), stream));
    }
    SLIPSTREAM_RETURN_IF_ERROR(WithGroup(view, [&](auto group) {
      using Group = decltype(group);
      return Launch(UpdateOthers<Rule, Group>, NumBlocks(num * Group::kLanes), kThreads, stream,
                    view);
    }));
  }
  if (!has_policy) return cudaSuccess;
  if (num > 0) {
    const int64_t num_blocks = NumBlocks(num * kPopularLanes);
    SLIPSTREAM_RETURN_IF_ERROR(Launch(UpdatePopular<Rule>, num_blocks, kThreads, stream, view));
    SLIPSTREAM_RETURN_IF_ERROR(SumMarks(view, memory, stream));
    SLIPSTREAM_RETURN_IF_ERROR(Launch(FindIdle, 1, 32, stream, view));
    SLIPSTREAM_RETURN_IF_ERROR(
        Launch(EvictIdle<Rule>, NumBlocks(kIdleWindow * kPopularLanes), kThreads, stream, view));
    SLIPSTREAM_RETURN_IF_ERROR(Launch(PromoteRows, num_blocks, kThreads, stream, view));
    SLIPSTREAM_RETURN_IF_ERROR(Launch(CountPromoted, 1, 1, stream, view));
  }
  return Launch(FlushHeld<Rule>, NumBlocks(view.pool.capacity * kPopularLanes), kThreads, stream,
                view, true);
}

template <typename Rule, typename Index>
Error Apply(const std::vector<TableStep<Index>>& tables, const StepInputs& inputs, void* workspace,
            Report* report, cudaStream_t stream, Half half) {
  Layout layout;
  SLIPSTREAM_RETURN_IF_ERROR(Lay(tables, workspace, &layout));
  if (half != Half::kUpdate) {
    SLIPSTREAM_RETURN_IF_ERROR(cudaMemsetAsync(layout.fault, 0xff, sizeof(Fault), stream));
  }
  for (size_t t = 0; t < tables.size() && half != Half::kUpdate; ++t) {
    const View& view = layout.views[t];
    SLIPSTREAM_RETURN_IF_ERROR(Launch(BeginTable<Rule>, 1, 1, stream, view, inputs,
                                      tables[t].grad_scale, tables[t].weight_decay, false, false));
    SLIPSTREAM_RETURN_IF_ERROR(FindRows(tables[t], view, layout.find, stream));
  }
  // Every table is checked before any is written.
  for (size_t t = 0; t < tables.size() && half != Half::kFind; ++t) {
    const View& view = layout.views[t];
    SLIPSTREAM_RETURN_IF_ERROR(UpdateTable<Rule>(view, layout.find, stream));
    SLIPSTREAM_RETURN_IF_ERROR(Launch(EndTable<Index>, 1, 1, stream, view, tables[t].ids,
                                      tables[t].counted, tables[t].counters, report));
  }
  return cudaSuccess;
}

template <typename Rule>
Error Settle(const std::vector<TableStep<int32_t>>& tables, const StepInputs& inputs, bool wake,
             void* workspace, Report* report, cudaStream_t stream) {
  Layout layout;
  SLIPSTREAM_RETURN_IF_ERROR(Lay(tables, workspace, &layout));
  SLIPSTREAM_RETURN_IF_ERROR(cudaMemsetAsync(layout.fault, 0xff, sizeof(Fault), stream));
  for (size_t t = 0; t < tables.size(); ++t) {
    const View& view = layout.views[t];
    SLIPSTREAM_RETURN_IF_ERROR(Launch(BeginTable<Rule>, 1, 1, stream, view, inputs,
                                      tables[t].grad_scale, tables[t].weight_decay, true, wake));
    SLIPSTREAM_RETURN_IF_ERROR(FindRows(tables[t], view, layout.find, stream));
  }
  for (size_t t = 0; t < tables.size(); ++t) {
    const View& view = layout.views[t];
    if (view.pool.row_states != nullptr) {
      const int64_t num_blocks = NumBlocks(view.pool.capacity * Group<1, 32>::kLanes);
      SLIPSTREAM_RETURN_IF_ERROR(Launch(FlushHeld<Rule>, num_blocks, kThreads, stream, view, wake));
    }
    if (view.table.last_steps != nullptr) {
      SLIPSTREAM_RETURN_IF_ERROR(WithGroup(view, [&](auto group) {
        using Group = decltype(group);
        return Launch(SettleOthers<Rule, Group>, NumBlocks(view.table.num_rows * Group::kLanes),
                      kThreads, stream, view, inputs);
      }));
    }
    SLIPSTREAM_RETURN_IF_ERROR(Launch(EndSettle, 1, 1, stream, view, tables[t].counters, report));
  }
  return cudaSuccess;
}

// call(rule) with the type of the rule of that name.
template <typename Call>
Error WithRule(const std::string& name, Call call) {
  if (name == "sgd") return call(static_cast<Sgd*>(nullptr));
  if (name == "momentum") return call(static_cast<Momentum*>(nullptr));
  if (name == "adagrad") return call(static_cast<Adagrad*>(nullptr));
  if (name == "row_wise_adagrad") return call(static_cast<RowWiseAdagrad*>(nullptr));
  if (name == "adam") return call(static_cast<Adam*>(nullptr));
  if (name == "rmsprop") return call(static_cast<RmsProp*>(nullptr));
  if (name == "ftrl") return call(static_cast<Ftrl*>(nullptr));
  return cudaErrorInvalidValue;
}

}  // namespace

template <typename Index>
Error ApplyStep(const RuleInfo& rule, const std::vector<TableStep<Index>>& tables,
                const StepInputs& inputs, void* workspace, Report* report, CUstream_st* stream,
                Half half) {
  return WithRule(rule.name, [&](auto* type) {
    using Rule = std::remove_pointer_t<decltype(type)>;
    return Apply<Rule>(tables, inputs, workspace, report, stream, half);
  });
}

Error SettleTables(const RuleInfo& rule, const std::vector<TableStep<int32_t>>& tables,
                   const StepInputs& inputs, bool wake, void* workspace, Report* report,
                   CUstream_st* stream) {
  return WithRule(rule.name, [&](auto* type) {
    using Rule = std::remove_pointer_t<decltype(type)>;
    return Settle<Rule>(tables, inputs, wake, workspace, report, stream);
  });
}

Error MarkRows(const uint32_t* words, int64_t num_words, bool clear, uint32_t* changed_rows,
               CUstream_st* stream) {
  if (num_words == 0) return cudaSuccess;
  return Launch(MarkWords, NumBlocks(num_words), kThreads, stream, words, num_words, clear,
                changed_rows);
}

#define SLIPSTREAM_INSTANTIATE(Index)                                             \
  template Error ApplyStep(const RuleInfo&, const std::vector<TableStep<Index>>&, \
                           const StepInputs&, void*, Report*, CUstream_st*, Half);
SLIPSTREAM_INSTANTIATE(int32_t)
SLIPSTREAM_INSTANTIATE(int64_t)
#undef SLIPSTREAM_INSTANTIATE

}  // namespace slipstream::gpu
