// Compares the CUDA kernels with the CPU's, bit for bit where gpu_step.h promises it, on random
// steps; and sums with sums in double. Exit status 77: no device, nothing was checked.
#include <algorithm>
#include <limits>

#include "../tests/test_support.h"
#include "step_data.h"

namespace slipstream::harness {
namespace {

constexpr int kNoDevice = 77;
bool is_emulated = false;
// For sanitizers, which take a hundred to many thousand times as long. small: fewer cases and
// sizes, of every kind. tiny: every kernel once.
bool is_tiny = false;
bool is_small = false;

const RuleCase kRuleCases[] = {
    {"sgd", {}},
    {"adagrad", {1e-3}},
    {"row_wise_adagrad", {1e-3}},
    {"adam", {0.75, 0.875, 1e-3, 0}, false},
    {"adam", {0.75, 0.875, 1e-3, 1}, false},
    {"momentum", {0.75, 0}},
    {"momentum", {0.75, 1}},
    {"rmsprop", {0.75, 0, 1e-3, 0}},
    {"rmsprop", {0.75, 0.5, 1e-3, 1}},
    {"ftrl", {-0.5, 1e-3, 1e-3, 1e-3, 1e-3}},
    {"ftrl", {-0.75, 1e-3, 1e-3, 1e-3, 1e-3}, false},
};

// Policies under which rows soon become popular, in the order of PolicySettings.
std::vector<double> Policy(bool skips, DriftMetric metric, double threshold, double target_skip,
                           double skip_below, double refresh_every) {
  return {static_cast<double>(skips),
          2,
          3,
          1,
          static_cast<double>(metric),
          target_skip,
          threshold,
          0.25,
          2,
          8,
          1,
          1,
          20,
          skip_below,
          refresh_every,
          1,
          0.25};
}

// Ids of which low ones repeat often; some rows are in every batch and most in few.
template <typename Index>
BatchData<Index> RandomBatch(int64_t num_rows, int64_t dim, int64_t num_lookups, bool has_hot_row,
                             std::mt19937_64* random) {
  BatchData<Index> batch;
  for (int64_t i = 0; i < num_lookups; ++i) {
    const int64_t below = RandomBelow(random, num_rows) + 1;
    batch.ids.push_back(static_cast<Index>(RandomBelow(random, below)));
    if (has_hot_row && RandomBelow(random, 2) == 0) batch.ids.back() = num_rows / 2;
  }
  batch.grads = RandomFloats(random, num_lookups * dim);
  return batch;
}

// Eighths, whose sums are exact in any order.
void MakeExact(std::vector<float>* grads) {
  for (float& grad : *grads) grad = std::round(grad * 8) / 8;
}

void CheckValues(const char* what, const std::vector<float>& actual,
                 const std::vector<float>& expected, bool is_exact) {
  const std::string before = current_case;
  current_case += std::string(", ") + what;
  if (is_exact) {
    CHECK_SAME_BITS(actual, expected);
  } else {
    // A rule rounds a few dozen times in a step; errors of steps add up.
    CHECK_NEAR(actual, std::vector<double>(expected.begin(), expected.end()), 1e-4);
  }
  current_case = before;
}

void CheckTables(const std::vector<TableData>& actual, const std::vector<TableData>& expected,
                 bool is_exact) {
  for (size_t t = 0; t < actual.size(); ++t) {
    const TableData &a = actual[t], &e = expected[t];
    CheckValues("table", a.table, e.table, is_exact);
    if (is_exact) CHECK_SAME_BITS(a.bfloat16_table, e.bfloat16_table);
    for (size_t s = 0; s < a.slots.size(); ++s) {
      CheckValues("slot", a.slots[s], e.slots[s], is_exact);
    }
    CHECK_SAME_BITS(a.changed_rows, e.changed_rows);
    CHECK_SAME_BITS(a.last_steps, e.last_steps);
    CHECK_SAME_BITS(a.counters, e.counters);
    if (!a.has_policy()) continue;
    CHECK_SAME_BITS(a.row_states, e.row_states);
    CHECK_EQ(std::memcmp(a.entries.data(), e.entries.data(), a.entries.size() * sizeof(PoolEntry)),
             0);
    CheckValues("pool", a.floats, e.floats, is_exact);
    CHECK_EQ(std::memcmp(a.state.data(), e.state.data(), sizeof(PolicyState)), 0);
  }
}

// Steps of a random model on both; `change` may change a batch.
struct Trial {
  RuleCase rule;
  std::vector<std::pair<int64_t, int64_t>> shapes;  // of tables
  std::vector<double> policy;                       // of every other table
  int64_t num_lookups = 100;
  int64_t num_steps = 3;
  bool has_hot_row = false;
  StepData inputs;
  int64_t settle_after = 0;  // a step
  bool wakes = true;         // when it is settled
  bool is_bfloat16 = false;
};

template <typename Index>
void RunTrial(const Trial& trial, gpu::Report* report) {
  std::mt19937_64 random(trial.num_lookups);
  std::vector<TableData> expected;
  std::vector<DeviceTable> tables;
  for (size_t t = 0; t < trial.shapes.size(); ++t) {
    const auto [num_rows, dim] = trial.shapes[t];
    expected.push_back(NewTable(trial.rule, num_rows, dim,
                                t % 2 == 0 ? trial.policy : std::vector<double>(),
                                std::max<int64_t>(1, num_rows / 3)));
    if (trial.is_bfloat16) expected.back().MakeBfloat16();
    tables.emplace_back(expected.back());
  }
  for (int64_t s = 1; s <= trial.num_steps; ++s) {
    std::vector<BatchData<Index>> batches;
    for (size_t t = 0; t < trial.shapes.size(); ++t) {
      // None in one table of a step.
      const bool is_empty = trial.shapes.size() > 1 && s % 3 == 2 && t == s % trial.shapes.size();
      batches.push_back(RandomBatch<Index>(trial.shapes[t].first, trial.shapes[t].second,
                                           is_empty ? 0 : trial.num_lookups, trial.has_hot_row,
                                           &random));
      if (trial.has_hot_row) MakeExact(&batches.back().grads);
    }
    StepData inputs = trial.inputs;
    inputs.step = s + (s > 2 ? 3 : 0);  // rows miss steps
    AddTails(trial.rule, &inputs);
    if (s == 6) inputs.learning_rate *= 2;  // wakes rows
    if (s == 6) inputs.tail_rates = {0.125f, 0.25f};
    const BadLookup bad = StepOnCpu(trial.rule, batches, inputs, &expected);
    CHECK_EQ(bad.kind, BadLookup::kNone);
    const DeviceStep<Index> step(trial.rule, batches, inputs, tables);
    step.Apply(report);
    REQUIRE(cudaDeviceSynchronize());
    CHECK_EQ(gpu::TakeReport(report).kind, BadLookup::kNone);
    if (s != trial.settle_after) continue;
    inputs.step += 2;  // rows are behind
    SettleOnCpu(trial.rule, inputs, trial.wakes, &expected);
    const std::vector<BatchData<int32_t>> none(tables.size());
    const DeviceStep<int32_t> settle(trial.rule, none, inputs, tables);
    settle.Settle(report, trial.wakes);
    REQUIRE(cudaDeviceSynchronize());
    CHECK_EQ(gpu::TakeReport(report).kind, BadLookup::kNone);
  }
  std::vector<TableData> actual;
  for (const DeviceTable& table : tables) actual.push_back(table.Download());
  CheckTables(actual, expected, trial.rule.is_exact || is_emulated);
}

void CheckRules(gpu::Report* report) {
  for (const RuleCase& rule : kRuleCases) {
    if (is_tiny && &rule != &kRuleCases[1] && &rule != &kRuleCases[3]) continue;
    for (int settings = is_small ? 2 : 0; settings < 3; ++settings) {
      Trial trial;
      trial.rule = rule;
      // Around every width that a kernel has: vectors of four, groups of 8, 16 and 32 lanes.
      trial.shapes = {{300, 1}, {1, 3},   {60, 16},  {60, 33},
                      {50, 64}, {40, 68}, {30, 130}, {20, 256}};
      if (settings > 0) trial.shapes = {{60, 7}, {60, 32}, {30, 128}};
      if (settings == 1) trial.inputs.grad_scale = 2;
      if (settings == 2) {
        trial.inputs.grad_scale = 0.75;
        trial.inputs.clip_value = 0.25;
        trial.inputs.weight_decay = 0.0625;
      }
      trial.settle_after = 2 + settings % 2;
      current_case = std::string(rule.name) + ", settings " + std::to_string(settings);
      RunTrial<int64_t>(trial, report);
    }
  }
}

void CheckPolicies(gpu::Report* report) {
  const RuleCase rules[] = {kRuleCases[0], kRuleCases[1], kRuleCases[2], kRuleCases[6],
                            kRuleCases[8]};
  for (const bool skips : {false, true}) {
    for (const DriftMetric metric : {DriftMetric::kCoherence, DriftMetric::kRelativeL2,
                                     DriftMetric::kL2, DriftMetric::kMeanAbs, DriftMetric::kLoss}) {
      for (const double threshold : {0.3, 1e9}) {  // some at rest, all at rest
        if (is_small && (metric == DriftMetric::kL2 || metric == DriftMetric::kMeanAbs)) continue;
        if (is_tiny && (skips || metric != DriftMetric::kCoherence || threshold > 1)) continue;
        Trial trial;
        trial.rule = rules[static_cast<int>(metric)];
        trial.policy = Policy(skips, metric, threshold, threshold < 1 ? 0.5 : 0,
                              skips || threshold < 1 ? 0 : 0.5, threshold < 1 ? 9 : 0);
        trial.shapes = {{30, 5}, {40, 5}, {40, 36}};
        trial.num_lookups = 30;
        trial.num_steps = 20;
        trial.settle_after = threshold < 1 ? 13 : 17;
        trial.wakes = threshold < 1;
        trial.inputs.weight_decay = skips ? 0.0625f : 0;
        trial.inputs.clip_value = skips ? 0 : 0.75f;
        current_case = std::string(trial.rule.name) + ", policy of metric " +
                       std::to_string(static_cast<int>(metric)) + (skips ? ", skip" : ", defer") +
                       ", threshold " + std::to_string(threshold);
        RunTrial<int32_t>(trial, report);
      }
    }
  }
}

void CheckBfloat16(gpu::Report* report) {
  for (const RuleCase& rule : kRuleCases) {
    Trial trial;
    trial.rule = rule;
    trial.is_bfloat16 = true;
    trial.shapes = {{60, 7}, {60, 32}, {40, 33}, {30, 64}, {20, 132}};
    if (std::string(rule.name) == "adagrad") {
      trial.policy = Policy(false, DriftMetric::kRelativeL2, 0.3, 0, 0.1, 9);
      trial.num_steps = 20;
      trial.num_lookups = 30;
      trial.settle_after = 13;
    }
    current_case = std::string(rule.name) + ", bfloat16";
    RunTrial<int64_t>(trial, report);
  }
}

// Rows that are looked up more often than a piece is long, up to pieces of pieces.
void CheckLongRows(gpu::Report* report) {
  const int64_t piece = gpu::kPieceSize;
  for (const int64_t num : {piece - 1, piece, piece + 1, 2 * piece, 5 * piece + 7,
                            2 * piece * piece + 3 * piece, 3 * piece * piece}) {
    if (is_small && num != piece + 1 && num != 2 * piece * piece + 3 * piece) continue;
    if (is_tiny && num > 2 * piece) continue;
    Trial trial;
    trial.rule = kRuleCases[1];
    trial.shapes = {{num < 5000 ? 9 : 3, 4}, {3, 5}, {2, 64}};
    trial.num_lookups = num;
    trial.num_steps = 1;
    trial.has_hot_row = true;
    current_case = std::to_string(num) + " lookups of few rows";
    RunTrial<int32_t>(trial, report);
  }
}

// LiveSlices: order of first appearance, sums within the rounding of their terms.
template <typename Index>
void CheckSlices(int64_t num_rows, int64_t dim, int64_t num_lookups, gpu::Report* report) {
  current_case =
      "slices of " + std::to_string(num_lookups) + " lookups, dim " + std::to_string(dim);
  std::mt19937_64 random(num_lookups + dim);
  const RuleCase sgd = kRuleCases[0];
  std::vector<DeviceTable> tables;
  tables.emplace_back(NewTable(sgd, num_rows, dim, {}, 0));
  const std::vector<BatchData<Index>> batches = {
      RandomBatch<Index>(num_rows, dim, num_lookups, false, &random)};
  const DeviceStep<Index> step(sgd, batches, {}, tables);
  DeviceArray<int32_t> num_slices(1);
  step.Find(num_slices.data(), report);
  const int32_t num = num_slices.Download()[0];

  std::vector<Index> expected_ids;
  std::vector<int64_t> place(num_rows, -1), count(num_rows, 0);
  for (const Index id : batches[0].ids) {
    if (count[id]++ > 0) continue;
    place[id] = static_cast<int64_t>(expected_ids.size());
    expected_ids.push_back(id);
  }
  std::vector<double> expected(expected_ids.size() * dim, 0);
  for (size_t i = 0; i < batches[0].ids.size(); ++i) {
    for (int64_t d = 0; d < dim; ++d) {
      expected[place[batches[0].ids[i]] * dim + d] += batches[0].grads[i * dim + d];
    }
  }
  CHECK_EQ(num, static_cast<int32_t>(expected_ids.size()));
  if (num != static_cast<int32_t>(expected_ids.size())) return;
  DeviceArray<Index> ids(num);
  DeviceArray<float> grads(num * dim);
  step.Copy(0, ids.data(), grads.data());
  CHECK_SAME_BITS(ids.Download(), expected_ids);
  // n terms of at most 1 in float: each addition rounds a sum of at most n.
  const double most = *std::max_element(count.begin(), count.end());
  CHECK_NEAR(grads.Download(), expected, most * most * std::numeric_limits<float>::epsilon());
  CHECK_EQ(gpu::TakeReport(report).kind, BadLookup::kNone);
}

// A bad id or gradient, in one table, leaves all tables as they are, and is reported.
void CheckFaults(gpu::Report* report) {
  const double infinity = std::numeric_limits<double>::infinity();
  struct Case {
    const char* name;
    int64_t table, lookup, id;  // id -1000: keep it
    double grad;
    BadLookup::Kind kind;
  };
  const Case cases[] = {
      {"id past the end", 1, 17, 20, 0, BadLookup::kId},
      {"negative id", 0, 99, -1, 0, BadLookup::kId},
      {"NaN", 1, 40, -1000, std::nan(""), BadLookup::kGradient},
      {"infinity in a long row", 2, 250, -1000, -infinity, BadLookup::kGradient},
      {"bad id after a NaN", 2, 299, int64_t{1} << 40, std::nan(""), BadLookup::kId},
  };
  const RuleCase rule = kRuleCases[3];
  const std::vector<double> policy = Policy(false, DriftMetric::kCoherence, 1e9, 0, 0, 0);
  for (const Case& one : cases) {
    current_case = one.name;
    std::mt19937_64 random(7);
    std::vector<TableData> before;
    std::vector<DeviceTable> tables;
    std::vector<BatchData<int64_t>> batches;
    for (const auto& [num_rows, dim, num_lookups] :
         {std::tuple{30, 5, 100}, std::tuple{20, 8, 100}, std::tuple{1, 4, 300}}) {
      before.push_back(NewTable(rule, num_rows, dim, policy, 5));
      tables.emplace_back(before.back());
      batches.push_back(RandomBatch<int64_t>(num_rows, dim, num_lookups, false, &random));
    }
    BatchData<int64_t>& batch = batches[one.table];
    const int64_t dim = before[one.table].dim;
    if (one.id != -1000) batch.ids[one.lookup] = one.id;
    if (one.grad != 0) batch.grads[(one.lookup + 1) * dim - 1] = static_cast<float>(one.grad);
    std::vector<TableData> on_cpu = before;
    const BadLookup expected = StepOnCpu(rule, batches, {}, &on_cpu);
    const DeviceStep<int64_t> step(rule, batches, {}, tables);
    for (int i = 0; i < 2; ++i) step.Apply(report);  // the second is not reported again
    REQUIRE(cudaDeviceSynchronize());
    const BadLookup bad = gpu::TakeReport(report);
    CHECK_EQ(bad.kind, one.kind);
    CHECK_EQ(bad.kind, expected.kind);
    CHECK_EQ(bad.table, expected.table);
    CHECK_EQ(bad.lookup, expected.lookup);
    CHECK_EQ(bad.id, expected.id);
    CHECK_EQ(gpu::TakeReport(report).kind, BadLookup::kNone);
    std::vector<TableData> after;
    for (size_t t = 0; t < tables.size(); ++t) {
      after.push_back(tables[t].Download());
      if (static_cast<int64_t>(t) == one.table)
        before[t].counters[kNumRefusedSteps] = 2;  // both refused
    }
    CheckTables(after, before, true);
  }
}

// A pool that was not restored whole is not followed out of bounds.
void CheckBadState(gpu::Report* report) {
  const RuleCase rule = kRuleCases[1];
  const std::vector<double> policy = Policy(false, DriftMetric::kL2, 1, 0, 0, 0);
  for (const int32_t state : {-3, -1, std::numeric_limits<int32_t>::min()}) {
    current_case = "row state " + std::to_string(state);
    TableData data = NewTable(rule, 10, 4, policy, 3);
    data.state[0].num_entries = 2;
    data.entries[0].row = 7;  // not 5
    data.row_states[5] = state;
    std::vector<DeviceTable> tables;
    tables.emplace_back(data);
    BatchData<int64_t> batch = {{1, 5, 5}, std::vector<float>(12, 0.5f)};
    const DeviceStep<int64_t> step(rule, {batch}, {}, tables);
    step.Apply(report);
    REQUIRE(cudaDeviceSynchronize());
    const BadLookup bad = gpu::TakeReport(report);
    CHECK_EQ(bad.kind, BadLookup::kState);
    CHECK_EQ(bad.lookup, 1);
    CHECK_EQ(bad.id, 5);
    data.counters[kNumRefusedSteps] = 1;
    CheckTables({tables[0].Download()}, {data}, true);
  }
}

// An entry of the pool that is not its row's is not followed either when tables are settled.
void CheckBadEntries(gpu::Report* report) {
  const RuleCase rule = kRuleCases[1];
  for (const int64_t row : {-1, 3, 10}) {
    current_case = "entry of row " + std::to_string(row);
    TableData data = NewTable(rule, 10, 4, Policy(false, DriftMetric::kL2, 1, 0, 0, 0), 3);
    data.state[0].num_entries = 2;
    data.row_states[4] = -1;
    data.row_states[5] = -2;
    data.entries[0].row = 4;
    data.entries[1].row = row;
    data.entries[1].held_steps = 1;
    std::vector<DeviceTable> tables;
    tables.emplace_back(data);
    const DeviceStep<int32_t> step(rule, {{}}, {}, tables);
    step.Settle(report, true);
    REQUIRE(cudaDeviceSynchronize());
    const BadLookup bad = gpu::TakeReport(report);
    CHECK_EQ(bad.kind, BadLookup::kEntry);
    CHECK_EQ(bad.id, 1);
    data.counters[kNumRefusedSteps] = 1;
    CheckTables({tables[0].Download()}, {data}, true);
  }
}

// The pool is full when other rows become popular: they get the entries of rows that nobody looks
// up any more.
void CheckEviction(gpu::Report* report) {
  current_case = "a full pool";
  const RuleCase rule = kRuleCases[1];
  const std::vector<double> policy = Policy(false, DriftMetric::kL2, 1e9, 0, 0, 0);
  std::vector<TableData> expected = {NewTable(rule, 90, 6, policy, 40)};
  std::vector<DeviceTable> tables;
  tables.emplace_back(expected[0]);
  std::mt19937_64 random(3);
  for (const int64_t first : {0, 30, 60}) {
    for (int64_t s = 1; s <= 12; ++s) {
      BatchData<int32_t> batch;
      for (int64_t i = 0; i < 45; ++i) {
        batch.ids.push_back(static_cast<int32_t>(first + RandomBelow(&random, 30)));
      }
      batch.grads = RandomFloats(&random, 45 * 6);
      StepData inputs;
      inputs.step = first * 100 + s;
      const BadLookup bad = StepOnCpu<int32_t>(rule, {batch}, inputs, &expected);
      CHECK_EQ(bad.kind, BadLookup::kNone);
      const DeviceStep<int32_t> step(rule, {batch}, inputs, tables);
      step.Apply(report);
      REQUIRE(cudaDeviceSynchronize());
    }
    CHECK(expected[0].row_states[first + 5] < 0);
  }
  CHECK(expected[0].row_states[5] > 0);
  CheckTables({tables[0].Download()}, expected, true);
}

int Finish(const cudaDeviceProp& properties, gpu::Report* report) {
  REQUIRE(cudaDeviceSynchronize());
  REQUIRE(cudaFreeHost(report));
  std::printf("check: %lld checks on %s, %lld failed\n", static_cast<long long>(num_checks),
              properties.name, static_cast<long long>(num_failures));
  return num_failures == 0 ? 0 : 1;
}

int Main() {
  int num_devices = 0;
  cudaDeviceProp properties = {};
  if (cudaGetDeviceCount(&num_devices) != cudaSuccess || num_devices == 0) {
    std::printf("check: no CUDA device was found. Compiled and linked; NOTHING WAS CHECKED.\n");
    return kNoDevice;
  }
  REQUIRE(cudaGetDeviceProperties(&properties, 0));
  is_emulated = std::string(properties.name) == "emulated";
  gpu::Report* report = nullptr;
  REQUIRE(gpu::AllocateReport(&report));
  CheckRules(report);
  CheckPolicies(report);
  CheckLongRows(report);
  if (is_tiny) return Finish(properties, report);
  CheckBfloat16(report);
  for (const int64_t dim : {1, 4, 20, 64}) {
    for (const int64_t num_lookups : {0, 1, 100, 3000}) {
      CheckSlices<int32_t>(50, dim, num_lookups, report);
    }
  }
  CheckSlices<int64_t>(1, 3, 1000, report);
  CheckFaults(report);
  CheckBadState(report);
  CheckBadEntries(report);
  CheckEviction(report);
  return Finish(properties, report);
}

}  // namespace
}  // namespace slipstream::harness

int main(int argc, char** argv) {
#ifdef SLIPSTREAM_EMULATED_CUDA
  // backward or shuffled: the order in which threads get their turns
  using emulated_cuda::Order;
  const std::string order = argc > 1 ? argv[1] : "";
  if (order == "backward") emulated_cuda::order = Order::kBackward;
  if (order == "shuffled") emulated_cuda::order = Order::kShuffled;
#else
  const std::string extent = argc > 1 ? argv[1] : "";
  slipstream::harness::is_tiny = extent == "tiny";
  slipstream::harness::is_small = extent == "small" || extent == "tiny";
#endif
  return slipstream::harness::Main();
}
