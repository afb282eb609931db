// A table with a policy: the same to the bit however the tasks of its steps are run, and what holds
// in every step whatever the policy. tests/policy compares with the specification.
#include "../kernels/staleness.h"

#include <algorithm>

#include "../kernels/update_rows.h"
#include "test_support.h"

namespace slipstream {
namespace {

constexpr int64_t kNumRows = 3000, kCapacity = 500, kNumLookups = 9000, kNumSteps = 90;

// One table with its policy, in blocks of exactly their size.
struct PolicyTable {
  PolicyTable(int64_t dim, const std::vector<double>& policy, const RuleInfo& rule,
              const std::vector<double>& hyperparameters)
      : dim(dim),
        policy(policy),
        values(kNumRows * dim, 0.25f),
        slots(rule.num_slots(hyperparameters.data()), std::vector<float>(kNumRows * dim, 0.125f)),
        changed_rows((kNumRows + 31) / 32),
        last_steps(kNumRows),
        row_states(kNumRows),
        entries(kCapacity),
        floats(kCapacity * (2 * dim + 1)) {
    state.threshold = 3;
    state.strictness = 1;
  }

  // One step, as the op does it.
  void Step(const RuleInfo& rule, const StepSettings& settings, const std::vector<int64_t>& ids,
            const std::vector<float>& grads, const ParallelFor& parallel_for) {
    Staleness staleness;
    staleness.row_states = row_states.data();
    staleness.entries = entries.data();
    staleness.floats = floats.data();
    staleness.state = &state;
    staleness.capacity = kCapacity;
    staleness.dim = dim;
    staleness.policy = PolicyOf(policy);
    const bool is_refresh =
        BeginStep(staleness.policy, settings.step, settings.learning_rate, &state);
    const RowStates states = {row_states.data(), entries.data(),
                              static_cast<int64_t>(state.num_entries),
                              static_cast<int64_t>(state.woken_at)};
    const std::vector<Lookups<int64_t>> lookups = {
        {ids.data(), grads.data(), states, static_cast<int64_t>(ids.size()), kNumRows, dim}};
    const BadLookup bad = live_rows.Find(lookups, settings.step, parallel_for);
    CHECK_EQ(bad.kind, BadLookup::kNone);
    Table table = {};
    table.num_rows = kNumRows;
    table.table = values.data();
    table.num_slots = static_cast<int>(slots.size());
    for (size_t s = 0; s < slots.size(); ++s) table.slots[s] = slots[s].data();
    table.changed_rows = changed_rows.data();
    table.last_steps = last_steps.data();
    table.staleness = &staleness;
    table.dim = table.slot_dim = dim;
    UpdateRows(rule, {table}, {settings}, {is_refresh}, live_rows.found(), parallel_for);
    num_stale += live_rows.counts(0).num_deferred_lookups + live_rows.counts(0).num_skipped_lookups;
    CheckEntries(is_refresh);
  }

  void CheckEntries(bool is_refresh) const {
    int64_t num_sleeping = 0;
    bool rows_match = true, held_is_empty = true;
    for (int64_t e = 0; e < state.num_entries; ++e) {
      num_sleeping += entries[e].wake_step > 0;
      rows_match &= row_states[entries[e].row] == -1 - e;
      held_is_empty &= entries[e].held_steps == 0;
    }
    CHECK_EQ(state.num_sleeping, num_sleeping);
    CHECK(rows_match);
    CHECK(held_is_empty || !is_refresh);
  }

  int64_t dim;
  std::vector<double> policy;
  std::vector<float> values;
  std::vector<std::vector<float>> slots;
  std::vector<uint32_t> changed_rows;
  std::vector<int32_t> last_steps;
  std::vector<int32_t> row_states;
  std::vector<PoolEntry> entries;
  std::vector<float> floats;
  PolicyState state = {};
  LiveRows live_rows;
  int64_t num_stale = 0;
};

void CheckSame(const PolicyTable& table, const PolicyTable& other) {
  CHECK_SAME_BITS(table.values, other.values);
  for (size_t s = 0; s < table.slots.size(); ++s) CHECK_SAME_BITS(table.slots[s], other.slots[s]);
  CHECK_SAME_BITS(table.changed_rows, other.changed_rows);
  CHECK_SAME_BITS(table.row_states, other.row_states);
  CHECK_SAME_BITS(table.floats, other.floats);
  CHECK(std::memcmp(table.entries.data(), other.entries.data(), kCapacity * sizeof(PoolEntry)) ==
        0);
  CHECK(std::memcmp(&table.state, &other.state, sizeof(PolicyState)) == 0);
}

void TestPolicy(const char* rule_name, const std::vector<double>& hyperparameters, int64_t dim,
                const std::vector<double>& policy) {
  current_case = std::string(rule_name) + " with a policy, dim " + std::to_string(dim);
  const RuleInfo& rule = *FindRule(rule_name);
  const std::vector<ParallelFor> parallel_fors = AllParallelFors();
  std::vector<PolicyTable> tables;
  tables.reserve(parallel_fors.size());
  for (size_t p = 0; p < parallel_fors.size(); ++p) {
    tables.emplace_back(dim, policy, rule, hyperparameters);
  }
  std::mt19937_64 random(8);
  for (int64_t step = 1; step <= kNumSteps; ++step) {
    StepSettings settings;
    settings.step = step;
    settings.learning_rate = step < 60 ? 0.01 : 0.001;
    settings.clip_value = 0.75;
    settings.weight_decay = 0.125;
    settings.hyperparameters = hyperparameters.data();
    std::vector<int64_t> ids(kNumLookups);
    for (int64_t& id : ids) {
      // The smallest of three, so that small ids are popular.
      id = std::min({RandomBelow(&random, kNumRows), RandomBelow(&random, kNumRows),
                     RandomBelow(&random, kNumRows)});
    }
    const std::vector<float> grads = RandomFloats(&random, kNumLookups * dim);
    for (size_t p = 0; p < tables.size(); ++p) {
      tables[p].Step(rule, settings, ids, grads, parallel_fors[p]);
    }
  }
  for (size_t p = 1; p < tables.size(); ++p) CheckSame(tables[p], tables[0]);
  CHECK(tables[0].num_stale > kNumSteps * kNumLookups / 20);
  CHECK_EQ(tables[0].state.num_entries, static_cast<double>(kCapacity));  // it was full
  AddToDigest(tables[0].values);
  AddToDigest(tables[0].floats);
}

}  // namespace

void TestStaleness() {
  for (int metric = 0; metric < 5; ++metric) {
    const double m = metric;
    // on_stale, min_updates, window, probe, metric, target_skip, max_threshold, min_drift,
    // first_sleep, max_sleep, updates_per_sleep, sleep_growth, max_age, skip_below, refresh_every,
    // warm_up, correlation
    TestPolicy("adagrad", {1e-3}, 3, {0, 5, 3, 2, m, 0, 3, 0.5, 2, 8, 2, 1, 99, 0, 31, 4, 0});
    TestPolicy("adam", {0.75, 0.875, 1e-3, 0}, 17,
               {0, 5, 3, 2, m, 0.3, 3, 0.5, 2, 8, 2, 2, 99, 0.01, 0, 0, 0.75});
    TestPolicy("sgd", {}, 1, {1, 5, 3, 2, m, 0, 3, 0.5, 2, 8, 2, 1, 99, 0, 31, 0, 0});
  }
}

}  // namespace slipstream
