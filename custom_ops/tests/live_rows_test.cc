// LiveRows against a std::map that is filled lookup by lookup.
#include "../kernels/live_rows.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "../kernels/schema.h"
#include "test_support.h"

namespace slipstream {
namespace {

constexpr int64_t kStep = 100;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

constexpr int64_t kWokenAt = 50;
constexpr int64_t kPeriod = 4;

// Owns what a Lookups points to.
template <typename Index>
struct Batch {
  std::vector<Index> ids;
  std::vector<float> grads;
  std::vector<int32_t> row_states;  // empty where every row is live
  std::vector<PoolEntry> entries;
  std::vector<int64_t> fields;  // [num_fields, kCountersPerField]; empty where there are none
  int64_t num_rows;
  int64_t dim;

  void Sleep(int64_t id, int64_t wake_step, int64_t live_step, bool is_skipped,
             int64_t held_steps = 0) {
    row_states[id] = -1 - static_cast<int32_t>(entries.size());
    entries.push_back({id, wake_step, live_step, 7, held_steps, kPeriod, 1, is_skipped});
  }
  const PoolEntry* EntryOf(int64_t id) const {
    return row_states.empty() || row_states[id] >= 0 ? nullptr : &entries[-1 - row_states[id]];
  }
};

template <typename Index>
std::vector<Lookups<Index>> AllLookups(const std::vector<Batch<Index>>& batches) {
  std::vector<Lookups<Index>> lookups;
  for (const Batch<Index>& batch : batches) {
    lookups.push_back({batch.ids.data(),
                       batch.grads.data(),
                       {batch.row_states.empty() ? nullptr : batch.row_states.data(),
                        batch.entries.data(), static_cast<int64_t>(batch.entries.size()), kWokenAt},
                       static_cast<int64_t>(batch.ids.size()),
                       batch.num_rows,
                       batch.dim,
                       batch.fields.data(),
                       static_cast<int64_t>(batch.fields.size()) / kCountersPerField});
  }
  return lookups;
}

struct BatchShape {
  int64_t num_lookups;
  int64_t num_distinct;  // ids to draw from, the table's first and last row among them
  int64_t num_rows;
  int64_t dim;
  bool has_stale_rows;
};

template <typename Index>
Batch<Index> RandomBatch(const BatchShape& shape, std::mt19937_64* random) {
  Batch<Index> batch;
  batch.num_rows = shape.num_rows;
  batch.dim = shape.dim;
  batch.ids = std::vector<Index>(shape.num_lookups);
  for (Index& id : batch.ids) {
    const int64_t drawn = RandomBelow(random, shape.num_distinct);
    const int64_t last = shape.num_distinct - 1;
    id = drawn == last ? shape.num_rows - 1 : drawn * ((shape.num_rows - 1) / last);
  }
  batch.grads = RandomFloats(random, shape.num_lookups * shape.dim);
  // Of one row, of none that is looked up, and of many, where the table has as many.
  for (int64_t end : {int64_t{1}, shape.num_rows / 3, shape.num_rows / 3 + 1, shape.num_rows}) {
    if (shape.num_rows < 6) break;
    batch.fields.push_back(end);
    batch.fields.resize(batch.fields.size() + kCountersPerField - 1, -7);  // not to be read
  }
  if (shape.has_stale_rows) {
    constexpr int64_t kWakeSteps[] = {0, kStep - 1, kStep, kStep + 1, int64_t{1} << 40};
    batch.row_states = std::vector<int32_t>(shape.num_rows, 5);
    for (int64_t id = 0; id < shape.num_rows; ++id) {
      if (RandomBelow(random, 5) == 0) continue;
      const bool is_skipped = RandomBelow(random, 2) == 0;
      batch.Sleep(id, kWakeSteps[RandomBelow(random, 5)], kWokenAt - 1 + RandomBelow(random, 2),
                  is_skipped, is_skipped ? 0 : RandomBelow(random, kPeriod));
    }
  }
  return batch;
}

struct ExpectedRow {
  int64_t first_lookup;
  int64_t num_lookups;
  std::vector<float> grad;
};

// What Find() must find in a table.
struct Expected {
  std::map<int64_t, ExpectedRow> rows;  // the live and the deferred ones, by id
  std::map<int64_t, bool> is_deferred;
  RowCounts counts;
};

template <typename Index>
Expected ExpectedOf(const Batch<Index>& batch) {
  Expected expected;
  std::map<int64_t, int64_t> stale;
  for (size_t i = 0; i < batch.ids.size(); ++i) {
    const int64_t id = batch.ids[i];
    ++expected.counts.num_lookups;
    const PoolEntry* entry = batch.EntryOf(id);
    const bool is_asleep =
        entry != nullptr && kStep < entry->wake_step && entry->live_step >= kWokenAt;
    if (is_asleep && entry->is_skipped) {
      ++expected.counts.num_skipped_lookups;
      ++stale[id];
      continue;
    }
    const bool is_deferred = is_asleep && entry->held_steps < kPeriod - 1;
    expected.is_deferred[id] = is_deferred;
    expected.counts.num_deferred_lookups += is_deferred;
    ExpectedRow& row = expected.rows[id];
    const float* grad = batch.grads.data() + i * batch.dim;
    if (row.num_lookups++ == 0) {
      row.first_lookup = i;
      row.grad.assign(grad, grad + batch.dim);
    } else {
      for (int64_t d = 0; d < batch.dim; ++d) row.grad[d] += grad[d];
    }
  }
  expected.counts.num_skipped_row_updates = stale.size();
  for (const auto& row : expected.is_deferred) {
    expected.counts.num_deferred_row_updates += row.second;
  }
  expected.counts.num_row_updates = expected.rows.size() + stale.size();
  return expected;
}

// Counts the lookups of each field alone.
template <typename Index>
std::vector<RowCounts> ExpectedOfFields(const Batch<Index>& batch) {
  std::vector<RowCounts> counts;
  int64_t start = 0;
  for (size_t f = 0; f < batch.fields.size(); f += kCountersPerField) {
    Batch<Index> one = batch;
    one.ids.clear();
    for (const Index id : batch.ids) {
      if (start <= id && id < batch.fields[f]) one.ids.push_back(id);
    }
    counts.push_back(ExpectedOf(one).counts);
    start = batch.fields[f];
  }
  return counts;
}

void CheckCounts(const RowCounts& counts, const RowCounts& expected) {
  CHECK_EQ(counts.num_lookups, expected.num_lookups);
  CHECK_EQ(counts.num_skipped_lookups, expected.num_skipped_lookups);
  CHECK_EQ(counts.num_deferred_lookups, expected.num_deferred_lookups);
  CHECK_EQ(counts.num_deferred_row_updates, expected.num_deferred_row_updates);
  CHECK_EQ(counts.num_row_updates, expected.num_row_updates);
  CHECK_EQ(counts.num_skipped_row_updates, expected.num_skipped_row_updates);
}

std::vector<LiveRows::Run> AllRuns(const LiveRows& live_rows) {
  std::vector<LiveRows::Run> runs = live_rows.found().runs;
  const std::vector<LiveRows::Run>& deferred = live_rows.found().deferred_runs;
  runs.insert(runs.end(), deferred.begin(), deferred.end());
  return runs;
}

bool IsDeferred(const LiveRows& live_rows, const LiveRows::Run& run) {
  for (const LiveRows::Run& deferred : live_rows.found().deferred_runs) {
    if (deferred.rows == run.rows) return true;
  }
  return false;
}

// In any order.
template <typename Index>
void CheckRows(const LiveRows& live_rows, int64_t table, const Batch<Index>& batch,
               const Expected& expected) {
  std::vector<int64_t> ids;
  bool places_match = true, sums_match = true, single_rows_are_the_callers = true;
  bool kinds_match = true, states_match = true;
  for (const LiveRows::Run& run : AllRuns(live_rows)) {
    for (int64_t r = 0; run.table == table && r < run.num_rows; ++r) {
      const LiveRow& row = run.rows[r];
      ids.push_back(row.id);
      const auto found = expected.rows.find(row.id);
      if (found == expected.rows.end()) continue;
      const ExpectedRow& same = found->second;
      kinds_match &= expected.is_deferred.at(row.id) == IsDeferred(live_rows, run);
      states_match &= row.state == (batch.row_states.empty() ? 0 : batch.row_states[row.id]);
      places_match &= row.first_lookup == same.first_lookup;
      sums_match &= std::equal(same.grad.begin(), same.grad.end(), row.grad);
      single_rows_are_the_callers &=
          same.num_lookups > 1 || row.grad == batch.grads.data() + same.first_lookup * batch.dim;
    }
  }
  std::sort(ids.begin(), ids.end());
  std::vector<int64_t> expected_ids;
  for (const auto& row : expected.rows) expected_ids.push_back(row.first);
  CHECK_SAME_BITS(ids, expected_ids);
  CHECK(kinds_match);
  CHECK(states_match);
  CHECK(places_match);
  CHECK(sums_match);
  CHECK(single_rows_are_the_callers);
}

template <typename Index>
void CheckBatchOrder(const LiveRows& live_rows, int64_t table, const Batch<Index>& batch,
                     const Expected& expected, const ParallelFor& parallel_for) {
  std::map<int64_t, int64_t> by_place;
  for (const auto& row : expected.rows) by_place[row.second.first_lookup] = row.first;
  std::vector<Index> expected_ids;
  std::vector<float> expected_grads;
  for (const auto& row : by_place) {
    const std::vector<float>& grad = expected.rows.at(row.second).grad;
    expected_ids.push_back(static_cast<Index>(row.second));
    expected_grads.insert(expected_grads.end(), grad.begin(), grad.end());
  }
  std::vector<Index> ids(expected_ids.size());
  std::vector<float> grads(expected_grads.size());
  live_rows.CopyInBatchOrder(table, batch.ids.size(), batch.dim, ids.data(), grads.data(),
                             parallel_for);
  CHECK_SAME_BITS(ids, expected_ids);
  CHECK_SAME_BITS(grads, expected_grads);
}

// Skipped rows come once each, in order of first appearance, with their states.
template <typename Index>
void CheckSkipped(const LiveRows& live_rows, int64_t table, const Batch<Index>& batch,
                  const Expected& expected, const ParallelFor& parallel_for) {
  std::set<int64_t> seen;
  std::vector<Index> expected_ids;
  std::vector<int32_t> expected_states;
  for (const Index id : batch.ids) {
    if (expected.rows.count(id) > 0 || !seen.insert(id).second) continue;
    expected_ids.push_back(id);
    expected_states.push_back(batch.row_states[id]);
  }
  std::vector<Index> ids(live_rows.counts(table).num_skipped_row_updates);
  std::vector<int32_t> states(ids.size());
  live_rows.CopyInBatchOrder({&live_rows.found().skipped_runs}, table, batch.ids.size(), batch.dim,
                             ids.data(), states.data(), nullptr, parallel_for);
  CHECK_SAME_BITS(ids, expected_ids);
  CHECK_SAME_BITS(states, expected_states);
}

// What the caller sees, in its order.
struct Seen {
  std::vector<int64_t> rows;  // table, id and first lookup of each
  std::vector<float> grads;
};

template <typename Index>
Seen SeenIn(const LiveRows& live_rows, const std::vector<Batch<Index>>& batches) {
  Seen seen;
  for (const LiveRows::Run& run : AllRuns(live_rows)) {
    for (int64_t r = 0; r < run.num_rows; ++r) {
      const LiveRow& row = run.rows[r];
      seen.rows.insert(seen.rows.end(), {run.table, row.id, row.first_lookup});
      seen.grads.insert(seen.grads.end(), row.grad, row.grad + batches[run.table].dim);
    }
  }
  return seen;
}

// A step is right, and the same to the bit and in the same order however its tasks are run.
template <typename Index>
void CheckStep(LiveRows* live_rows, const std::vector<Batch<Index>>& batches) {
  std::vector<Expected> expected;
  std::vector<std::vector<RowCounts>> of_fields;
  for (const Batch<Index>& batch : batches) {
    expected.push_back(ExpectedOf(batch));
    of_fields.push_back(ExpectedOfFields(batch));
  }
  Seen first;
  for (const ParallelFor& parallel_for : AllParallelFors()) {
    const BadLookup bad = live_rows->Find(AllLookups(batches), kStep, parallel_for);
    CHECK_EQ(bad.kind, BadLookup::kNone);
    if (bad.kind != BadLookup::kNone) return;
    for (size_t t = 0; t < batches.size(); ++t) {
      CheckCounts(live_rows->counts(t), expected[t].counts);
      const std::vector<RowCounts>& found = live_rows->found().field_counts[t];
      CHECK_EQ(found.size(), of_fields[t].size());
      for (size_t f = 0; f < found.size(); ++f) CheckCounts(found[f], of_fields[t][f]);
      CHECK_EQ(live_rows->num_read(t), static_cast<int64_t>(expected[t].rows.size()));
      CheckRows(*live_rows, t, batches[t], expected[t]);
      CheckBatchOrder(*live_rows, t, batches[t], expected[t], parallel_for);
      CheckSkipped(*live_rows, t, batches[t], expected[t], parallel_for);
    }
    const Seen seen = SeenIn(*live_rows, batches);
    if (first.rows.empty()) first = seen;
    CHECK_SAME_BITS(seen.rows, first.rows);
    CHECK_SAME_BITS(seen.grads, first.grads);
  }
  AddToDigest(first.rows);
  AddToDigest(first.grads);
}

constexpr int64_t kMostRows = int64_t{1} << 31;  // of int32 ids

const BatchShape kShapes[] = {
    {0, 1, 10, 3, false},
    {1, 1, 1, 1, false},
    {1, 1, 5, 16, true},
    {2, 1, kMostRows, 33, false},
    {17, 6, 40, 3, true},
    {100, 10, 1000, 1, false},
    {4096, 4096, 9000, 1, true},
    {4097, 300, kMostRows, 3, false},
    {9000, 9000, 9000, 16, true},
    {60000, 1, 7, 16, false},
    {60000, 1, 7, 3, true},
    {60000, 25, 100, 33, true},
    {60000, 3000, kMostRows, 1, false},
    {60000, 50000, 70000, 3, true},
};

template <typename Index>
void TestRandomBatches() {
  std::mt19937_64 random(1);
  LiveRows reused;  // over steps of all sizes, so that what an earlier one left must not show
  for (const BatchShape& shape : kShapes) {
    current_case = std::to_string(8 * sizeof(Index)) + "-bit ids, " +
                   std::to_string(shape.num_lookups) + " lookups of " +
                   std::to_string(shape.num_distinct) + " ids, dim " + std::to_string(shape.dim);
    CheckStep(&reused, std::vector<Batch<Index>>{RandomBatch<Index>(shape, &random)});
  }
}

// Lookups that share a gradient row do what those do that have a copy of it each.
template <typename Index>
void TestBags() {
  std::mt19937_64 random(7);
  LiveRows live_rows;
  for (const BatchShape& shape : kShapes) {
    current_case = "bags of " + std::to_string(shape.num_lookups) + " lookups";
    Batch<Index> copied = RandomBatch<Index>(shape, &random);
    const int64_t num_grads = shape.num_lookups / 3 + 1, dim = shape.dim;
    const std::vector<float> grads = RandomFloats(&random, num_grads * dim);
    std::vector<int32_t> bags(shape.num_lookups);
    for (int64_t i = 0; i < shape.num_lookups; ++i) {
      bags[i] = static_cast<int32_t>(RandomBelow(&random, num_grads));
      std::copy_n(grads.begin() + bags[i] * dim, dim, copied.grads.begin() + i * dim);
    }
    const std::vector<Batch<Index>> batches = {copied};
    std::vector<Lookups<Index>> lookups = AllLookups(batches);
    CHECK_EQ(live_rows.Find(lookups, kStep, AllParallelFors()[0]).kind, BadLookup::kNone);
    const Seen expected = SeenIn(live_rows, batches);
    lookups[0].grads = grads.data();
    lookups[0].bags = bags.data();
    lookups[0].num_grads = num_grads;
    for (const ParallelFor& parallel_for : AllParallelFors()) {
      CHECK_EQ(live_rows.Find(lookups, kStep, parallel_for).kind, BadLookup::kNone);
      const Seen seen = SeenIn(live_rows, batches);
      CHECK_SAME_BITS(seen.rows, expected.rows);
      CHECK_SAME_BITS(seen.grads, expected.grads);
    }
    for (const int64_t bad_bag : {int64_t{-1}, num_grads}) {
      if (bags.empty()) continue;
      bags.back() = static_cast<int32_t>(bad_bag);
      const BadLookup bad = live_rows.Find(lookups, kStep, AllParallelFors()[0]);
      CHECK_EQ(bad.kind, BadLookup::kBag);
      CHECK_EQ(bad.id, bad_bag);
      CHECK_EQ(bad.lookup, shape.num_lookups - 1);
    }
  }
}

template <typename Index>
std::vector<Batch<Index>> SeveralTables(std::mt19937_64* random) {
  std::vector<Batch<Index>> batches;
  for (const BatchShape& shape : {BatchShape{500, 80, 100, 1, true},
                                  {0, 1, 10, 3, false},
                                  {20000, 9000, 20000, 16, true},
                                  {1, 1, 1, 33, false},
                                  {9000, 9000, 9001, 3, false},
                                  {700, 700, 1000, 33, true}}) {
    batches.push_back(RandomBatch<Index>(shape, random));
  }
  return batches;
}

template <typename Index>
void TestSeveralTables() {
  std::mt19937_64 random(2);
  current_case = "several tables";
  LiveRows live_rows;
  CheckStep(&live_rows, SeveralTables<Index>(&random));
}

// Every row is summed, so that sums leave no room between buckets and tables, but for one id thrice
// in the first bucket, from which on all buckets begin at an odd place.
void TestSumsSideBySide() {
  current_case = "every id twice";
  std::mt19937_64 random(6);
  Batch<int64_t> pairs;
  pairs.num_rows = 5000;
  pairs.dim = 3;
  pairs.ids = std::vector<int64_t>(10001);
  for (int64_t i = 0; i < 10001; ++i) pairs.ids[i] = i * 7 % 5000;
  pairs.grads = RandomFloats(&random, 10001 * pairs.dim);
  LiveRows live_rows;
  CheckStep(&live_rows, std::vector<Batch<int64_t>>{pairs, pairs});
}

// Ids whose hashes are 0, 1, 2, ... or -1, -2, ...: all meet in one bucket, and their search for a
// free slot starts at its first or last one.
void TestIdsOfAlikeHashes() {
  constexpr uint64_t kInverse = 0xF1DE83E19937733Du;
  static_assert(kInverse * 0x9E3779B97F4A7C15u == 1, "of the multiplier in live_rows.cc");
  for (const uint64_t sign : {uint64_t{1}, ~uint64_t{0}}) {
    current_case = sign == 1 ? "hashes from 0 up" : "hashes from 2^64 - 1 down";
    std::vector<int64_t> ids;
    for (uint64_t hash = 1; ids.size() < 6000; ++hash) {
      const int64_t id = static_cast<int64_t>(hash * sign * kInverse);
      if (id >= 0) ids.push_back(id);
    }
    ids.resize(9000);
    std::copy_n(ids.begin(), 3000, ids.begin() + 6000);
    std::mt19937_64 random(3);
    Batch<int64_t> batch;
    batch.num_rows = std::numeric_limits<int64_t>::max();
    batch.dim = 3;
    batch.ids = std::vector<int64_t>(ids.begin(), ids.end());
    batch.grads = RandomFloats(&random, 9000 * batch.dim);
    LiveRows live_rows;
    CheckStep(&live_rows, std::vector<Batch<int64_t>>{batch});
  }
}

template <typename Index>
void CheckBad(LiveRows* live_rows, const std::vector<Batch<Index>>& batches,
              const BadLookup& expected) {
  for (const ParallelFor& parallel_for : AllParallelFors()) {
    const BadLookup bad = live_rows->Find(AllLookups(batches), kStep, parallel_for);
    CHECK_EQ(bad.kind, expected.kind);
    CHECK_EQ(bad.table, expected.table);
    CHECK_EQ(bad.lookup, expected.lookup);
    CHECK_EQ(bad.id, expected.id);
  }
}

template <typename Index>
void TestBadIds() {
  std::mt19937_64 random(4);
  const std::vector<Batch<Index>> good = SeveralTables<Index>(&random);
  const std::vector<int64_t> places = {0, 4095, 4096, 11000, 19999};  // in the first to last chunk
  LiveRows live_rows;
  for (const int64_t place : places) {
    for (const Index id : {Index{-1}, static_cast<Index>(good[2].num_rows),
                           std::numeric_limits<Index>::max(), std::numeric_limits<Index>::min()}) {
      current_case = "id " + std::to_string(id) + " at " + std::to_string(place);
      std::vector<Batch<Index>> batches = good;
      batches[2].ids[place] = id;
      batches[2].ids[19999] = id;
      batches[4].ids[0] = -1;  // in a later table
      batches[0].grads[0] = kInfinity;
      CheckBad(&live_rows, batches, {BadLookup::kId, 2, place, id});
    }
  }
  current_case = "after steps with bad ids";
  CheckStep(&live_rows, good);

  current_case = "a table without rows";
  std::vector<Batch<Index>> batches = good;
  batches[3].num_rows = 0;
  CheckBad(&live_rows, batches, {BadLookup::kId, 3, 0, 0});
}

// What a state says of another row, or of an entry that is not in use, is not believed.
void TestBadStates() {
  std::mt19937_64 random(7);
  Batch<int64_t> batch = RandomBatch<int64_t>({9000, 100, 1000, 3, false}, &random);
  batch.ids[20] = 777;  // no multiple of 999 / 99, so only here
  batch.row_states = std::vector<int32_t>(1000, 0);
  batch.Sleep(5, kStep + 1, kWokenAt, true);
  LiveRows live_rows;
  for (const int32_t state : {-1, -2, std::numeric_limits<int32_t>::min()}) {
    current_case = "row state " + std::to_string(state);
    batch.row_states[777] = state;
    CheckBad(&live_rows, std::vector<Batch<int64_t>>{batch}, {BadLookup::kState, 0, 20, 777});
  }
}

void TestBadGradients() {
  std::mt19937_64 random(5);
  constexpr float kLargest = std::numeric_limits<float>::max();
  for (const int64_t dim : {1, 3, 16, 33}) {
    for (const auto& two : {std::pair<float, float>{NAN, 0},
                            {0, NAN},
                            {kInfinity, 1},
                            {-kInfinity, 0},
                            {kInfinity, -kInfinity},
                            {kLargest, kLargest}}) {
      current_case = "gradients " + std::to_string(two.first) + " and " +
                     std::to_string(two.second) + ", dim " + std::to_string(dim);
      Batch<int64_t> batch = RandomBatch<int64_t>({9000, 100, 1000, dim, false}, &random);
      // 771 to 779 are no multiples of 999 / 99, so only here.
      batch.ids[20] = batch.ids[8999] = 777;
      batch.grads[21 * dim - 1] = two.first;
      batch.grads[9000 * dim - 1] = two.second;
      for (const int64_t later : {1, 2, 3, 4, 5, 6, 8, 9}) {
        batch.ids[20 + later] = 770 + later;
        batch.grads[(20 + later) * dim] = NAN;
      }
      LiveRows live_rows;
      CheckBad(&live_rows, std::vector<Batch<int64_t>>{batch}, {BadLookup::kGradient, 0, 20, 777});
      batch.row_states = std::vector<int32_t>(1000, 0);
      // What is skipped is never read.
      for (int64_t id = 771; id < 780; ++id) batch.Sleep(id, kStep + 1, kWokenAt, true);
      CheckStep(&live_rows, std::vector<Batch<int64_t>>{batch});
    }
  }
}

}  // namespace

void TestLiveRows() {
  TestRandomBatches<int32_t>();
  TestRandomBatches<int64_t>();
  TestSeveralTables<int32_t>();
  TestSeveralTables<int64_t>();
  TestBags<int32_t>();
  TestBags<int64_t>();
  TestSumsSideBySide();
  TestIdsOfAlikeHashes();
  TestBadIds<int32_t>();
  TestBadIds<int64_t>();
  TestBadStates();
  TestBadGradients();
}

}  // namespace slipstream
