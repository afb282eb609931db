// UpdateRows against the same equations in double, and what it must leave alone.
#include "../kernels/update_rows.h"

#include <algorithm>

#include "test_support.h"

namespace slipstream {
namespace {

// A row and its slots in double, as a dense optimizer has them: it knows no steps but all.
struct NaiveRow {
  std::vector<double> row;
  std::vector<std::vector<double>> slots;
};
// One step of a dense optimizer; the gradient is 0 in a step that misses the row.
using NaiveStep = void (*)(NaiveRow* r, const std::vector<double>& grad,
                           const StepSettings& settings, int64_t step);

void NaiveSgd(NaiveRow* r, const std::vector<double>& grad, const StepSettings& s, int64_t) {
  for (size_t d = 0; d < grad.size(); ++d) r->row[d] -= s.learning_rate * grad[d];
}

void NaiveMomentum(NaiveRow* r, const std::vector<double>& grad, const StepSettings& s, int64_t) {
  const double mu = s.hyperparameters[0];
  for (size_t d = 0; d < grad.size(); ++d) {
    double& m = r->slots[0][d];
    m = mu * m - s.learning_rate * grad[d];
    r->row[d] += s.hyperparameters[1] != 0 ? mu * m - s.learning_rate * grad[d] : m;
  }
}

void NaiveAdagrad(NaiveRow* r, const std::vector<double>& grad, const StepSettings& s, int64_t) {
  for (size_t d = 0; d < grad.size(); ++d) {
    double& accumulator = r->slots[0][d];
    accumulator += grad[d] * grad[d];
    r->row[d] -= s.learning_rate * grad[d] / std::sqrt(accumulator + s.hyperparameters[0]);
  }
}

void NaiveRowWiseAdagrad(NaiveRow* r, const std::vector<double>& grad, const StepSettings& s,
                         int64_t) {
  double& accumulator = r->slots[0][0];
  for (const double g : grad) accumulator += g * g / grad.size();
  for (size_t d = 0; d < grad.size(); ++d) {
    r->row[d] -= s.learning_rate * grad[d] / (std::sqrt(accumulator) + s.hyperparameters[0]);
  }
}

void NaiveAdam(NaiveRow* r, const std::vector<double>& grad, const StepSettings& s, int64_t step) {
  const double beta_1 = s.hyperparameters[0], beta_2 = s.hyperparameters[1];
  const double t = static_cast<double>(step);
  for (size_t d = 0; d < grad.size(); ++d) {
    double& m = r->slots[0][d];
    double& v = r->slots[1][d];
    m = beta_1 * m + (1 - beta_1) * grad[d];
    v = beta_2 * v + (1 - beta_2) * grad[d] * grad[d];
    double v_used = v;
    if (s.hyperparameters[3] != 0) v_used = r->slots[2][d] = std::max(r->slots[2][d], v);
    const double alpha =
        s.learning_rate * std::sqrt(1 - std::pow(beta_2, t)) / (1 - std::pow(beta_1, t));
    r->row[d] -= alpha * m / (std::sqrt(v_used) + s.hyperparameters[2]);
  }
}

void NaiveRmsProp(NaiveRow* r, const std::vector<double>& grad, const StepSettings& s, int64_t) {
  const double rho = s.hyperparameters[0], mu = s.hyperparameters[1];
  const bool centered = s.hyperparameters[3] != 0;
  for (size_t d = 0; d < grad.size(); ++d) {
    double& v = r->slots[0][d];
    v = rho * v + (1 - rho) * grad[d] * grad[d];
    double variance = v;
    if (centered) {
      double& mean = r->slots[1][d];
      mean = rho * mean + (1 - rho) * grad[d];
      variance -= mean * mean;
    }
    double moved = s.learning_rate * grad[d] / std::sqrt(variance + s.hyperparameters[2]);
    if (mu > 0) moved = r->slots[1 + centered][d] = mu * r->slots[1 + centered][d] + moved;
    r->row[d] -= moved;
  }
}

struct RuleCase {
  const char* name;
  std::vector<double> hyperparameters;
  NaiveStep naive;  // null: only checked to stay finite, since tests/ops compares it with Keras's
};

const RuleCase kRuleCases[] = {
    {"sgd", {}, NaiveSgd},
    {"adagrad", {1e-3}, NaiveAdagrad},
    {"row_wise_adagrad", {1e-3}, NaiveRowWiseAdagrad},
    {"adam", {0.75, 0.875, 1e-6, 0}, NaiveAdam},
    {"adam", {0.75, 0.875, 1e-6, 1}, NaiveAdam},
    {"momentum", {0.75, 0}, NaiveMomentum},
    {"momentum", {0.75, 1}, NaiveMomentum},
    {"rmsprop", {0.75, 0, 1e-3, 0}, NaiveRmsProp},
    {"rmsprop", {0.75, 0.5, 1e-3, 0}, NaiveRmsProp},
    {"rmsprop", {0.75, 0, 1e-3, 1}, NaiveRmsProp},
    {"rmsprop", {0.75, 0.5, 1e-3, 1}, NaiveRmsProp},
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
              // Moments begin at 0.
              std::vector<float>(num_rows * slot_dim, rule.has_moments ? 0 : 0.125f)),
        changed_rows((num_rows + 31) / 32),
        last_steps(num_rows) {}

  int64_t num_rows() const { return values.size() / dim; }
  Table View() {
    Table table = {};
    table.num_rows = num_rows();
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
      dense.push_back(naive);
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

  // What a dense optimizer makes of the row up to this step, and how it goes on if no gradient ever
  // comes again, where the row missed a step before this one.
  void Update(NaiveStep step_once, int64_t id, const float* grad, const StepSettings& settings) {
    NaiveRow& r = dense[id];
    std::vector<double> used(grad, grad + r.row.size());
    for (double& g : used) {
      g *= settings.grad_scale;
      const double limit = settings.clip_value;
      if (limit != 0) g = std::min(std::max(g, -limit), limit);
    }
    const int64_t missed = settings.step - 1 - last_steps[id];
    last_steps[id] = settings.step;
    const double kept = 1 - settings.weight_decay * settings.learning_rate;
    MissSteps(step_once, settings.step - missed, missed, settings, &r);
    for (double& value : r.row) value *= std::pow(kept, static_cast<double>(missed + 1));
    step_once(&r, used, settings, settings.step);
    rows[id] = r;
    if (missed > 0) {
      NaiveRow later = r;
      MissSteps(step_once, settings.step + 1, kManySteps, settings, &later);
      rows[id].row = later.row;
    }
  }

  // Steps from `first` on that bring no gradient.
  static constexpr int64_t kManySteps = 300;  // after which momentum is gone
  static void MissSteps(NaiveStep step_once, int64_t first, int64_t num,
                        const StepSettings& settings, NaiveRow* r) {
    const std::vector<double> nothing(r->row.size(), 0);
    for (int64_t i = 0; i < std::min(num, kManySteps); ++i) {
      step_once(r, nothing, settings, first + i);
    }
    // All moments are; only AMSGrad's largest stays, and what Adagrad adds up.
    for (size_t s = 0; num > kManySteps && settings.hyperparameters != nullptr && s < 2; ++s) {
      const bool decays = step_once == NaiveAdam || step_once == NaiveRmsProp;
      if (decays && s < r->slots.size()) std::fill(r->slots[s].begin(), r->slots[s].end(), 0);
    }
  }

  std::vector<NaiveRow> dense;
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
    last_steps_match &= StepsSince(after.last_steps[row.id], step) == 0;
    last_steps_match &= StepsSince(after.last_steps[row.id], step + 7) == 7;
  }
  CHECK(last_steps_match);
}

std::vector<StepSettings> AllSettings(int64_t step, const RuleCase& rule,
                                      const std::vector<float>& tails) {
  StepSettings plain;
  plain.tails = tails.data();
  plain.num_tails = tails.size();
  plain.tail_rates[0] = plain.tail_rates[1] = 0.125;
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
  // Values are below 4 and 8 steps round some 10 times each by 2^-24 of them: 2e-5. Adam's tails
  // are longer by what rounds in them.
  CHECK_NEAR(table.values, naive.Values(), 2e-3);
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
  std::vector<float> tails;
  const std::vector<double>& h = rule_case.hyperparameters;
  if (current_case == "adam") tails = AdamTails(h[0], h[1], h[3] != 0, 100);
  std::mt19937_64 random(1);
  std::vector<TableMemory> tables = RandomTables(rule, rule_case, &random);
  std::vector<NaiveTable> naive(tables.begin(), tables.end());
  for (const int64_t step : steps) {
    current_case = std::string(rule_case.name) + ", step " + std::to_string(step);
    const std::vector<StepSettings> settings = AllSettings(step, rule_case, tails);
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

// Rows that are behind are then where a dense optimizer has them; others keep their bits.
void TestSettle(const RuleCase& rule_case) {
  const RuleInfo& rule = *FindRule(rule_case.name);
  std::vector<float> tails;
  const std::vector<double>& h = rule_case.hyperparameters;
  if (std::string(rule_case.name) == "adam") tails = AdamTails(h[0], h[1], h[3] != 0, 100);
  for (const double decay : {0.0, 0.0625}) {
    current_case = std::string(rule_case.name) + " settled, decay " + std::to_string(decay);
    std::mt19937_64 random(2);
    TableMemory table(rule, h, 40, 9, &random);
    NaiveTable naive(table);
    StepSettings settings = AllSettings(1, rule_case, tails)[0];
    settings.weight_decay = decay;
    const std::vector<bool> no_refresh(1, false);
    for (int64_t step = 1; step <= 12; ++step) {
      settings.step = step;
      const Touched touched(table.num_rows(), table.dim, &random);
      LiveRows::Found found;
      found.counts.resize(1);
      touched.AddRuns(0, &found.runs);
      UpdateRows(rule, {table.View()}, {settings}, no_refresh, found, AllParallelFors()[0]);
      for (const LiveRow& row : touched.rows) {
        naive.Update(rule_case.naive, row.id, row.grad, settings);
      }
    }
    settings.step = 15;
    const TableMemory before = table;
    int64_t num_spent = 0, num_behind = 0;
    for (int64_t id = 0; id < table.num_rows(); ++id) {
      const uint32_t clock = static_cast<uint32_t>(before.last_steps[id]);
      if (clock == 0) continue;
      const int64_t behind = 15 - naive.last_steps[id];
      const double kept = std::pow(1 - decay * settings.learning_rate, behind);
      if ((clock & kSpentBit) != 0) {
        ++num_spent;
        for (double& value : naive.rows[id].row) value *= kept;
        continue;
      }
      ++num_behind;
      NaiveRow r = naive.dense[id];
      NaiveTable::MissSteps(rule_case.naive, naive.last_steps[id] + 1, behind, settings, &r);
      for (double& value : r.row) value *= kept;
      naive.rows[id].row = r.row;
    }
    std::vector<TableMemory> after;
    for (const ParallelFor& parallel_for : AllParallelFors()) {
      after.push_back(before);
      SettleRows(rule, after.back().View(), settings, true, parallel_for);
      CheckSame(after.back(), after[0]);
    }
    // A dense optimizer decays a row between its movements, not behind them.
    CHECK_NEAR(after[0].values, naive.Values(), decay == 0 ? 1e-3 : 2e-2);
    CHECK(num_behind > 0);
    CHECK(num_spent > 0 || h.empty() || rule_case.name == std::string("adagrad") ||
          rule_case.name == std::string("row_wise_adagrad") || h[1] == 0);
    // Again there is nothing to do.
    TableMemory again = after[0];
    SettleRows(rule, again.View(), settings, true, AllParallelFors()[0]);
    CheckSame(again, after[0]);
  }
}

void TestRowClock() {
  current_case = "row clock";
  constexpr int64_t kTwo31 = int64_t{1} << 31;
  for (const int64_t step : {int64_t{1}, int64_t{5}, kTwo31 - 2, kTwo31 - 1, kTwo31, kTwo31 + 1,
                             2 * kTwo31, 2 * kTwo31 + 1, 5 * kTwo31 - 3}) {
    for (const bool is_spent : {false, true}) {
      const uint32_t clock = ClockOf(step, is_spent);
      CHECK((clock & ~kSpentBit) != 0);
      for (const int64_t num : {0, 1, 2, 1000, 1 << 29})
        CHECK_EQ(StepsSince(clock, step + num), num);
      // The counter was set back.
      for (const int64_t num : {1, 3, 1000}) {
        if (step - num >= 1) CHECK_EQ(StepsSince(clock, step - num), 0);
      }
      CHECK_EQ(TouchAt(clock, step + 10, 3).num_missed, 7u);
      CHECK_EQ(TouchAt(clock, step + 2, 3).num_missed, 0u);
      CHECK_EQ(TouchAt(clock, step + 2, 1).was_spent, is_spent);
    }
  }
  CHECK_EQ(StepsSince(0, 12), 12);
  CHECK(StepsSince(0, 5 * kTwo31) > (1 << 29));
}

}  // namespace

void TestUpdateRows() {
  TestRowClock();
  for (const RuleCase& rule_case : kRuleCases) {
    if (rule_case.naive != nullptr) TestSettle(rule_case);
  }
  CHECK(FindRule("") == nullptr);
  CHECK(FindRule("Adam") == nullptr);
  // Past int32 and uint32: a row touched before is touched again on the other side.
  constexpr int64_t kTwo31 = int64_t{1} << 31, kTwo32 = int64_t{1} << 32;
  for (const RuleCase& rule_case : kRuleCases) {
    TestSteps(rule_case, {1, 2, 3, 7, 8, 40, 41, 500});
    TestSteps(rule_case, {kTwo31 - 3, kTwo31 - 1, kTwo31, kTwo31 + 5, kTwo31 + 900});
    TestSteps(rule_case, {kTwo32 - 3, kTwo32 + 2, kTwo32 + 4, kTwo32 + 1000});
  }
}

}  // namespace slipstream
