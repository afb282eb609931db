#include "update_rows.h"

#include <algorithm>

#include "simd.h"

namespace slipstream {
namespace {

// Rows that one task updates: enough to hide the start of a task, few enough to share out evenly.
constexpr int64_t kRowsPerTask = 512;

// grad [dim] scaled and clipped as the settings say; in `clipped` [dim] where that changes
// anything.
SLIPSTREAM_INLINE const float* Clip(const float* grad, int64_t dim, const StepSettings& settings,
                                    float* __restrict clipped) {
  const float scale = static_cast<float>(settings.grad_scale);
  const float limit = static_cast<float>(settings.clip_value);
  if (scale == 1 && limit == 0) return grad;
  for (int64_t d = 0; d < dim; ++d) {
    const float scaled = grad[d] * scale;
    clipped[d] = limit == 0 ? scaled : std::min(std::max(scaled, -limit), limit);
  }
  return clipped;
}

// Sets the row's bit. Rows of other threads share the word; most rows have been changed before, and
// a word that is only read stays in every core's cache.
SLIPSTREAM_INLINE void MarkChanged(uint32_t* changed_rows, int64_t id) {
  uint32_t* word = changed_rows + id / 32;
  const uint32_t bit = uint32_t{1} << (id % 32);
  if ((__atomic_load_n(word, __ATOMIC_RELAXED) & bit) == 0) {
    __atomic_fetch_or(word, bit, __ATOMIC_RELAXED);
  }
}

template <typename Rule>
SLIPSTREAM_INLINE void Update(const Table& table, const LiveRow* rows, int64_t num_rows,
                              const StepSettings& settings, float* clipped) {
  const Rule rule(settings);
  const int64_t dim = table.dim;
  const float decay = static_cast<float>(settings.weight_decay);
  const float learning_rate = static_cast<float>(settings.learning_rate);
  const uint32_t step = static_cast<uint32_t>(settings.step);
  for (int64_t i = 0; i < num_rows; ++i) {
    if (i + kPrefetchRows < num_rows) {
      const LiveRow& ahead = rows[i + kPrefetchRows];
      PrefetchRow(table.table + ahead.id * dim, dim);
      for (int s = 0; s < table.num_slots; ++s) {
        PrefetchRow(table.slots[s] + ahead.id * table.slot_dim, table.slot_dim);
      }
      __builtin_prefetch(table.changed_rows + ahead.id / 32);
      if (table.last_steps != nullptr) __builtin_prefetch(table.last_steps + ahead.id, 1, 3);
      PrefetchRow(ahead.grad, dim);
    }
    const int64_t id = rows[i].id;
    RowState state;
    state.row = table.table + id * dim;
    for (int s = 0; s < kMaxSlots; ++s) {
      state.slots[s] = s < table.num_slots ? table.slots[s] + id * table.slot_dim : nullptr;
    }
    MarkChanged(table.changed_rows, id);
    uint32_t missed = 0;
    if (table.last_steps != nullptr) {
      const uint32_t last = static_cast<uint32_t>(table.last_steps[id]);
      if (last != 0) missed = step - last - 1;
      table.last_steps[id] = static_cast<int32_t>(step);
    }
    if (decay != 0) {
      for (int64_t d = 0; d < dim; ++d) state.row[d] -= state.row[d] * decay * learning_rate;
    }
    rule.Update(state, Clip(rows[i].grad, dim, settings, clipped), dim, missed);
  }
}

// A plain function per rule, because function multiversioning does not go with templates.
#define SLIPSTREAM_DEFINE_UPDATE(Rule)                                                         \
  SLIPSTREAM_SIMD void Update##Rule(const Table& table, const LiveRow* rows, int64_t num_rows, \
                                    const StepSettings& settings, float* clipped) {            \
    Update<Rule>(table, rows, num_rows, settings, clipped);                                    \
  }
SLIPSTREAM_DEFINE_UPDATE(Sgd)
SLIPSTREAM_DEFINE_UPDATE(Momentum)
SLIPSTREAM_DEFINE_UPDATE(Adagrad)
SLIPSTREAM_DEFINE_UPDATE(RowWiseAdagrad)
SLIPSTREAM_DEFINE_UPDATE(Adam)
SLIPSTREAM_DEFINE_UPDATE(RmsProp)
SLIPSTREAM_DEFINE_UPDATE(Ftrl)
#undef SLIPSTREAM_DEFINE_UPDATE

template <typename Rule>
constexpr RuleInfo Info(const char* name, decltype(RuleInfo::update) update) {
  return {name,  Rule::kNumHyperparameters, Rule::NumSlots, Rule::kSlotsPerRow, Rule::kHasMoments,
          update};
}

const RuleInfo kRules[] = {
    Info<Sgd>("sgd", UpdateSgd),
    Info<Momentum>("momentum", UpdateMomentum),
    Info<Adagrad>("adagrad", UpdateAdagrad),
    Info<RowWiseAdagrad>("row_wise_adagrad", UpdateRowWiseAdagrad),
    Info<Adam>("adam", UpdateAdam),
    Info<RmsProp>("rmsprop", UpdateRmsProp),
    Info<Ftrl>("ftrl", UpdateFtrl),
};

}  // namespace

const RuleInfo* FindRule(const std::string& name) {
  for (const RuleInfo& rule : kRules) {
    if (name == rule.name) return &rule;
  }
  return nullptr;
}

void UpdateRows(const RuleInfo& rule, const std::vector<Table>& tables,
                const std::vector<StepSettings>& settings, const std::vector<LiveRows::Run>& runs,
                const ParallelFor& parallel_for) {
  std::vector<LiveRows::Run> tasks;
  for (const LiveRows::Run& run : runs) {
    for (int64_t begin = 0; begin < run.num_rows; begin += kRowsPerTask) {
      tasks.push_back({run.table, run.rows + begin, std::min(kRowsPerTask, run.num_rows - begin)});
    }
  }
  parallel_for(tasks.size(), [&](int64_t i) {
    static thread_local Buffer<float> clipped;
    const LiveRows::Run& task = tasks[i];
    const Table& table = tables[task.table];
    rule.update(table, task.rows, task.num_rows, settings[task.table], clipped.Reserve(table.dim));
  });
}

}  // namespace slipstream
