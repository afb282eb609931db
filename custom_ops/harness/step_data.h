#ifndef SLIPSTREAM_HARNESS_STEP_DATA_H_
#define SLIPSTREAM_HARNESS_STEP_DATA_H_

// A table and batches for it, in host memory and in a device's; the same step on either.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "../kernels/gpu_step.h"
#include "../kernels/live_rows.h"
#include "../kernels/update_rows.h"
#include "../tests/test_support.h"
#include "device_memory.h"

namespace slipstream::harness {

// A rule with its hyperparameters.
struct RuleCase {
  const char* name;
  std::vector<double> hyperparameters;
  // Whether a GPU must come to the same bits: not where the rule takes a power.
  bool is_exact = true;
};

// A table with what goes with it; no pool where `policy` is empty; its rows in one of `table` and
// `bfloat16_table`.
struct TableData {
  int64_t num_rows, dim, slot_dim;
  std::vector<float> table;
  std::vector<uint16_t> bfloat16_table;
  std::vector<std::vector<float>> slots;
  std::vector<uint32_t> changed_rows;
  std::vector<int32_t> last_steps;
  std::vector<int64_t> counters;
  std::vector<double> policy;  // as PolicyOf has it
  std::vector<int32_t> row_states;
  std::vector<PoolEntry> entries;
  std::vector<float> floats;
  std::vector<PolicyState> state;

  // Of the values that it has now.
  void MakeBfloat16() {
    for (const float value : table) bfloat16_table.push_back(ToBfloat16(value, 0x8000));
    table.clear();
  }
  bool has_policy() const { return !policy.empty(); }
};

inline TableData NewTable(const RuleCase& rule_case, int64_t num_rows, int64_t dim,
                          const std::vector<double>& policy, int64_t capacity) {
  const RuleInfo& rule = *FindRule(rule_case.name);
  TableData data = {
      num_rows, dim, rule.slots_per_row ? 1 : dim, {}, {}, {}, {}, {}, {}, policy, {}, {}, {}, {}};
  data.table.resize(num_rows * dim);
  for (size_t i = 0; i < data.table.size(); ++i) data.table[i] = 0.01f * (i % 101) - 0.5f;
  data.slots.assign(rule.num_slots(rule_case.hyperparameters.data()),
                    std::vector<float>(num_rows * data.slot_dim, 0.125f));
  data.changed_rows.resize((num_rows + 31) / 32);
  data.last_steps.resize(num_rows);
  data.counters.resize(kNumCounters);
  if (!policy.empty()) {
    data.row_states.resize(num_rows);
    data.entries.resize(capacity);
    data.floats.resize(capacity * (2 * dim + 1));
    data.state.push_back({});
    data.state[0].threshold = policy[6];
    data.state[0].strictness = 1;
  }
  return data;
}

constexpr uint32_t kRoundingSeed = 12345;

// What a step looked up in one table.
template <typename Index>
struct BatchData {
  std::vector<Index> ids;
  std::vector<float> grads;
};

// What a step applies to all tables.
struct StepData {
  int64_t step = 1;
  float learning_rate = 0.125f;
  float clip_value = 0;
  float grad_scale = 1;
  float weight_decay = 0;
  std::vector<float> tail_rates = {0.125f, 0.125f};
  std::vector<float> tails;  // of Adam
};

// What a rule needs beside its hyperparameters.
inline void AddTails(const RuleCase& rule, StepData* inputs) {
  const std::vector<double>& h = rule.hyperparameters;
  if (std::string(rule.name) == "adam") inputs->tails = AdamTails(h[0], h[1], h[3] != 0, 30);
}

inline void InOrder(int64_t num_tasks, const std::function<void(int64_t)>& task) {
  for (int64_t i = 0; i < num_tasks; ++i) task(i);
}

// Views of tables in host memory.
struct HostTables {
  HostTables(const RuleCase& rule_case, const StepData& inputs, std::vector<TableData>* tables) {
    staleness.reserve(tables->size());
    for (TableData& data : *tables) {
      Table table = {};
      table.num_rows = data.num_rows;
      table.table = data.table.data();
      table.bfloat16_table = data.bfloat16_table.empty() ? nullptr : data.bfloat16_table.data();
      table.rounding_seed = kRoundingSeed;
      table.num_slots = static_cast<int>(data.slots.size());
      for (size_t s = 0; s < data.slots.size(); ++s) table.slots[s] = data.slots[s].data();
      table.changed_rows = data.changed_rows.data();
      table.last_steps = data.last_steps.empty() ? nullptr : data.last_steps.data();
      table.dim = data.dim;
      table.slot_dim = data.slot_dim;
      if (data.has_policy()) {
        Staleness one;
        one.row_states = data.row_states.data();
        one.entries = data.entries.data();
        one.floats = data.floats.data();
        one.state = data.state.data();
        one.capacity = static_cast<int64_t>(data.entries.size());
        one.dim = data.dim;
        one.policy = PolicyOf(data.policy);
        staleness.push_back(one);
        table.staleness = &staleness.back();
      }
      views.push_back(table);
      StepSettings one;
      one.step = inputs.step;
      one.learning_rate = inputs.learning_rate;
      one.weight_decay = inputs.weight_decay;
      one.clip_value = inputs.clip_value;
      one.grad_scale = inputs.grad_scale;
      one.hyperparameters = rule_case.hyperparameters.data();
      one.tails = inputs.tails.data();
      one.num_tails = static_cast<int64_t>(inputs.tails.size());
      for (int i = 0; i < 2; ++i) one.tail_rates[i] = inputs.tail_rates[i];
      settings.push_back(one);
    }
  }
  std::vector<Staleness> staleness;
  std::vector<Table> views;
  std::vector<StepSettings> settings;
};

// The step on the CPU, as the op does it.
template <typename Index>
BadLookup StepOnCpu(const RuleCase& rule_case, const std::vector<BatchData<Index>>& batches,
                    const StepData& inputs, std::vector<TableData>* tables) {
  const HostTables host(rule_case, inputs, tables);
  std::vector<PolicyState> states_before;
  std::vector<Lookups<Index>> lookups;
  std::vector<bool> is_refresh(tables->size(), false);
  for (const Staleness& one : host.staleness) states_before.push_back(*one.state);
  for (size_t t = 0; t < tables->size(); ++t) {
    const Staleness* one = host.views[t].staleness;
    RowStates states;
    if (one != nullptr) {
      is_refresh[t] = BeginStep(one->policy, inputs.step, inputs.learning_rate, one->state);
      states = {one->row_states, one->entries, static_cast<int64_t>(one->state->num_entries),
                static_cast<int64_t>(one->state->woken_at)};
    }
    const BatchData<Index>& batch = batches[t];
    lookups.push_back({batch.ids.data(), batch.grads.data(), states,
                       static_cast<int64_t>(batch.ids.size()), host.views[t].num_rows,
                       host.views[t].dim});
  }
  LiveRows live_rows;
  const BadLookup bad = live_rows.Find(lookups, inputs.step, InOrder);
  if (bad.kind != BadLookup::kNone) {
    for (size_t p = 0; p < states_before.size(); ++p) *host.staleness[p].state = states_before[p];
    return bad;
  }
  UpdateRows(*FindRule(rule_case.name), host.views, host.settings, is_refresh, live_rows.found(),
             InOrder);
  for (size_t t = 0; t < tables->size(); ++t) {
    const RowCounts& counts = live_rows.counts(t);
    int64_t* counters = (*tables)[t].counters.data();
    counters[kNumLookups] += counts.num_lookups;
    counters[kNumSkippedLookups] += counts.num_skipped_lookups;
    counters[kNumDeferredLookups] += counts.num_deferred_lookups;
    counters[kNumRowUpdates] += counts.num_row_updates;
    counters[kNumSkippedRowUpdates] += counts.num_skipped_row_updates;
    counters[kNumDeferredRowUpdates] += counts.num_deferred_row_updates;
  }
  return {};
}

// What comes between steps, on the CPU.
inline void SettleOnCpu(const RuleCase& rule_case, const StepData& inputs, bool wake,
                        std::vector<TableData>* tables) {
  const HostTables host(rule_case, inputs, tables);
  for (size_t t = 0; t < tables->size(); ++t) {
    SettleRows(*FindRule(rule_case.name), host.views[t], host.settings[t], wake, InOrder);
  }
}

// TableData in a device's memory.
struct DeviceTable {
  explicit DeviceTable(const TableData& data)
      : host(data),
        table(data.table),
        changed_rows(data.changed_rows),
        last_steps(data.last_steps),
        counters(data.counters),
        row_states(data.row_states),
        entries(data.entries),
        floats(data.floats),
        state(data.state),
        bfloat16_table(data.bfloat16_table) {
    for (const std::vector<float>& slot : data.slots) slots.emplace_back(slot);
  }
  DeviceTable(DeviceTable&&) = default;

  // One without policy that has no copy in host memory; all bytes 0.
  DeviceTable(const RuleCase& rule_case, int64_t num_rows, int64_t dim, bool is_bfloat16) {
    const RuleInfo& rule = *FindRule(rule_case.name);
    host.num_rows = num_rows;
    host.dim = dim;
    host.slot_dim = rule.slots_per_row ? 1 : dim;
    if (is_bfloat16) {
      bfloat16_table = Zeros<uint16_t>(num_rows * dim);
    } else {
      table = Zeros<float>(num_rows * dim);
    }
    for (int s = 0; s < rule.num_slots(rule_case.hyperparameters.data()); ++s) {
      slots.push_back(Zeros<float>(num_rows * host.slot_dim));
    }
    changed_rows = Zeros<uint32_t>((num_rows + 31) / 32);
    last_steps = Zeros<int32_t>(rule.has_moments ? num_rows : 0);
    counters = Zeros<int64_t>(kNumCounters);
  }
  template <typename T>
  static DeviceArray<T> Zeros(int64_t num) {
    DeviceArray<T> array(num);
    if (num > 0) REQUIRE(cudaMemsetAsync(array.data(), 0, num * sizeof(T), nullptr));
    return array;
  }

  // As it is now.
  TableData Download() const {
    TableData data = host;
    data.table = table.Download();
    for (size_t s = 0; s < slots.size(); ++s) data.slots[s] = slots[s].Download();
    data.changed_rows = changed_rows.Download();
    data.last_steps = last_steps.Download();
    data.counters = counters.Download();
    data.row_states = row_states.Download();
    data.entries = entries.Download();
    data.floats = floats.Download();
    data.state = state.Download();
    data.bfloat16_table = bfloat16_table.Download();
    return data;
  }

  TableData host = {};  // its sizes
  DeviceArray<float> table;
  std::vector<DeviceArray<float>> slots;
  DeviceArray<uint32_t> changed_rows;
  DeviceArray<int32_t> last_steps;
  DeviceArray<int64_t> counters;
  DeviceArray<int32_t> row_states;
  DeviceArray<PoolEntry> entries;
  DeviceArray<float> floats;
  DeviceArray<PolicyState> state;
  DeviceArray<uint16_t> bfloat16_table;
};

// Batches and inputs of one step in a device's memory, with what calls of gpu_step.h need.
template <typename Index>
class DeviceStep {
 public:
  DeviceStep(const RuleCase& rule_case, const std::vector<BatchData<Index>>& batches,
             const StepData& inputs, const std::vector<DeviceTable>& tables)
      : rule_(*FindRule(rule_case.name)),
        step_(std::vector<int64_t>{inputs.step}),
        learning_rate_(std::vector<float>{inputs.learning_rate}),
        grad_scale_(std::vector<float>{inputs.grad_scale}),
        tail_rates_(inputs.tail_rates),
        tails_(inputs.tails),
        hyperparameters_(rule_case.hyperparameters),
        clip_value_(inputs.clip_value) {
    for (size_t t = 0; t < tables.size(); ++t) {
      const DeviceTable& data = tables[t];
      ids_.emplace_back(batches[t].ids);
      grads_.emplace_back(batches[t].grads);
      gpu::TableStep<Index> one = {};
      one.ids = ids_.back().data();
      one.grads = grads_.back().data();
      one.num_lookups = static_cast<int64_t>(batches[t].ids.size());
      one.table.num_rows = data.host.num_rows;
      one.table.table = data.table.data();
      one.table.bfloat16_table = data.bfloat16_table.data();
      one.table.rounding_seed = kRoundingSeed;
      one.table.num_slots = static_cast<int>(data.slots.size());
      for (size_t s = 0; s < data.slots.size(); ++s) one.table.slots[s] = data.slots[s].data();
      one.table.changed_rows = data.changed_rows.data();
      one.table.last_steps = data.last_steps.data();
      one.table.dim = data.host.dim;
      one.table.slot_dim = data.host.slot_dim;
      if (data.host.has_policy()) {
        one.pool.row_states = data.row_states.data();
        one.pool.entries = data.entries.data();
        one.pool.floats = data.floats.data();
        one.pool.state = data.state.data();
        one.pool.capacity = static_cast<int64_t>(data.entries.size());
        one.pool.dim = data.host.dim;
        one.pool.policy = PolicyOf(data.host.policy);
      }
      one.counters = data.counters.data();
      one.grad_scale = grad_scale_.data();
      one.weight_decay = inputs.weight_decay;
      steps_.push_back(one);
    }
    size_t num_bytes = 0;
    REQUIRE(gpu::WorkspaceBytes(steps_, &num_bytes));
    workspace_ = DeviceArray<char>(num_bytes);
  }

  void Apply(gpu::Report* report, gpu::Half half = gpu::Half::kBoth) const {
    REQUIRE(gpu::ApplyStep(rule_, steps_, Inputs(), workspace_.data(), report, nullptr, half));
  }
  // Instead of a step; with `Index` int32_t.
  void Settle(gpu::Report* report, bool wake) const {
    REQUIRE(gpu::SettleTables(rule_, steps_, Inputs(), wake, workspace_.data(), report, nullptr));
  }
  // num_slices [num_tables]
  void Find(int32_t* num_slices, gpu::Report* report) const {
    REQUIRE(gpu::FindSlices(steps_, step_.data(), workspace_.data(), num_slices, report, nullptr));
  }
  void Copy(int64_t table, Index* ids, float* grads) const {
    REQUIRE(gpu::CopySlices(steps_, table, workspace_.data(), ids, grads, nullptr));
  }

 private:
  gpu::StepInputs Inputs() const {
    gpu::StepInputs inputs = {};
    inputs.step = step_.data();
    inputs.learning_rate = learning_rate_.data();
    inputs.tail_rates = tail_rates_.data();
    inputs.tails = tails_.data();
    inputs.num_tails = static_cast<int64_t>(tails_.size());
    std::copy(hyperparameters_.begin(), hyperparameters_.end(), inputs.hyperparameters);
    inputs.clip_value = clip_value_;
    return inputs;
  }

  const RuleInfo& rule_;
  DeviceArray<int64_t> step_;
  DeviceArray<float> learning_rate_, grad_scale_, tail_rates_, tails_;
  std::vector<double> hyperparameters_;
  float clip_value_;
  std::vector<DeviceArray<Index>> ids_;
  std::vector<DeviceArray<float>> grads_;
  std::vector<gpu::TableStep<Index>> steps_;
  DeviceArray<char> workspace_;
};

}  // namespace slipstream::harness

#endif  // SLIPSTREAM_HARNESS_STEP_DATA_H_
