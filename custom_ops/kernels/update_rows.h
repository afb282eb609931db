#ifndef SLIPSTREAM_KERNELS_UPDATE_ROWS_H_
#define SLIPSTREAM_KERNELS_UPDATE_ROWS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "live_rows.h"
#include "parallel.h"
#include "rounding.h"
#include "staleness.h"
#include "update_rules.h"

namespace slipstream {

// A table and its slots, written in place.
//   table        [num_rows, dim] row-major; null where the next is not
//   bfloat16_table  the same in bfloat16: rows are updated in float32 and rounded stochastically
//   rounding_seed   see rounding.h
//   slots        [num_rows, slot_dim] each, as many as the rule has; slot_dim is dim or, for a rule
//                that keeps one value per row, 1
//   changed_rows [ceil(num_rows / 32)]: bit r % 32 of word r / 32 is set when row r is written
//   last_steps   [num_rows], see row_clock.h; null for a rule without moments and weight decay
//   staleness    its row states and pool; null without a policy
//   holds_elsewhere  whether gradients of rows that sleep are held outside of the pool, by replicas
//   batches      [num_lookups, 2]: of how many batches each lookup's gradient is the sum, and
//                something else; ids are then distinct. Null: of one
struct Table {
  int64_t num_rows;
  float* table;
  float* slots[kMaxSlots];
  int num_slots;
  uint32_t* changed_rows;
  int32_t* last_steps;
  const Staleness* staleness;
  int64_t dim;
  int64_t slot_dim;
  uint16_t* bfloat16_table = nullptr;
  uint32_t rounding_seed = 0;
  bool holds_elsewhere = false;
  const int32_t* batches = nullptr;

  int32_t num_batches(const LiveRow& row) const {
    return batches == nullptr ? 1 : batches[2 * row.first_lookup];
  }
};

// A row that has had enough updates to become popular.
struct Candidate {
  int64_t id;
  int32_t first_lookup;
};

// What a task that updates rows gives back.
struct UpdateResult {
  int64_t sleeping_change = 0;
  std::vector<Candidate> candidates;
};

// A rule as the ops name it; the fields are those of its struct in update_rules.h.
struct RuleInfo {
  const char* name;
  int num_hyperparameters;
  int (*num_slots)(const double* hyperparameters);
  bool slots_per_row;
  bool has_moments;
  void (*update)(const Table& table, const LiveRow* rows, int64_t num_rows,
                 const StepSettings& settings, float* scratch, UpdateResult* result);
  // Brings those of the rows [begin, end) up to date that missed the last steps.
  void (*settle)(const Table& table, int64_t begin, int64_t end, const StepSettings& settings,
                 float* scratch);
};

// The rule of that name, or null.
const RuleInfo* FindRule(const std::string& name);

// Updates every live row in its table: weight decay, then the rule; holds the gradients of the
// deferred ones; then lets rows become popular. In a refresh, applies what is held of all others.
// Rows are distinct, so each is written by one thread and the result does not depend on their
// number.
//   settings   [num_tables]
//   is_refresh [num_tables]
void UpdateRows(const RuleInfo& rule, const std::vector<Table>& tables,
                const std::vector<StepSettings>& settings, const std::vector<bool>& is_refresh,
                const LiveRows::Found& found, const ParallelFor& parallel_for);

// Between steps, settings.step being the last one: applies all that is held, and what rows are
// behind by that missed steps. So the table is as if every step had reached every row.
//   wake  whether rows that sleep wake, or sleep on with nothing held
void SettleRows(const RuleInfo& rule, const Table& table, const StepSettings& settings, bool wake,
                const ParallelFor& parallel_for);

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_UPDATE_ROWS_H_
