#ifndef SLIPSTREAM_TF_APPLY_STEP_H_
#define SLIPSTREAM_TF_APPLY_STEP_H_

// A training step of all tables that share an update rule, in host memory: what ApplyRows and
// ApplyPushes have in common.

#include <algorithm>
#include <utility>
#include <vector>

#include "../kernels/live_rows.h"
#include "../kernels/update_rows.h"
#include "kernel_context.h"
#include "table_args.h"

namespace slipstream {

// Adds to the first six of a table's counters, or to a field's.
inline void AddCounts(const RowCounts& counts, int64_t* counters) {
  counters[kNumLookups] += counts.num_lookups;
  counters[kNumSkippedLookups] += counts.num_skipped_lookups;
  counters[kNumDeferredLookups] += counts.num_deferred_lookups;
  counters[kNumRowUpdates] += counts.num_row_updates;
  counters[kNumSkippedRowUpdates] += counts.num_skipped_row_updates;
  counters[kNumDeferredRowUpdates] += counts.num_deferred_row_updates;
}

// Every table is updated, or none if anything is wrong.
//   grads    the inputs "indices" and "grads" are those of this step
//   found    called when the rows are found, before any is changed: may count other lookups, or
//            refuse the step
//   bags     as ReadLookups()
template <typename Index, typename Found>
absl::Status ApplyStep(tensorflow::OpKernelContext* context, const TableArgs& args,
                       const std::vector<StepSettings>& settings, TableList* list,
                       LiveRowsPool* pool, Found found, const tensorflow::OpInputList& bags = {}) {
  const std::vector<int64_t>& with_policy = args.pools().tables();
  std::vector<RowStates> states(list->tables.size());
  std::vector<bool> is_refresh(list->tables.size(), false);
  std::vector<PolicyState> states_before;
  for (const Staleness& one : list->staleness) states_before.push_back(*one.state);
  std::vector<Lookups<Index>> lookups;
  std::unique_ptr<LiveRows> live_rows = pool->Take();
  ThreadTeam team = IntraOpTeam(context);
  const ParallelFor parallel_for = team.parallel_for();
  const auto find = [&]() -> absl::Status {
    for (size_t p = 0; p < with_policy.size(); ++p) {
      const int64_t t = with_policy[p];
      const Staleness& one = list->staleness[p];
      is_refresh[t] = BeginStep(one.policy, settings[t].step, settings[t].learning_rate, one.state);
      const int64_t bad_entry = is_refresh[t] ? CheckPool(one, list->num_rows[t]) : -1;
      if (bad_entry >= 0) return BadEntryError(bad_entry, args.names()[t]);
      states[t] = {one.row_states, one.entries, static_cast<int64_t>(one.state->num_entries),
                   static_cast<int64_t>(one.state->woken_at), list->tables[t].batches};
    }
    TF_RETURN_IF_ERROR(
        ReadLookups(context, args.names(), list->num_rows, list->dims, states, &lookups, bags));
    for (size_t t = 0; t < lookups.size(); ++t) {
      lookups[t].fields = list->counters[t] + kNumCounters;
      lookups[t].num_fields = list->num_fields[t];
    }
    const BadLookup bad = live_rows->Find(lookups, settings[0].step, parallel_for);
    if (bad.kind != BadLookup::kNone) {
      return BadLookupError(bad, args.names()[bad.table], list->num_rows[bad.table]);
    }
    return found(lookups, live_rows.get());
  };
  const absl::Status status = find();
  if (!status.ok()) {
    for (size_t p = 0; p < states_before.size(); ++p) *list->staleness[p].state = states_before[p];
    return status;
  }
  UpdateRows(args.rule(), list->tables, settings, is_refresh, live_rows->found(), parallel_for);
  int64_t num_indices = 0;
  for (size_t t = 0; t < list->tables.size(); ++t) {
    const RowCounts& counts = live_rows->counts(t);
    AddCounts(counts, list->counters[t]);
    int64_t* fields = list->counters[t] + kNumCounters;
    for (const RowCounts& field : live_rows->found().field_counts[t]) {
      AddCounts(field, fields + 1);
      fields += kCountersPerField;
    }
    num_indices += lookups[t].num_lookups;
  }
  pool->Return(std::move(live_rows), num_indices);
  return absl::OkStatus();
}

}  // namespace slipstream

#endif  // SLIPSTREAM_TF_APPLY_STEP_H_
