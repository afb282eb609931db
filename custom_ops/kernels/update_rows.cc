#include "update_rows.h"

#include <algorithm>
#include <cstring>

#include "simd.h"

namespace slipstream {
namespace {

// Rows that one task updates: enough to hide the start of a task, few enough to share out evenly.
constexpr int64_t kRowsPerTask = 512;
// The same of a pass over the clocks of rows, few of which are behind.
constexpr int64_t kSettledRowsPerTask = 16384;

// grad [dim] scaled and clipped as the settings say; in `clipped` [dim] where that changes
// anything.
SLIPSTREAM_INLINE const float* Clip(const float* grad, int64_t dim, const StepSettings& settings,
                                    float* __restrict clipped) {
  const float scale = static_cast<float>(settings.grad_scale);
  const float limit = static_cast<float>(settings.clip_value);
  if (scale == 1 && limit == 0) return grad;
  for (int64_t d = 0; d < dim; ++d) clipped[d] = ScaledAndClipped(grad[d], scale, limit);
  return clipped;
}

// Rare, and not to be compiled into every rule.
__attribute__((noinline)) void NoteCandidate(const Candidate& candidate, UpdateResult* result) {
  result->candidates.push_back(candidate);
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

// Counts the update of a row that is not popular; one that has had enough is a candidate.
SLIPSTREAM_INLINE void CountUpdate(const Staleness& staleness, const LiveRow& row,
                                   int32_t num_batches, int64_t step, UpdateResult* result) {
  const int32_t num_updates = std::numeric_limits<int32_t>::max() - row.state < num_batches
                                  ? std::numeric_limits<int32_t>::max()
                                  : row.state + num_batches;
  staleness.row_states[row.id] = num_updates;
  if (HasEnough(staleness.policy, num_updates, step)) {
    NoteCandidate({row.id, row.first_lookup}, result);
  }
}

// The gradient that a popular row is updated with, in `scratch` [dim] where something is held, and
// what is held no more. A null `grad` is none.
SLIPSTREAM_INLINE const float* TakeHeld(const Staleness& staleness, int64_t entry,
                                        const float* grad, float* __restrict scratch) {
  if (staleness.entries[entry].held_steps == 0) return grad;
  float* __restrict held = staleness.held(entry);
  for (int64_t d = 0; d < staleness.dim; ++d) {
    scratch[d] = grad == nullptr ? held[d] : held[d] + grad[d];
    held[d] = 0;
  }
  return scratch;
}

// row [dim] of a bfloat16 table, as float.
SLIPSTREAM_INLINE void Widen(const uint16_t* values, int64_t dim, float* __restrict row) {
  for (int64_t d = 0; d < dim; ++d) row[d] = FromBfloat16(values[d]);
}

// Rounds row [dim] into the table, and to what the table has then.
SLIPSTREAM_INLINE void RoundRow(uint32_t key, int64_t dim, float* __restrict row,
                                uint16_t* __restrict values) {
  for (int64_t d = 0; d < dim; ++d) {
    values[d] = ToBfloat16(row[d], RoundingBits(key, static_cast<uint32_t>(d)));
    row[d] = FromBfloat16(values[d]);
  }
}

template <typename Rule>
SLIPSTREAM_INLINE Rule RuleOf(const StepSettings& settings) {
  return Rule(settings);
}

// With the powers of its betas: a step that computes them for each row takes some 3% longer.
constexpr uint32_t kNumDecays = 1024;
struct AdamDecays {
  double beta_1 = -1, beta_2 = -1;
  bool amsgrad = false;
  Adam::Decay decays[kNumDecays];
};
template <>
__attribute__((noinline)) Adam RuleOf<Adam>(const StepSettings& settings) {
  static thread_local AdamDecays known;
  Adam rule(settings);
  if (known.beta_1 != rule.beta_1 || known.beta_2 != rule.beta_2 || known.amsgrad != rule.amsgrad) {
    for (uint32_t n = 0; n < kNumDecays; ++n) known.decays[n] = rule.DecayOf(n);
    known.beta_1 = rule.beta_1;
    known.beta_2 = rule.beta_2;
    known.amsgrad = rule.amsgrad;
  }
  rule.decays = known.decays;
  rule.num_decays = kNumDecays;
  return rule;
}

// scratch [kScratchRows dim]
constexpr int64_t kScratchRows = 4;
template <typename Rule>
SLIPSTREAM_INLINE void Update(const Table& table, const LiveRow* rows, int64_t num_rows,
                              const StepSettings& settings, float* scratch, UpdateResult* result) {
  const Rule rule = RuleOf<Rule>(settings);
  const int64_t dim = table.dim;
  const float decay = static_cast<float>(settings.weight_decay);
  const float learning_rate = static_cast<float>(settings.learning_rate);
  const Staleness* staleness = table.staleness;
  float* row_before = scratch + 2 * dim;
  for (int64_t i = 0; i < num_rows; ++i) {
    if (i + kPrefetchRows < num_rows) {
      const LiveRow& ahead = rows[i + kPrefetchRows];
      if (table.bfloat16_table == nullptr) {
        PrefetchRow(table.table + ahead.id * dim, dim);
      } else {
        const uint16_t* row = table.bfloat16_table + ahead.id * dim;
        PrefetchRow(reinterpret_cast<const float*>(row), (dim + 1) / 2);
      }
      for (int s = 0; s < table.num_slots; ++s) {
        PrefetchRow(table.slots[s] + ahead.id * table.slot_dim, table.slot_dim);
      }
      __builtin_prefetch(table.changed_rows + ahead.id / 32);
      if (table.last_steps != nullptr) __builtin_prefetch(table.last_steps + ahead.id, 1, 3);
      if (staleness != nullptr && ahead.state >= 0) {
        __builtin_prefetch(staleness->row_states + ahead.id, 1, 3);
      } else if (staleness != nullptr) {
        const int64_t entry = -1 - static_cast<int64_t>(ahead.state);
        __builtin_prefetch(staleness->entries + entry, 1, 3);
        PrefetchRow(staleness->held(entry), 2 * dim + 1);
      }
      PrefetchRow(ahead.grad, dim);
    }
    const int64_t id = rows[i].id;
    const bool has_batch = rows[i].grad != nullptr;
    RowState state;
    if (table.bfloat16_table == nullptr) {
      state.row = table.table + id * dim;
    } else {
      state.row = scratch + 3 * dim;
      Widen(table.bfloat16_table + id * dim, dim, state.row);
    }
    for (int s = 0; s < kMaxSlots; ++s) {
      state.slots[s] = s < table.num_slots ? table.slots[s] + id * table.slot_dim : nullptr;
    }
    const float* grad = has_batch ? Clip(rows[i].grad, dim, settings, scratch) : nullptr;
    const int32_t num_batches = has_batch ? table.num_batches(rows[i]) : 0;
    uint32_t k = num_batches;
    const bool is_popular = rows[i].state < 0;
    const int64_t entry = -1 - static_cast<int64_t>(rows[i].state);
    if (is_popular) {
      if (num_batches > 1) {
        // All but the last were held elsewhere.
        staleness->entries[entry].held_steps += num_batches - 1;
        staleness->entries[entry].num_updates += num_batches - 1;
      }
      k = static_cast<uint32_t>(staleness->entries[entry].held_steps) + has_batch;
      grad = TakeHeld(*staleness, entry, grad, scratch + dim);
      std::memcpy(row_before, state.row, dim * sizeof(float));
    }
    MarkChanged(table.changed_rows, id);
    Touch touch;
    touch.num_batches = k;
    if (table.last_steps != nullptr) {
      touch = TouchAt(static_cast<uint32_t>(table.last_steps[id]), settings.step, k);
      const bool is_spent = rule.can_spend() && IsRare(touch);
      table.last_steps[id] = static_cast<int32_t>(ClockOf(settings.step, is_spent));
    }
    UpdateRow(rule, touch, decay, learning_rate, grad, dim, state);
    if (table.bfloat16_table != nullptr) {
      RoundRow(RoundingKey(table.rounding_seed, settings.step, id), dim, state.row,
               table.bfloat16_table + id * dim);
    }
    if (staleness == nullptr) continue;
    if (is_popular) {
      Measure(*staleness, entry, state.row, row_before, grad);
      if (has_batch) {
        result->sleeping_change += AfterUpdate(*staleness, entry, state.row, settings.step);
      } else {
        AfterFlush(settings.step, staleness->entries + entry);
      }
    } else {
      CountUpdate(*staleness, rows[i], num_batches, settings.step, result);
    }
  }
}

// scratch [dim]
template <typename Rule>
SLIPSTREAM_INLINE void Settle(const Table& table, int64_t begin, int64_t end,
                              const StepSettings& settings, float* scratch) {
  StepSettings next = settings;
  ++next.step;  // a rule looks back from the step that it does
  const Rule rule(next);
  const float decay = static_cast<float>(settings.weight_decay);
  if (table.last_steps == nullptr || (!rule.moves_when_missed() && decay == 0)) return;
  for (int64_t id = begin; id < end; ++id) {
    const uint32_t clock = static_cast<uint32_t>(table.last_steps[id]);
    // Without a decay there is nothing pending of a row that is spent.
    if (clock == 0 || (decay == 0 && (clock & kSpentBit) != 0)) continue;
    const Touch touch = TouchAt(clock, next.step, 1);
    if (touch.num_missed == 0) continue;
    RowState state = {};
    if (table.bfloat16_table == nullptr) {
      state.row = table.table + id * table.dim;
    } else {
      state.row = scratch;
      Widen(table.bfloat16_table + id * table.dim, table.dim, state.row);
    }
    for (int s = 0; s < table.num_slots; ++s) state.slots[s] = table.slots[s] + id * table.slot_dim;
    SettleRow(rule, touch, decay, static_cast<float>(settings.learning_rate), table.dim, state);
    if (table.bfloat16_table != nullptr) {
      RoundRow(RoundingKey(table.rounding_seed ^ kSettleSeed, next.step, id), table.dim, state.row,
               table.bfloat16_table + id * table.dim);
    }
    table.last_steps[id] = static_cast<int32_t>(ClockOf(settings.step, touch.was_spent));
    MarkChanged(table.changed_rows, id);
  }
}

// A plain function per rule, because function multiversioning does not go with templates.
#define SLIPSTREAM_DEFINE_UPDATE(Rule)                                                         \
  SLIPSTREAM_SIMD void Update##Rule(const Table& table, const LiveRow* rows, int64_t num_rows, \
                                    const StepSettings& settings, float* scratch,              \
                                    UpdateResult* result) {                                    \
    Update<Rule>(table, rows, num_rows, settings, scratch, result);                            \
  }                                                                                            \
  SLIPSTREAM_SIMD void Settle##Rule(const Table& table, int64_t begin, int64_t end,            \
                                    const StepSettings& settings, float* scratch) {            \
    Settle<Rule>(table, begin, end, settings, scratch);                                        \
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
constexpr RuleInfo Info(const char* name, decltype(RuleInfo::update) update,
                        decltype(RuleInfo::settle) settle) {
  return {name,
          Rule::kNumHyperparameters,
          Rule::NumSlots,
          Rule::kSlotsPerRow,
          Rule::kHasMoments,
          update,
          settle};
}

const RuleInfo kRules[] = {
    Info<Sgd>("sgd", UpdateSgd, SettleSgd),
    Info<Momentum>("momentum", UpdateMomentum, SettleMomentum),
    Info<Adagrad>("adagrad", UpdateAdagrad, SettleAdagrad),
    Info<RowWiseAdagrad>("row_wise_adagrad", UpdateRowWiseAdagrad, SettleRowWiseAdagrad),
    Info<Adam>("adam", UpdateAdam, SettleAdam),
    Info<RmsProp>("rmsprop", UpdateRmsProp, SettleRmsProp),
    Info<Ftrl>("ftrl", UpdateFtrl, SettleFtrl),
};

void AddTasks(const std::vector<LiveRows::Run>& runs, std::vector<LiveRows::Run>* tasks) {
  for (const LiveRows::Run& run : runs) {
    for (int64_t begin = 0; begin < run.num_rows; begin += kRowsPerTask) {
      tasks->push_back({run.table, run.rows + begin, std::min(kRowsPerTask, run.num_rows - begin)});
    }
  }
}

// Adds the gradients of rows that are asleep to what is held of them.
SLIPSTREAM_SIMD
void Hold(const Table& table, const LiveRow* rows, int64_t num_rows, const StepSettings& settings,
          float* scratch) {
  const Staleness& staleness = *table.staleness;
  for (int64_t i = 0; i < num_rows; ++i) {
    if (i + kPrefetchRows < num_rows) {
      const LiveRow& ahead = rows[i + kPrefetchRows];
      const int64_t entry = -1 - static_cast<int64_t>(ahead.state);
      __builtin_prefetch(staleness.entries + entry, 1, 3);
      PrefetchRow(staleness.held(entry), staleness.dim);
      PrefetchRow(ahead.grad, staleness.dim);
    }
    const int64_t index = -1 - static_cast<int64_t>(rows[i].state);
    PoolEntry& entry = staleness.entries[index];
    const float* grad = Clip(rows[i].grad, staleness.dim, settings, scratch);
    float* __restrict held = staleness.held(index);
    for (int64_t d = 0; d < staleness.dim; ++d) held[d] += grad[d];
    const int32_t num_batches = table.num_batches(rows[i]);
    entry.held_steps += num_batches;
    entry.num_updates += num_batches;
  }
}

// Updates rows with what is held of them alone.
//   rows  of entries that hold something
void Flush(const RuleInfo& rule, const Table& table, const std::vector<LiveRow>& rows,
           const StepSettings& settings, const ParallelFor& parallel_for) {
  const int64_t num_rows = rows.size(), num_tasks = (num_rows + kRowsPerTask - 1) / kRowsPerTask;
  parallel_for(num_tasks, [&](int64_t i) {
    static thread_local Buffer<float> scratch;
    const int64_t begin = i * kRowsPerTask;
    UpdateResult none;
    rule.update(table, rows.data() + begin, std::min(kRowsPerTask, num_rows - begin), settings,
                scratch.Reserve(kScratchRows * table.dim), &none);
  });
}

LiveRow WithoutBatch(const Staleness& staleness, int64_t entry) {
  return {staleness.entries[entry].row, nullptr, 0, static_cast<int32_t>(-1 - entry)};
}

// Takes up to `num_wanted` entries from rows that nobody has looked up for long, of the next few.
// Returns them; `sleeping_change` is what to add to `num_sleeping`.
std::vector<int64_t> EvictIdle(const RuleInfo& rule, const Table& table, int64_t num_wanted,
                               const StepSettings& settings, const ParallelFor& parallel_for,
                               int64_t* sleeping_change) {
  const Staleness& staleness = *table.staleness;
  PolicyState* state = staleness.state;
  const int64_t num_entries = static_cast<int64_t>(state->num_entries);
  const int64_t hand = FirstIdle(*state);
  std::vector<int64_t> evicted;
  std::vector<LiveRow> holding;
  for (int64_t i = 0; i < std::min(kIdleWindow, num_entries); ++i) {
    const int64_t index = (hand + i) % num_entries;
    const PoolEntry& entry = staleness.entries[index];
    if (static_cast<int64_t>(evicted.size()) >= num_wanted ||
        !IsIdle(entry, settings.step, table.holds_elsewhere) ||
        !IsWhole(staleness, index, table.num_rows)) {
      continue;
    }
    evicted.push_back(index);
    if (entry.held_steps > 0) holding.push_back(WithoutBatch(staleness, index));
    *sleeping_change -= entry.wake_step > 0;
  }
  Flush(rule, table, holding, settings, parallel_for);
  for (const int64_t index : evicted) {
    const PoolEntry& entry = staleness.entries[index];
    staleness.row_states[entry.row] = StateOfEvicted(entry);
  }
  state->hand = static_cast<double>((hand + kIdleWindow) % num_entries);
  return evicted;
}

// Makes candidates popular, in order of first appearance. Returns what to add to `num_sleeping`.
int64_t PromoteAll(const RuleInfo& rule, const Table& table, std::vector<Candidate> candidates,
                   const StepSettings& settings, const ParallelFor& parallel_for) {
  if (candidates.empty()) return 0;
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.first_lookup < b.first_lookup; });
  const Staleness& staleness = *table.staleness;
  const int64_t num_entries = static_cast<int64_t>(staleness.state->num_entries);
  const int64_t num_candidates = candidates.size();
  std::vector<int64_t> entries;
  for (int64_t e = num_entries; e < std::min(num_entries + num_candidates, staleness.capacity);
       ++e) {
    entries.push_back(e);
  }
  int64_t sleeping_change = 0;
  const int64_t num_new = entries.size(), num_wanted = num_candidates - num_new;
  if (num_wanted > 0 && num_entries > 0) {
    const std::vector<int64_t> evicted =
        EvictIdle(rule, table, num_wanted, settings, parallel_for, &sleeping_change);
    entries.insert(entries.end(), evicted.begin(), evicted.end());
  }
  staleness.state->num_entries += num_new;
  std::vector<float> widened(table.bfloat16_table == nullptr ? 0 : table.dim);
  for (size_t i = 0; i < entries.size(); ++i) {
    const int64_t id = candidates[i].id;
    const float* row = table.table + id * table.dim;
    if (table.bfloat16_table != nullptr) {
      Widen(table.bfloat16_table + id * table.dim, table.dim, widened.data());
      row = widened.data();
    }
    Promote(staleness, entries[i], id, row, settings.step);
  }
  return sleeping_change;
}

// Applies all that is held, and wakes every row or lets it sleep on; returns the change of
// `num_sleeping`.
int64_t FlushAll(const RuleInfo& rule, const Table& table, const StepSettings& settings, bool wake,
                 const ParallelFor& parallel_for) {
  const Staleness& staleness = *table.staleness;
  std::vector<LiveRow> rows;
  int64_t sleeping_change = 0;
  for (int64_t e = 0; e < staleness.state->num_entries; ++e) {
    PoolEntry* entry = staleness.entries + e;
    if (wake && entry->wake_step > 0) {
      entry->wake_step = 0;
      --sleeping_change;
    }
    if (entry->held_steps > 0) {
      rows.push_back(WithoutBatch(staleness, e));
    }
  }
  Flush(rule, table, rows, settings, parallel_for);
  return sleeping_change;
}

}  // namespace

const RuleInfo* FindRule(const std::string& name) {
  for (const RuleInfo& rule : kRules) {
    if (name == rule.name) return &rule;
  }
  return nullptr;
}

void UpdateRows(const RuleInfo& rule, const std::vector<Table>& tables,
                const std::vector<StepSettings>& settings, const std::vector<bool>& is_refresh,
                const LiveRows::Found& found, const ParallelFor& parallel_for) {
  std::vector<LiveRows::Run> tasks, deferred;
  AddTasks(found.runs, &tasks);
  AddTasks(found.deferred_runs, &deferred);
  const int64_t num_live = tasks.size();
  std::vector<UpdateResult> results(num_live);
  parallel_for(num_live + deferred.size(), [&](int64_t i) {
    static thread_local Buffer<float> scratch;
    const LiveRows::Run& task = i < num_live ? tasks[i] : deferred[i - num_live];
    const Table& table = tables[task.table];
    float* memory = scratch.Reserve(kScratchRows * table.dim);
    if (i < num_live) {
      rule.update(table, task.rows, task.num_rows, settings[task.table], memory, &results[i]);
    } else {
      Hold(table, task.rows, task.num_rows, settings[task.table], memory);
    }
  });
  for (int64_t t = 0; t < static_cast<int64_t>(tables.size()); ++t) {
    if (tables[t].staleness == nullptr) continue;
    int64_t sleeping_change = 0;
    std::vector<Candidate> candidates;
    for (int64_t i = 0; i < num_live; ++i) {
      if (tasks[i].table != t) continue;
      sleeping_change += results[i].sleeping_change;
      candidates.insert(candidates.end(), results[i].candidates.begin(),
                        results[i].candidates.end());
    }
    sleeping_change +=
        PromoteAll(rule, tables[t], std::move(candidates), settings[t], parallel_for);
    if (is_refresh[t]) {
      sleeping_change += FlushAll(rule, tables[t], settings[t], true, parallel_for);
    }
    const RowCounts& counts = found.counts[t];
    EndStep(tables[t].staleness->policy, settings[t].step, counts.num_lookups,
            counts.num_skipped_lookups + counts.num_deferred_lookups, sleeping_change,
            tables[t].staleness->state);
  }
}

void SettleRows(const RuleInfo& rule, const Table& table, const StepSettings& settings, bool wake,
                const ParallelFor& parallel_for) {
  if (table.staleness != nullptr) {
    PolicyState* state = table.staleness->state;
    if (wake) state->woken_at = settings.step;
    state->num_sleeping += FlushAll(rule, table, settings, wake, parallel_for);
  }
  const int64_t num_tasks = (table.num_rows + kSettledRowsPerTask - 1) / kSettledRowsPerTask;
  parallel_for(num_tasks, [&](int64_t i) {
    static thread_local Buffer<float> scratch;
    const int64_t begin = i * kSettledRowsPerTask;
    rule.settle(table, begin, std::min(table.num_rows, begin + kSettledRowsPerTask), settings,
                scratch.Reserve(table.dim));
  });
}

}  // namespace slipstream
