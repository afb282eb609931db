#include "live_rows.h"

#include <algorithm>
#include <cstring>

#include "schema.h"
#include "simd.h"

namespace slipstream {
namespace {

// A bucket's ids, counts and hash slots then stay in the first-level cache.
constexpr int64_t kLookupsPerBucket = 4096;
// Bounds the [chunks, buckets] histogram.
constexpr int kMaxBucketBits = 9;
constexpr int64_t kMaxChunks = 256;
// Blocks of rows whose first field is noted; together they stay in the first-level cache.
constexpr int64_t kMaxBlocks = 2048;

uint64_t Hash(int64_t id) { return static_cast<uint64_t>(id) * 0x9E3779B97F4A7C15u; }

int64_t BucketOf(int64_t id, int bucket_bits) {
  return bucket_bits == 0 ? 0 : static_cast<int64_t>(Hash(id) >> (64 - bucket_bits));
}

int BucketBits(int64_t num_lookups) {
  int bits = 0;
  while (bits < kMaxBucketBits && (num_lookups >> bits) > kLookupsPerBucket) ++bits;
  return bits;
}

bool Before(const BadLookup& a, const BadLookup& b) {
  return a.table != b.table ? a.table < b.table : a.lookup < b.lookup;
}

BadLookup First(const std::vector<BadLookup>& found) {
  BadLookup first;
  for (const BadLookup& bad : found) {
    if (bad.kind != BadLookup::kNone && (first.kind == BadLookup::kNone || Before(bad, first))) {
      first = bad;
    }
  }
  return first;
}

// sum[d] = sum over i of grads[positions[i], d], added in the order given.
//   grads     [*, dim]
//   positions [num_positions], at least one
//   sum       [dim], overwritten
SLIPSTREAM_SIMD
void SumRows(const float* grads, const int32_t* positions, int64_t num_positions, int64_t dim,
             float* __restrict sum) {
  std::memcpy(sum, grads + positions[0] * dim, dim * sizeof(float));
  for (int64_t i = 1; i < num_positions; ++i) {
    if (i + kPrefetchRows < num_positions) {
      PrefetchRow(grads + positions[i + kPrefetchRows] * dim, dim);
    }
    const float* grad = grads + positions[i] * dim;
    for (int64_t d = 0; d < dim; ++d) sum[d] += grad[d];
  }
}

// Whether no element of row [dim] is NaN or infinite.
SLIPSTREAM_SIMD
bool AllFinite(const float* row, int64_t dim) {
  uint32_t largest = 0;
  for (int64_t d = 0; d < dim; ++d) {
    uint32_t bits;
    std::memcpy(&bits, row + d, sizeof(bits));
    largest = std::max(largest, bits & 0x7fffffffu);
  }
  return largest < 0x7f800000u;
}

void Add(const RowCounts& counts, RowCounts* sum) {
  sum->num_lookups += counts.num_lookups;
  sum->num_skipped_lookups += counts.num_skipped_lookups;
  sum->num_deferred_lookups += counts.num_deferred_lookups;
  sum->num_row_updates += counts.num_row_updates;
  sum->num_skipped_row_updates += counts.num_skipped_row_updates;
  sum->num_deferred_row_updates += counts.num_deferred_row_updates;
}

// What a thread needs to group one bucket; kept for the next.
struct GroupScratch {
  Buffer<int32_t> slots;       // hash slot -> row of the bucket, or -1
  Buffer<int32_t> lookup_row;  // lookup of the bucket -> its row
  Buffer<int32_t> starts;      // row -> its first place in positions
  Buffer<int32_t> positions;   // places among the gradients, row by row
};

}  // namespace

template <typename Index>
void LiveRows::Plan(const std::vector<Lookups<Index>>& tables) {
  plans_.clear();
  chunks_.clear();
  buckets_.clear();
  block_fields_.clear();
  int64_t num_lookups = 0, num_counts = 0, num_sums = 0;
  for (int64_t t = 0; t < static_cast<int64_t>(tables.size()); ++t) {
    const int64_t num = tables[t].num_lookups;
    TablePlan plan;
    plan.bucket_bits = BucketBits(num);
    plan.chunk_size = std::max(kLookupsPerBucket, (num + kMaxChunks - 1) / kMaxChunks);
    plan.num_chunks = (num + plan.chunk_size - 1) / plan.chunk_size;
    plan.first_lookup = num_lookups;
    plan.first_histogram = num_counts;
    plan.first_sum = num_sums;
    PlanFields(tables[t], &plan);
    for (int64_t c = 0; c < plan.num_chunks; ++c) {
      chunks_.push_back({t, c * plan.chunk_size, std::min(num, (c + 1) * plan.chunk_size), c});
    }
    num_lookups += num;
    num_counts += plan.num_chunks << plan.bucket_bits;
    num_sums += num / 2 * tables[t].dim;  // a row that is summed has at least two lookups
    plans_.push_back(plan);
  }
  histograms_.Reserve(num_counts);
  positions_.Reserve(num_lookups);
  rows_.Reserve(num_lookups);
  deferred_rows_.Reserve(num_lookups);
  sums_.Reserve(num_sums);
}

template <typename Index>
void LiveRows::PlanFields(const Lookups<Index>& table, TablePlan* plan) {
  plan->block_bits = 0;
  plan->first_block = block_fields_.size();
  if (table.num_fields == 0) return;
  while ((table.num_rows >> plan->block_bits) >= kMaxBlocks) ++plan->block_bits;
  int32_t field = 0;
  for (int64_t row = 0; row < table.num_rows; row += int64_t{1} << plan->block_bits) {
    while (field < table.num_fields - 1 && row >= table.fields[field * kCountersPerField]) ++field;
    block_fields_.push_back(field);
  }
}

template <typename Index>
int64_t LiveRows::FieldOf(const Lookups<Index>& table, const TablePlan& plan, int64_t id) const {
  int64_t field = block_fields_[plan.first_block + (id >> plan.block_bits)];
  while (field < table.num_fields - 1 && id >= table.fields[field * kCountersPerField]) ++field;
  return field;
}

template <typename Index>
BadLookup LiveRows::CheckAndCount(const Lookups<Index>& table, const Part& chunk) {
  const TablePlan& plan = plans_[chunk.table];
  int32_t* counts = histograms_.data() + plan.first_histogram + (chunk.index << plan.bucket_bits);
  std::fill_n(counts, int64_t{1} << plan.bucket_bits, 0);
  for (int64_t i = chunk.begin; i < chunk.end; ++i) {
    const int64_t id = table.ids[i];
    if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(table.num_rows)) {
      return {BadLookup::kId, chunk.table, i, id};
    }
    ++counts[BucketOf(id, plan.bucket_bits)];
  }
  for (int64_t i = chunk.begin; table.bags != nullptr && i < chunk.end; ++i) {
    const int64_t bag = table.bags[i];
    if (bag < 0 || bag >= table.num_grads) return {BadLookup::kBag, chunk.table, i, bag};
  }
  return {};
}

// Turns the histograms into each chunk's first place in each bucket.
void LiveRows::PlaceBuckets() {
  for (int64_t t = 0; t < static_cast<int64_t>(plans_.size()); ++t) {
    const TablePlan& plan = plans_[t];
    const int64_t num_buckets = int64_t{1} << plan.bucket_bits;
    int32_t* counts = histograms_.data() + plan.first_histogram;
    int64_t place = 0;
    for (int64_t b = 0; b < num_buckets && plan.num_chunks > 0; ++b) {
      const int64_t begin = place;
      for (int64_t c = 0; c < plan.num_chunks; ++c) {
        int32_t& count = counts[c * num_buckets + b];
        const int32_t here = count;
        count = static_cast<int32_t>(place);
        place += here;
      }
      if (place > begin) buckets_.push_back({t, begin, place, b});
    }
  }
}

template <typename Index>
void LiveRows::Deal(const Lookups<Index>& table, const Part& chunk) {
  const TablePlan& plan = plans_[chunk.table];
  int32_t* places = histograms_.data() + plan.first_histogram + (chunk.index << plan.bucket_bits);
  int32_t* positions = positions_.data() + plan.first_lookup;
  for (int64_t i = chunk.begin; i < chunk.end; ++i) {
    positions[places[BucketOf(table.ids[i], plan.bucket_bits)]++] = static_cast<int32_t>(i);
  }
}

template <typename Index>
LiveRows::BucketResult LiveRows::Group(const Lookups<Index>& table, const Part& bucket,
                                       int64_t step) {
  static thread_local GroupScratch scratch;
  const TablePlan& plan = plans_[bucket.table];
  const int32_t* lookups = positions_.data() + plan.first_lookup + bucket.begin;
  LiveRow* rows = rows_.data() + plan.first_lookup + bucket.begin;
  const int64_t num = bucket.end - bucket.begin;
  int slot_bits = 4;
  while ((int64_t{1} << slot_bits) < 2 * num) ++slot_bits;
  const int64_t slot_mask = (int64_t{1} << slot_bits) - 1;
  int32_t* slots = scratch.slots.Reserve(slot_mask + 1);
  int32_t* lookup_row = scratch.lookup_row.Reserve(num);
  int32_t* starts = scratch.starts.Reserve(num + 2);
  int32_t* positions = scratch.positions.Reserve(num);
  std::fill_n(slots, slot_mask + 1, -1);

  int32_t num_rows = 0;
  for (int64_t i = 0; i < num; ++i) {
    const int64_t id = table.ids[lookups[i]];
    // The top bits chose the bucket; the next ones choose the slot.
    int64_t slot = (Hash(id) << plan.bucket_bits) >> (64 - slot_bits);
    while (slots[slot] >= 0 && rows[slots[slot]].id != id) slot = (slot + 1) & slot_mask;
    if (slots[slot] < 0) {
      slots[slot] = num_rows;
      rows[num_rows] = {id, nullptr, lookups[i], 0};
      starts[num_rows + 2] = 0;
      ++num_rows;
    }
    lookup_row[i] = slots[slot];
    ++starts[slots[slot] + 2];
  }
  // starts[r + 1] runs from row r's first place to its end while the positions are filled in.
  starts[0] = starts[1] = 0;
  for (int32_t r = 0; r < num_rows; ++r) starts[r + 2] += starts[r + 1];
  if (table.bags == nullptr) {
    for (int64_t i = 0; i < num; ++i) positions[starts[lookup_row[i] + 1]++] = lookups[i];
  } else {
    for (int64_t i = 0; i < num; ++i) {
      positions[starts[lookup_row[i] + 1]++] = table.bags[lookups[i]];
    }
  }

  BucketResult result;
  result.counts.num_lookups = num;
  result.counts.num_row_updates = num_rows;
  result.bad = SumLive(table, bucket, starts, positions, num_rows, step, &result);
  return result;
}

template <typename Index>
BadLookup LiveRows::SumLive(const Lookups<Index>& table, const Part& bucket, const int32_t* starts,
                            const int32_t* positions, int64_t num_rows, int64_t step,
                            BucketResult* result) {
  const TablePlan& plan = plans_[bucket.table];
  const int64_t dim = table.dim;
  LiveRow* rows = rows_.data() + plan.first_lookup + bucket.begin;
  LiveRow* deferred = deferred_rows_.data() + plan.first_lookup + bucket.begin;
  float* sum = sums_.data() + plan.first_sum + bucket.begin / 2 * dim;
  const RowStates& states = table.states;
  result->fields.assign(table.num_fields, {});
  RowCounts unused;
  BadLookup bad;
  const auto note = [&](BadLookup::Kind kind, const LiveRow& row) {
    const BadLookup here{kind, bucket.table, row.first_lookup, row.id};
    if (bad.kind == BadLookup::kNone || Before(here, bad)) bad = here;
  };
  for (int64_t r = 0; r < num_rows; ++r) {
    const int64_t num_positions = starts[r + 1] - starts[r];
    LiveRow row = rows[r];
    RowKind kind = RowKind::kLive;
    if (states.row_states != nullptr) {
      if (r + 2 * kPrefetchRows < num_rows) {
        __builtin_prefetch(states.row_states + rows[r + 2 * kPrefetchRows].id, 1, 3);
      }
      if (r + kPrefetchRows < num_rows) {
        const int64_t ahead = states.row_states[rows[r + kPrefetchRows].id];
        if (ahead < 0) __builtin_prefetch(states.entries + (-1 - ahead), 1, 3);
      }
      row.state = states.row_states[row.id];
      if (row.state < 0) {
        const int64_t entry = -1 - static_cast<int64_t>(row.state);
        if (entry >= states.num_entries || !IsOf(states.entries[entry], row.id)) {
          note(BadLookup::kState, row);
          continue;
        }
        const int32_t num_batches =
            states.batches == nullptr ? 1 : states.batches[2 * row.first_lookup];
        kind = KindOf(states.entries[entry], step, states.woken_at, num_batches - 1);
      }
    }
    RowCounts& field =
        table.num_fields == 0 ? unused : result->fields[FieldOf(table, plan, row.id)];
    field.num_lookups += num_positions;
    ++field.num_row_updates;
    if (kind == RowKind::kSkipped) {
      field.num_skipped_lookups += num_positions;
      ++field.num_skipped_row_updates;
      result->counts.num_skipped_lookups += num_positions;
      ++result->counts.num_skipped_row_updates;
      deferred[bucket.end - bucket.begin - ++result->num_skipped] = row;
      continue;
    }
    if (r + kPrefetchRows < num_rows) {
      PrefetchRow(table.grads + positions[starts[r + kPrefetchRows]] * dim, dim);
    }
    if (num_positions == 1) {
      row.grad = table.grads + positions[starts[r]] * dim;
    } else {
      SumRows(table.grads, positions + starts[r], num_positions, dim, sum);
      row.grad = sum;
      sum += dim;
    }
    if (!AllFinite(row.grad, dim)) note(BadLookup::kGradient, row);
    if (kind == RowKind::kDeferred) {
      field.num_deferred_lookups += num_positions;
      ++field.num_deferred_row_updates;
      result->counts.num_deferred_lookups += num_positions;
      ++result->counts.num_deferred_row_updates;
      deferred[result->num_deferred++] = row;
    } else {
      rows[result->num_live++] = row;
    }
  }
  return bad;
}

template <typename Index>
BadLookup LiveRows::Find(const std::vector<Lookups<Index>>& tables, int64_t step,
                         const ParallelFor& parallel_for) {
  Plan(tables);
  found_.counts.assign(tables.size(), {});
  found_.field_counts.resize(tables.size());
  for (size_t t = 0; t < tables.size(); ++t) {
    found_.field_counts[t].assign(tables[t].num_fields, {});
  }
  found_.runs.clear();
  found_.deferred_runs.clear();
  found_.skipped_runs.clear();
  bad_.assign(chunks_.size(), {});
  parallel_for(chunks_.size(),
               [&](int64_t c) { bad_[c] = CheckAndCount(tables[chunks_[c].table], chunks_[c]); });
  const BadLookup bad_id = First(bad_);
  if (bad_id.kind != BadLookup::kNone) return bad_id;

  PlaceBuckets();
  parallel_for(chunks_.size(), [&](int64_t c) { Deal(tables[chunks_[c].table], chunks_[c]); });
  results_.assign(buckets_.size(), {});
  parallel_for(buckets_.size(), [&](int64_t b) {
    results_[b] = Group(tables[buckets_[b].table], buckets_[b], step);
  });

  bad_.clear();
  for (size_t b = 0; b < buckets_.size(); ++b) {
    const Part& bucket = buckets_[b];
    const BucketResult& result = results_[b];
    Add(result.counts, &found_.counts[bucket.table]);
    std::vector<RowCounts>& fields = found_.field_counts[bucket.table];
    for (size_t f = 0; f < fields.size(); ++f) Add(result.fields[f], &fields[f]);
    bad_.push_back(result.bad);
    const int64_t first = plans_[bucket.table].first_lookup + bucket.begin;
    if (result.num_live > 0) {
      found_.runs.push_back({bucket.table, rows_.data() + first, result.num_live});
    }
    if (result.num_deferred > 0) {
      found_.deferred_runs.push_back(
          {bucket.table, deferred_rows_.data() + first, result.num_deferred});
    }
    if (result.num_skipped > 0) {
      const int64_t end = plans_[bucket.table].first_lookup + bucket.end;
      found_.skipped_runs.push_back(
          {bucket.table, deferred_rows_.data() + end - result.num_skipped, result.num_skipped});
    }
  }
  return First(bad_);
}

void LiveRows::SetNumLookups(int64_t table, const int64_t* counted) {
  const auto set = [&](RowCounts* counts) {
    counts->num_lookups = *counted++;
    counts->num_skipped_lookups = *counted++;
    counts->num_deferred_lookups = *counted++;
  };
  set(&found_.counts[table]);
  for (RowCounts& field : found_.field_counts[table]) set(&field);
}

template <typename Index>
void LiveRows::CopyInBatchOrder(int64_t table, int64_t num_lookups, int64_t dim, Index* ids,
                                float* grads, const ParallelFor& parallel_for) const {
  CopyInBatchOrder({&found_.runs, &found_.deferred_runs}, table, num_lookups, dim, ids, nullptr,
                   grads, parallel_for);
}

template <typename Index>
void LiveRows::CopyInBatchOrder(const std::vector<const std::vector<Run>*>& kinds, int64_t table,
                                int64_t num_lookups, int64_t dim, Index* ids, int32_t* states,
                                float* grads, const ParallelFor& parallel_for) const {
  // A row's place is the number of rows that came before its first lookup.
  std::vector<int32_t> places(num_lookups, 0);
  std::vector<const Run*> runs;
  for (const std::vector<Run>* all : kinds) {
    for (const Run& run : *all) {
      if (run.table != table) continue;
      runs.push_back(&run);
      for (int64_t r = 0; r < run.num_rows; ++r) places[run.rows[r].first_lookup] = 1;
    }
  }
  int32_t place = 0;
  for (int32_t& here : places) {
    const int32_t is_first = here;
    here = place;
    place += is_first;
  }
  parallel_for(runs.size(), [&](int64_t i) {
    for (int64_t r = 0; r < runs[i]->num_rows; ++r) {
      const LiveRow& row = runs[i]->rows[r];
      const int64_t to = places[row.first_lookup];
      ids[to] = static_cast<Index>(row.id);
      if (states != nullptr) states[to] = row.state;
      if (grads != nullptr) std::memcpy(grads + to * dim, row.grad, dim * sizeof(float));
    }
  });
}

template void LiveRows::CopyInBatchOrder(int64_t, int64_t, int64_t, int32_t*, float*,
                                         const ParallelFor&) const;
template void LiveRows::CopyInBatchOrder(int64_t, int64_t, int64_t, int64_t*, float*,
                                         const ParallelFor&) const;
template void LiveRows::CopyInBatchOrder(const std::vector<const std::vector<Run>*>&, int64_t,
                                         int64_t, int64_t, int32_t*, int32_t*, float*,
                                         const ParallelFor&) const;
template void LiveRows::CopyInBatchOrder(const std::vector<const std::vector<Run>*>&, int64_t,
                                         int64_t, int64_t, int64_t*, int32_t*, float*,
                                         const ParallelFor&) const;
template BadLookup LiveRows::Find(const std::vector<Lookups<int32_t>>&, int64_t,
                                  const ParallelFor&);
template BadLookup LiveRows::Find(const std::vector<Lookups<int64_t>>&, int64_t,
                                  const ParallelFor&);

}  // namespace slipstream
