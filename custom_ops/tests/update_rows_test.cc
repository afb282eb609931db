// UpdateRows against the same equations in double, and what it must leave alone.
#include "../kernels/update_rows.h"

#include <algorithm>

#include "test_support.h"

namespace slipstream {
namespace {

// A row and its slots in double.
struct NaiveRow {
  std::vector<double> row;
  std::vector<std::vector<double>> slots;
};
using NaiveUpdate = void (*)(NaiveRow* r, const std::vector<double>& grad,
                             const StepSettings& settings, double missed);

void NaiveSgd(NaiveRow* r, const std::vector<double>& grad, const StepSettings& s, double) {
  for (size_t d = 0; d < grad.size(); ++d) r->row[d] -= s.learning_rate * grad[d];
}

void NaiveAdagrad(NaiveRow* r, const std::vector<double>& grad, const StepSettings& s, double) {
  for (size_t d = 0; d < grad.size(); ++d) {
    double& accumulator = r->slots[0][d];
    accumulator += grad[d] * grad[d];
    r->row[d] -= s.learning_rate * grad[d] / std::sqrt(accumulator + s.hyperparameters[0]);
  }
}

void NaiveRowWiseAdagrad(NaiveRow* r, const std::vector<double>& grad, const StepSettings& s,
                         double) {
  double& accumulator = r->slots[0][0];
  for (const double g : grad) accumulator += g * g / grad.size();
  for (size_t d = 0; d < grad.size(); ++d) {
    r->row[d] -= s.learning_rate * grad[d] / (std::sqrt(accumulator) + s.hyperparameters[0]);
  }
}

void NaiveAdam(NaiveRow* r, const std::vector<double>& grad, const StepSettings& s, double missed) {
  const double beta_1 = s.hyperparameters[0], beta_2 = s.hyperparameters[1];
  const double step = static_cast<double>(s.step);
  for (size_t d = 0; d < grad.size(); ++d) {
    double& m = r->slots[0][d];
    double& v = r->slots[1][d];
    m = beta_1 * m * std::pow(beta_1, missed) + (1 - beta_1) * grad[d];
    v = beta_2 * v * std::pow(beta_2, missed) + (1 - beta_2) * grad[d] * grad[d];
    double v_used = v;
    if (s.hyperparameters[3] != 0) v_used = r->slots[2][d] = std::max(r->slots[2][d], v);
    const double m_unbiased = m / (1 - std::pow(beta_1, step));
    const double v_unbiased = v_used / (1 - std::pow(beta_2, step));
    // Keras adds epsilon before the correction of v.
    const double epsilon = s.hyperparameters[2] / std::sqrt(1 - std::pow(beta_2, step));
    r->row[d] -= s.learning_rate * m_unbiased / (std::sqrt(v_unbiased) + epsilon);
  }
}

struct RuleCase {
  const char* name;
  std::vector<double> hyperparameters;
  NaiveUpdate naive;  // null: only checked to stay finite, since tests/ops compares it with Keras's
};

const RuleCase kRuleCases[] = {
    {"sgd", {}, NaiveSgd},
    {"adagrad", {1e-3}, NaiveAdagrad},
    {"row_wise_adagrad", {1e-3}, NaiveRowWiseAdagrad},
    {"adam", {0.75, 0.875, 1e-3, 0}, NaiveAdam},
    {"adam", {0.75, 0.875, 1e-3, 1}, NaiveAdam},
    {"momentum", {0.75, 0}, nullptr},
    {"momentum", {0.75, 1}, nullptr},
    {"rmsprop", {0.75, 0, 1e-3, 0}, nullptr},
    {"rmsprop", {0.75, 0.5, 1e-3, 0}, nullptr},
    {"rmsprop", {0.75, 0, 1e-3, 1}, nullptr},
    {"rmsprop", {0.75, 0.5, 1e-3, 1}, nullptr},
    {"ftrl", {-0.5, 0, 0, 0, 0}, nullptr},
    {"ftrl", {-0.75, 1e-3, 1e-3, 1e-3, 1e-3}, nullptr},
};

// What one Table points to, in blocks of exactly its size.
struct TableMemory {
  TableMemory(const RuleInfo& rule, const std::vector<double>& hyperparameters, int64_t num_rows,
              int64_t dim, std::mt19937_64* random)
      : dim(dim),
        slot_dim(rule.slots_per_row ? 1 : dim),
        values(RandomFloats(random, num_rows * dim)),
        slots(rule.num_slots(hyperparameters.data()),
              std::vector<float>(num_rows * slot_dim, 0.125f)),
        changed_rows((num_rows + 31) / 32),
        last_steps(rule.has_moments ? num_rows : 0) {}

  int64_t num_rows() const { return values.size() / dim; }
  Table View() {
    Table table = {};
    table.table = values.data();
    table.num_slots = static_cast<int>(slots.size());
    table.changed_rows = changed_rows.data();
    table.dim = dim;
    table.slot_dim = slot_dim;
    for (size_t s = 0; s < slots.size(); ++s) table.slots[s] = slots[s].data();
    if (!last_steps.empty()) table.last_steps = last_steps.data();
    return table;
  }

  int64_t dim;
  int64_t slot_dim;
  std::vector<float> values;
  std::vector<std::vector<float>> slots;
  std::vector<uint32_t> changed_rows;
  std::vector<int32_t> last_steps;
};

// The same in double.
struct NaiveTable {
  explicit NaiveTable(const TableMemory& table) : last_steps(table.num_rows()) {
    for (int64_t id = 0; id < table.num_rows(); ++id) {
      const float* row = table.values.data() + id * table.dim;
      NaiveRow naive = {std::vector<double>(row, row + table.dim), {}};
      for (const std::vector<float>& slot : table.slots) {
        const float* values = slot.data() + id * table.slot_dim;
        naive.slots.emplace_back(values, values + table.slot_dim);
      }
      rows.push_back(naive);
    }
  }

  std::vector<double> Values() const {
    std::vector<double> values;
    for (const NaiveRow& r : rows) values.insert(values.end(), r.row.begin(), r.row.end());
    return values;
  }
  std::vector<double> Slot(size_t s) const {
    std::vector<double> values;
    for (const NaiveRow& r : rows) {
      values.insert(values.end(), r.slots[s].begin(), r.slots[s].end());
    }
    return values;
  }

  void Update(NaiveUpdate update, int64_t id, const float* grad, const StepSettings& settings) {
    NaiveRow& r = rows[id];
    std::vector<double> used(grad, grad + r.row.size());
    for (double& g : used) {
      g *= settings.grad_scale;
      const double limit = settings.clip_value;
      if (limit != 0) g = std::min(std::max(g, -limit), limit);
    }
    for (double& value : r.row) value -= value * settings.weight_decay * settings.learning_rate;
    const int64_t missed = last_steps[id] == 0 ? 0 : settings.step - last_steps[id] - 1;
    last_steps[id] = settings.step;
    update(&r, used, settings, static_cast<double>(missed % (int64_t{1} << 32)));
  }

  std::vector<NaiveRow> rows;
  std::vector<int64_t> last_steps;
};

// The rows that a step updates in one table, in random order.
struct Touched {
  Touched(int64_t num_rows, int64_t dim, std::mt19937_64* random) {
    std::vector<int64_t> ids(num_rows);
    for (int64_t id = 0; id < num_rows; ++id) ids[id] = id;
    for (int64_t i = num_rows - 1; i > 0; --i) std::swap(ids[i], ids[RandomBelow(random, i + 1)]);
    ids.resize(1 + RandomBelow(random, num_rows));
    grads = RandomFloats(random, ids.size() * dim);
    rows = std::vector<LiveRow>(ids.size());
    for (size_t i = 0; i < ids.size(); ++i) {
      rows[i] = {ids[i], grads.data() + i * dim, static_cast<int32_t>(i), 0};
    }
  }
  Touched(Touched&&) = default;

  // The first alone, then the others, if any.
  void AddRuns(int64_t table, std::vector<LiveRows::Run>* runs) const {
    runs->push_back({table, rows.data(), 1});
    runs->push_back({table, rows.data() + 1, static_cast<int64_t>(rows.size()) - 1});
  }

  std::vector<float> grads;
  std::vector<LiveRow> rows;
};

// Rows that a step did not touch, bit for bit: `after` where touched, `before` elsewhere.
template <typename T>
void CheckOthersUnchanged(const std::vector<T>& after, std::vector<T> before, int64_t dim,
                          const Touched& touched) {
  if (after.empty()) return;
  for (const LiveRow& row : touched.rows) {
    std::copy_n(after.begin() + row.id * dim, dim, before.begin() + row.id * dim);
  }
  CHECK_SAME_BITS(after, before);
}

void CheckStep(const TableMemory& after, const TableMemory& before, const Touched& touched,
               int64_t step) {
  CheckOthersUnchanged(after.values, before.values, after.dim, touched);
  CheckOthersUnchanged(after.last_steps, before.last_steps, 1, touched);
  bool all_finite = true, last_steps_match = true;
  for (const float value : after.values) all_finite &= std::isfinite(value);
  for (size_t s = 0; s < after.slots.size(); ++s) {
    CheckOthersUnchanged(after.slots[s], before.slots[s], after.slot_dim, touched);
    for (const float value : after.slots[s]) all_finite &= std::isfinite(value);
  }
  CHECK(all_finite);
  std::vector<uint32_t> changed_rows = before.changed_rows;
  for (const LiveRow& row : touched.rows) changed_rows[row.id / 32] |= 1u << (row.id % 32);
  CHECK(after.changed_rows == changed_rows);
  if (after.last_steps.empty()) return;
  for (const LiveRow& row : touched.rows) {
    last_steps_match &=
        static_cast<uint32_t>(after.last_steps[row.id]) == static_cast<uint32_t>(step);
  }
  CHECK(last_steps_match);
}

std::vector<StepSettings> AllSettings(int64_t step, const RuleCase& rule) {
  StepSettings plain;
  plain.step = step;
  plain.learning_rate = 0.125;
  plain.hyperparameters = rule.hyperparameters.data();
  std::vector<StepSettings> settings(4, plain);
  settings[1].grad_scale = 2;
  settings[2].clip_value = 0.5;
  settings[3].grad_scale = 0.75;
  settings[3].clip_value = 0.25;
  settings[3].weight_decay = 0.0625;
  return settings;
}

std::vector<TableMemory> RandomTables(const RuleInfo& rule, const RuleCase& rule_case,
                                      std::mt19937_64* random) {
  std::vector<TableMemory> tables;
  for (const auto& shape : {std::pair<int64_t, int64_t>{1500, 1}, {1, 3}, {60, 16}, {60, 33}}) {
    tables.emplace_back(rule, rule_case.hyperparameters, shape.first, shape.second, random);
  }
  return tables;
}

void UpdateAll(const RuleInfo& rule, const std::vector<StepSettings>& settings,
               const std::vector<Touched>& touched, const ParallelFor& parallel_for,
               std::vector<TableMemory>* tables) {
  std::vector<Table> views;
  LiveRows::Found found;
  found.counts.resize(tables->size());
  for (size_t t = 0; t < tables->size(); ++t) {
    views.push_back((*tables)[t].View());
    touched[t].AddRuns(t, &found.runs);
  }
  const std::vector<bool> no_refresh(tables->size(), false);
  UpdateRows(rule, views, settings, no_refresh, found, parallel_for);
}

void CheckSame(const TableMemory& table, const TableMemory& other) {
  CHECK_SAME_BITS(table.values, other.values);
  CHECK_SAME_BITS(table.last_steps, other.last_steps);
  CHECK_SAME_BITS(table.changed_rows, other.changed_rows);
  for (size_t s = 0; s < table.slots.size(); ++s) CHECK_SAME_BITS(table.slots[s], other.slots[s]);
}

void CheckNaive(const TableMemory& table, const NaiveTable& naive) {
  // Values are below 4 and 8 steps round some 10 times each by 2^-24 of them: 2e-5.
  CHECK_NEAR(table.values, naive.Values(), 2e-5);
  for (size_t s = 0; s < table.slots.size(); ++s) {
    CHECK_NEAR(table.slots[s], naive.Slot(s), 2e-5);
  }
}

void TestSteps(const RuleCase& rule_case, const std::vector<int64_t>& steps) {
  current_case = rule_case.name;
  CHECK(FindRule(rule_case.name) != nullptr);
  if (FindRule(rule_case.name) == nullptr) return;
  const RuleInfo& rule = *FindRule(rule_case.name);
  CHECK_EQ(rule.num_hyperparameters, static_cast<int>(rule_case.hyperparameters.size()));
  std::mt19937_64 random(1);
  std::vector<TableMemory> tables = RandomTables(rule, rule_case, &random);
  std::vector<NaiveTable> naive(tables.begin(), tables.end());
  for (const int64_t step : steps) {
    current_case = std::string(rule_case.name) + ", step " + std::to_string(step);
    const std::vector<StepSettings> settings = AllSettings(step, rule_case);
    std::vector<Touched> touched;
    for (const TableMemory& table : tables) {
      touched.emplace_back(table.num_rows(), table.dim, &random);
    }
    std::vector<std::vector<TableMemory>> after;  // by ParallelFor
    for (const ParallelFor& parallel_for : AllParallelFors()) {
      after.push_back(tables);
      UpdateAll(rule, settings, touched, parallel_for, &after.back());
    }
    for (size_t t = 0; t < tables.size(); ++t) {
      CheckStep(after[0][t], tables[t], touched[t], step);
      for (size_t p = 1; p < after.size(); ++p) CheckSame(after[p][t], after[0][t]);
      if (rule_case.naive == nullptr) continue;
      for (const LiveRow& row : touched[t].rows) {
        naive[t].Update(rule_case.naive, row.id, row.grad, settings[t]);
      }
      CheckNaive(after[0][t], naive[t]);
    }
    tables = after[0];
  }
  for (const TableMemory& table : tables) {
    AddToDigest(table.values);
    for (const std::vector<float>& slot : table.slots) AddToDigest(slot);
  }
}

}  // namespace

void TestUpdateRows() {
  CHECK(FindRule("") == nullptr);
  CHECK(FindRule("Adam") == nullptr);
  // Past int32 and uint32: a row touched before is touched again on the other side.
  constexpr int64_t kTwo31 = int64_t{1} << 31, kTwo32 = int64_t{1} << 32;
  for (const RuleCase& rule_case : kRuleCases) {
    TestSteps(rule_case, {1, 2, 3, 7, 8, 40, 41, 500});
    TestSteps(rule_case, {kTwo31 - 3, kTwo31 - 1, kTwo31, kTwo31 + 5, kTwo32 - 3, kTwo32 + 2,
                          kTwo32 + 4, kTwo32 + kTwo31});
  }
}

}  // namespace slipstream
