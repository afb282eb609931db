#ifndef SLIPSTREAM_KERNELS_GPU_STEP_H_
#define SLIPSTREAM_KERNELS_GPU_STEP_H_

// The training step on a GPU: what live_rows.h and update_rows.h do, to the same rules. Everything
// that a pointer names lies in the device's memory, hyperparameters and step number too, so that no
// function here waits for the device. They enqueue their work on a stream, return at once, and must
// be called with the stream's device current.
//
// Results do not depend on how the device schedules its threads. They are those of the CPU kernels
// to the bit, but for two things: a row that was looked up more than kPieceSize times has its
// gradients summed in pieces, see live_rows.cu; and `pow` (Ftrl with another power than -0.5,
// the coherence of a policy, Adam's correction of the bias) may differ in its last bit.
//
// No CUDA header is needed to include this one.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "staleness.h"
#include "update_rows.h"

struct CUstream_st;

namespace slipstream::gpu {

// A cudaError_t.
using Error = int;
// In words.
const char* ErrorName(Error error);

// Lookups of a row that are summed one after the other, as the CPU sums all.
inline constexpr int64_t kPieceSize = 128;

// What keeps a step from being applied, in memory that host and device share (AllocateReport). The
// device writes it, `kind` last; whoever reads it sets `kind` to BadLookup::kNone again. One that
// is not yet read is not overwritten.
struct Report {
  int64_t kind;
  int64_t table;
  int64_t lookup;
  int64_t id;
};
Error AllocateReport(Report** report);
// Returns what the device has reported since the last call; `kind` is kNone where there is nothing.
BadLookup TakeReport(Report* report);

// Copies within the device's memory.
Error CopyBytes(void* to, const void* from, size_t num_bytes, CUstream_st* stream);
// Copies from the device's memory and waits for that, and so for all that the stream did before.
Error ReadBytes(void* to, const void* from, size_t num_bytes, CUstream_st* stream);

// What one step looked up in one table, as Lookups; the table, and what goes with it.
//   table      as Table; `staleness` is not used
//   pool       as Staleness; `row_states` is null without a policy
//   counters   [kNumCounters]: the fields of RowCounts are added to the first six; 1 to
//              kNumRefusedSteps if the step changed nothing because of something in this table
//   grad_scale scalar
//   counted    [3]: how many lookups to count, in all, skipped and deferred; null: those that are
template <typename Index>
struct TableStep {
  const Index* ids;
  const float* grads;
  int64_t num_lookups;
  Table table;
  Staleness pool;
  int64_t* counters;
  const float* grad_scale;
  const int64_t* counted;
  float weight_decay;
};

// What all tables share.
//   step, learning_rate  scalars
//   tail_rates           [2]
//   tails                [num_tails], see StepSettings
inline constexpr int kMaxHyperparameters = 5;
struct StepInputs {
  const int64_t* step;
  const float* learning_rate;
  const float* tail_rates;
  const float* tails;
  int64_t num_tails;
  double hyperparameters[kMaxHyperparameters];
  float clip_value;
};

// Bytes of device memory that a call of ApplyStep or FindSlices with these tables works in;
// 256-byte aligned, not initialised, the caller's again when the stream is done.
template <typename Index>
Error WorkspaceBytes(const std::vector<TableStep<Index>>& tables, size_t* num_bytes);

// The halves of a step: finding rows, in all tables, before any is updated. What the first leaves
// in the workspace the second takes from there.
enum class Half { kBoth, kFind, kUpdate };

// Updates the live rows of every table as UpdateRows does. If a lookup is bad, in any table, the
// step changes nothing and tells `report`.
template <typename Index>
Error ApplyStep(const RuleInfo& rule, const std::vector<TableStep<Index>>& tables,
                const StepInputs& inputs, void* workspace, Report* report, CUstream_st* stream,
                Half half = Half::kBoth);

// Brings tables up to date as SettleRows does, `*inputs.step` being the last step; of a TableStep
// it uses no lookups. If an entry of a pool makes no sense, in any table, it changes nothing and
// tells `report`.
Error SettleTables(const RuleInfo& rule, const std::vector<TableStep<int32_t>>& tables,
                   const StepInputs& inputs, bool wake, void* workspace, Report* report,
                   CUstream_st* stream);

// Sets bits of `changed_rows`, see Table, or clears them.
//   words        [num_words], the bits
//   changed_rows [num_words]
Error MarkRows(const uint32_t* words, int64_t num_words, bool clear, uint32_t* changed_rows,
               CUstream_st* stream);

// Finds the rows that are not skipped, which CopySlices then copies in order of first appearance.
// Of a TableStep it uses what Lookups has, and the pool.
//   num_slices [num_tables], in device memory, overwritten: how many there are in each table
template <typename Index>
Error FindSlices(const std::vector<TableStep<Index>>& tables, const int64_t* step, void* workspace,
                 int32_t* num_slices, Report* report, CUstream_st* stream);

// Copies what FindSlices found in a table, with the same tables and workspace.
//   ids   [num_slices], overwritten
//   grads [num_slices, dim], overwritten
template <typename Index>
Error CopySlices(const std::vector<TableStep<Index>>& tables, int64_t table, void* workspace,
                 Index* ids, float* grads, CUstream_st* stream);

}  // namespace slipstream::gpu

#endif  // SLIPSTREAM_KERNELS_GPU_STEP_H_
