#ifndef SLIPSTREAM_KERNELS_LIVE_ROWS_H_
#define SLIPSTREAM_KERNELS_LIVE_ROWS_H_

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "parallel.h"
#include "staleness.h"

namespace slipstream {

// What one step looked up in one table, and the gradients that came back. All unchanged.
//   ids        [num_lookups]; may repeat, in any order
//   grads      [num_grads, dim] row-major
//   bags       [num_lookups]: which row of grads is each lookup's; null: its own, num_grads being
//              num_lookups
//   states     which rows are asleep
//   fields     [num_fields, kCountersPerField]: what the table's counters have of fields, of which
//              only the first column is read; none where lookups are not counted by field
template <typename Index>
struct Lookups {
  const Index* ids;
  const float* grads;
  RowStates states;
  int64_t num_lookups;
  int64_t num_rows;
  int64_t dim;
  const int64_t* fields = nullptr;
  int64_t num_fields = 0;
  const int32_t* bags = nullptr;
  int64_t num_grads = 0;
};

// A row to update.
//   grad         [dim]: the sum of its gradient rows in batch order. Where it was looked up once,
//                this is the caller's own memory, so that the common case copies nothing.
//   first_lookup where in the batch its id came first
//   state        its row state, see Staleness; 0 where there is no policy
struct LiveRow {
  int64_t id;
  const float* grad;
  int32_t first_lookup;
  int32_t state;
};

// Counts of one step in one table.
struct RowCounts {
  int64_t num_lookups = 0;
  int64_t num_skipped_lookups = 0;
  int64_t num_deferred_lookups = 0;
  int64_t num_row_updates = 0;  // distinct rows, the stale ones included
  int64_t num_skipped_row_updates = 0;
  int64_t num_deferred_row_updates = 0;
};

// The first thing found that keeps a step from being applied.
struct BadLookup {
  enum Kind { kNone, kId, kBag, kGradient, kState, kEntry };
  Kind kind = kNone;
  int64_t table = 0;
  int64_t lookup = 0;  // position in the batch
  int64_t id = 0;      // kEntry: of the pool; kBag: the bag
};

// Finds the rows that a step updates or defers: drops repeats, leaves out rows that are skipped,
// sums gradients.
//
// Lookups are first dealt into buckets by a hash of their id, then each bucket is worked on alone,
// in batch order. The number of buckets follows from the number of lookups, never from the threads,
// so that sums and order repeat bit for bit. The gradient of a skipped row is never read.
//
// Holds its memory between steps; not safe for two steps at once.
class LiveRows {
 public:
  // Every table's ids must be below 2^31 lookups. Stops at the first id outside [0, num_rows) or
  // bag outside [0, num_grads) or, if there is none, at the first row whose summed gradient is NaN
  // or infinite, in batch order.
  template <typename Index>
  BadLookup Find(const std::vector<Lookups<Index>>& tables, int64_t step,
                 const ParallelFor& parallel_for);

  // Rows of one table, contiguous. The order of runs repeats.
  struct Run {
    int64_t table;
    const LiveRow* rows;
    int64_t num_rows;
  };
  struct Found {
    std::vector<Run> runs;           // rows to update
    std::vector<Run> deferred_runs;  // rows that are asleep, whose gradients are to be held
    std::vector<Run> skipped_runs;   // rows that are skipped; `grad` is null
    std::vector<RowCounts> counts;   // one per table
    std::vector<std::vector<RowCounts>> field_counts;  // per table one per field
  };
  const Found& found() const { return found_; }
  const RowCounts& counts(int64_t table) const { return found_.counts[table]; }
  // Counts other lookups of a table in place of those found: its ids stand for more than one each.
  //   counted [1 + num_fields, 3]: of the table, then of its fields, in all, skipped and deferred
  void SetNumLookups(int64_t table, const int64_t* counted);
  // Puts others in their place, where the lookups were counted before they came here.
  void SetCounts(const std::vector<RowCounts>& counts) { found_.counts = counts; }
  // How many rows of a table are updated or deferred.
  int64_t num_read(int64_t table) const {
    return counts(table).num_row_updates - counts(table).num_skipped_row_updates;
  }

  // Copies what Find() found in a table of num_lookups lookups, in order of first appearance.
  //   ids   [num_read(table)], overwritten
  //   grads [num_read(table), dim], overwritten
  template <typename Index>
  void CopyInBatchOrder(int64_t table, int64_t num_lookups, int64_t dim, Index* ids, float* grads,
                        const ParallelFor& parallel_for) const;
  // The same of rows of one kind, or of several.
  //   kinds  lists of runs in found()
  //   ids    [num], num of the rows of these kinds; overwritten
  //   states [num], their row states, overwritten; null: not wanted, as `grads`
  //   grads  [num, dim], overwritten
  template <typename Index>
  void CopyInBatchOrder(const std::vector<const std::vector<Run>*>& kinds, int64_t table,
                        int64_t num_lookups, int64_t dim, Index* ids, int32_t* states, float* grads,
                        const ParallelFor& parallel_for) const;

 private:
  // A part of one table's lookups: contiguous in the batch (chunk) or alike in hash (bucket).
  struct Part {
    int64_t table;
    int64_t begin;
    int64_t end;
    int64_t index;  // among the parts of its table
  };
  struct TablePlan {
    int bucket_bits;
    int64_t num_chunks;
    int64_t chunk_size;
    int64_t first_lookup;     // its lookups' place in positions_ and rows_
    int64_t first_histogram;  // its [num_chunks, num_buckets] in histograms_
    int64_t first_sum;        // its place in sums_
    int block_bits;           // 2^block_bits rows are a block
    int64_t first_block;      // its place in block_fields_
  };
  struct BucketResult {
    int64_t num_live = 0;
    int64_t num_deferred = 0;
    int64_t num_skipped = 0;
    RowCounts counts;
    std::vector<RowCounts> fields;
    BadLookup bad;
  };

  template <typename Index>
  void Plan(const std::vector<Lookups<Index>>& tables);
  template <typename Index>
  void PlanFields(const Lookups<Index>& table, TablePlan* plan);
  template <typename Index>
  int64_t FieldOf(const Lookups<Index>& table, const TablePlan& plan, int64_t id) const;
  template <typename Index>
  BadLookup CheckAndCount(const Lookups<Index>& table, const Part& chunk);
  void PlaceBuckets();
  template <typename Index>
  void Deal(const Lookups<Index>& table, const Part& chunk);
  template <typename Index>
  BucketResult Group(const Lookups<Index>& table, const Part& bucket, int64_t step);
  template <typename Index>
  BadLookup SumLive(const Lookups<Index>& table, const Part& bucket, const int32_t* starts,
                    const int32_t* positions, int64_t num_rows, int64_t step, BucketResult* result);

  std::vector<TablePlan> plans_;
  std::vector<Part> chunks_;
  std::vector<Part> buckets_;
  std::vector<BadLookup> bad_;
  std::vector<BucketResult> results_;
  std::vector<int32_t> block_fields_;  // the field of each block's first row
  Found found_;
  Buffer<int32_t> histograms_;
  Buffer<int32_t> positions_;
  Buffer<LiveRow> rows_;
  Buffer<LiveRow> deferred_rows_;  // in a bucket's part, from its end on backwards: skipped rows
  Buffer<float> sums_;
};

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_LIVE_ROWS_H_
