// State in which a number makes no sense, as a checkpoint may have it: refused, or no harm. The
// sanitizers see what is out of bounds and what is undefined.
#include <algorithm>
#include <limits>

#include "../kernels/staleness.h"
#include "../kernels/update_rows.h"
#include "test_support.h"

namespace slipstream {
namespace {

constexpr int64_t kNumRows = 12, kCapacity = 6, kDim = 3, kNumSteps = 24;
constexpr double kLearningRate = 0.125;
const std::vector<double> kHyperparameters = {0.75, 0.875, 1e-3, 0};

// A table that Adam trains, some rows of which sleep.
struct State {
  std::vector<float> values = std::vector<float>(kNumRows * kDim, 0.25f);
  std::vector<float> slots[2] = {values, values};
  std::vector<uint32_t> changed_rows = {0};
  std::vector<int32_t> last_steps = std::vector<int32_t>(kNumRows);
  std::vector<int32_t> row_states = std::vector<int32_t>(kNumRows);
  std::vector<PoolEntry> entries = std::vector<PoolEntry>(kCapacity);
  std::vector<float> floats = std::vector<float>(kCapacity * (2 * kDim + 1));
  PolicyState policy_state = {};

  Staleness staleness(const PolicySettings& policy) {
    Staleness one;
    one.row_states = row_states.data();
    one.entries = entries.data();
    one.floats = floats.data();
    one.state = &policy_state;
    one.capacity = kCapacity;
    one.dim = kDim;
    one.policy = policy;
    return one;
  }
  Table table(const Staleness* staleness) {
    Table table = {};
    table.num_rows = kNumRows;
    table.table = values.data();
    table.num_slots = 2;
    for (int s = 0; s < 2; ++s) table.slots[s] = slots[s].data();
    table.changed_rows = changed_rows.data();
    table.last_steps = last_steps.data();
    table.staleness = staleness;
    table.dim = table.slot_dim = kDim;
    return table;
  }
};

StepSettings SettingsOf(int64_t step) {
  StepSettings settings;
  settings.step = step;
  settings.learning_rate = kLearningRate;
  settings.hyperparameters = kHyperparameters.data();
  return settings;
}

const ParallelFor kInOrder = [](int64_t num, const std::function<void(int64_t)>& task) {
  for (int64_t i = 0; i < num; ++i) task(i);
};

// A step that looks up all rows from `first` on, as the op does it. Returns whether it was done.
bool Step(State* state, const PolicySettings& policy, int64_t step, int64_t first) {
  const Staleness staleness = state->staleness(policy);
  if (!IsWhole(state->policy_state, kCapacity)) return false;
  const StepSettings settings = SettingsOf(step);
  const bool is_refresh = BeginStep(policy, step, kLearningRate, &state->policy_state);
  if (is_refresh && CheckPool(staleness, kNumRows) >= 0) return false;
  std::vector<int64_t> ids;
  for (int64_t id = first; id < kNumRows; ++id) ids.push_back(id);
  const std::vector<float> grads(ids.size() * kDim, 0.5f);
  const RowStates states = {state->row_states.data(), state->entries.data(),
                            static_cast<int64_t>(state->policy_state.num_entries),
                            static_cast<int64_t>(state->policy_state.woken_at)};
  LiveRows live_rows;
  const std::vector<Lookups<int64_t>> lookups = {
      {ids.data(), grads.data(), states, static_cast<int64_t>(ids.size()), kNumRows, kDim}};
  if (live_rows.Find(lookups, step, kInOrder).kind != BadLookup::kNone) return false;
  UpdateRows(*FindRule("adam"), {state->table(&staleness)}, {settings}, {is_refresh},
             live_rows.found(), kInOrder);
  return true;
}

bool Settle(State* state, const PolicySettings& policy, bool wake) {
  const Staleness staleness = state->staleness(policy);
  if (!IsWhole(state->policy_state, kCapacity)) return false;
  if (CheckPool(staleness, kNumRows) >= 0) return false;
  SettleRows(*FindRule("adam"), state->table(&staleness), SettingsOf(kNumSteps), wake, kInOrder);
  return true;
}

// Does all that is done with a state. Returns how much of it was refused.
int64_t Use(const State& state, const PolicySettings& policy) {
  int64_t num_refused = 0;
  for (int what = 0; what < 4; ++what) {
    State own = state;
    // A row that sleeps among them, then only rows from the middle on; in a refresh too.
    const bool done = what < 2 ? Step(&own, policy, kNumSteps + 1 + what, 4 * what)
                               : Settle(&own, policy, what == 3);
    num_refused += !done;
    const bool is_finite = std::all_of(own.values.begin(), own.values.end(),
                                       [](float value) { return std::isfinite(value); });
    CHECK(is_finite);
  }
  return num_refused;
}

void TestPolicy(const PolicySettings& policy) {
  State good;
  good.policy_state.threshold = 1e9;
  good.policy_state.strictness = 1;
  for (int64_t step = 1; step <= kNumSteps; ++step) CHECK(Step(&good, policy, step, step % 3));
  CHECK(good.policy_state.num_entries > 3 && good.policy_state.num_sleeping > 0);
  CHECK_EQ(Use(good, policy), 0);
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const int64_t numbers[] = {-1,        0,     1,      int64_t{1} << 31, int64_t{1} << 60,
                             kMost - 1, kMost, -kMost, -kMost - 1};
  int64_t num_refused = 0;
  for (int64_t e = 0; e < kCapacity; ++e) {
    for (int64_t column = 0; column < kNumPoolInts; ++column) {
      for (const int64_t number : numbers) {
        State hostile = good;
        reinterpret_cast<int64_t*>(&hostile.entries[e])[column] = number;
        num_refused += Use(hostile, policy);
      }
    }
  }
  for (int64_t row = 0; row < kNumRows; ++row) {
    for (const int64_t number : numbers) {
      State hostile = good;
      hostile.row_states[row] = static_cast<int32_t>(number);
      num_refused += Use(hostile, policy);
      hostile = good;
      hostile.last_steps[row] = static_cast<int32_t>(number);
      num_refused += Use(hostile, policy);
    }
  }
  const double infinity = std::numeric_limits<double>::infinity();
  for (int64_t column = 0; column < kNumPolicyStates; ++column) {
    for (const double number : {-1.0, 0.0, -0.0, 1.0, 7.0, 1e18, 1e300, infinity, -infinity,
                                std::numeric_limits<double>::quiet_NaN()}) {
      State hostile = good;
      reinterpret_cast<double*>(&hostile.policy_state)[column] = number;
      num_refused += Use(hostile, policy);
    }
  }
  CHECK(num_refused > 500);
}

}  // namespace

void TestHostileState() {
  for (const int skips : {0, 1}) {
    for (int metric = 0; metric < 5; ++metric) {
      current_case =
          "hostile state, skips " + std::to_string(skips) + ", metric " + std::to_string(metric);
      PolicySettings policy;
      policy.skips = skips;
      policy.drift_metric = metric;
      policy.min_updates = 3;
      policy.window = policy.probe = policy.first_sleep = policy.updates_per_sleep = 2;
      policy.sleep_growth = 1;
      policy.max_threshold = 1e9;
      policy.max_sleep = 8;
      policy.max_age = int64_t{1} << 53;
      policy.target_skip = metric % 2 ? 0.5 : 0;
      policy.refresh_every = kNumSteps + 2;
      policy.correlation = 1;
      TestPolicy(policy);
    }
  }
}

}  // namespace slipstream
