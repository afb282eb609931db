#ifndef SLIPSTREAM_KERNELS_ROW_CACHE_H_
#define SLIPSTREAM_KERNELS_ROW_CACHE_H_

// What a worker keeps of a table that lives on parameter servers: values of rows that sleep, which
// do not change, and the sums of their gradients until they wake.
// docs/reference/parameter_servers.md.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "buffer.h"
#include "slot_map.h"

namespace slipstream {

// How a table is split: shard s has the rows [starts[s], starts[s + 1]).
struct Shards {
  std::vector<int64_t> starts;
  int num() const { return static_cast<int>(starts.size()) - 1; }
  int64_t num_rows() const { return starts.back(); }
  int of(int64_t id) const;
};

// The first ids and gradients of a batch that are wrong; -1: none.
struct BadRow {
  int64_t position = -1;
  int64_t id = 0;
};

// Counts of one shard since they were last taken. The first six are a table's counters.
struct WorkerCounts {
  int64_t num_lookups = 0;
  int64_t num_skipped_lookups = 0;
  int64_t num_deferred_lookups = 0;
  int64_t num_row_updates = 0;
  int64_t num_skipped_row_updates = 0;
  int64_t num_deferred_row_updates = 0;
  int64_t num_pulled_rows = 0;
  int64_t num_cached_rows = 0;
};

// What a worker sends in place of a row that it had, to ask whether it is still that. Two values
// have the same by chance once in 2^64.
inline int64_t RowHash(const float* row, int64_t dim) {
  // Multiplying by an odd number and folding are each reversible: no two rows that differ in one
  // element alone have the same hash.
  const auto mix = [](uint64_t hash, uint64_t bits) {
    hash = (hash ^ bits) * 0xD6E8FEB86659FD93ull;
    return hash ^ hash >> 32;
  };
  // Lanes do not wait for each other, as each product waits for the one before it.
  constexpr int64_t kLanes = 4;
  uint64_t lanes[kLanes] = {1, 2, 3, 4};
  const auto take = [&](int64_t d, int64_t lane) {
    uint32_t bits;
    std::memcpy(&bits, row + d, sizeof(bits));
    lanes[lane] = mix(lanes[lane], bits);
  };
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) take(d + lane, lane);
  }
  for (; d < dim; ++d) take(d, d % kLanes);
  uint64_t hash = 0x9E3779B97F4A7C15ull;
  for (const uint64_t lane : lanes) hash = mix(hash, lane);
  return static_cast<int64_t>(hash);
}

// How long a row sleeps, in one word that travels with it. What does not fit counts as the most
// that does: a worker then pulls or sends a row sooner than it must.
struct Sleep {
  int64_t steps = 0;        // from this one until the row may change; 0: it is live
  int64_t max_batches = 0;  // whose gradients a worker may hold until then; 0: they are skipped

  static constexpr int kStepBits = 20, kBatchBits = 11;
  // Set where the worker's own value of the row is right, so that none was sent.
  static constexpr int32_t kSameBit = INT32_MIN;
  int32_t Packed() const {
    const int64_t most_steps = (1 << kStepBits) - 1, most_batches = (1 << kBatchBits) - 1;
    return static_cast<int32_t>(std::min(max_batches, most_batches) << kStepBits |
                                std::min(steps, most_steps));
  }
  static Sleep Unpacked(int32_t word) {
    word &= ~kSameBit;
    return {word & ((1 << kStepBits) - 1), word >> kStepBits};
  }
};

// Not safe for two calls at once.
class RowCache {
 public:
  // Keeps at most `capacity` rows of `dim` elements.
  RowCache(const Shards& shards, int64_t dim, int64_t capacity);

  // Distinct ids of a batch: those whose values are here come first, then those of the first shard
  // that must be pulled, then the second's, each in order of first appearance. Of a shard's, the
  // last are known: their values are here, but may have changed.
  struct Distinct {
    std::vector<int64_t> ids;
    std::vector<int32_t> num_lookups;  // of each id
    std::vector<int32_t> order;        // places in `ids`, in order of first appearance
    std::vector<int32_t> slots;        // of the values that are here, for CopyValues(); else -1
    int64_t num_cached = 0;
    std::vector<int64_t> num_pulled;  // per shard
    std::vector<int64_t> num_known;   // per shard: of those
  };

  // Finds them.
  //   ids     [num_lookups]
  //   max_age steps for which a value may be used once it was pulled; 0: none is
  //   inverse [num_lookups], overwritten: each lookup's place in Distinct::ids
  // Where an id is not in the table, only the result is meaningful.
  BadRow Find(const int64_t* ids, int64_t num_lookups, int64_t step, int64_t max_age,
              int32_t* inverse, Distinct* distinct);
  // Values that are here.
  //   slots [num], as Find() has them; nothing else was called since
  //   rows  [num, dim], overwritten
  void CopyValues(const int32_t* slots, int64_t num, float* rows) const;

  // Keeps rows of one shard that sleep, if there is room.
  //   ids    [num], of the whole table
  //   rows   [num]: of dim elements each
  //   sleeps [num]: packed
  void Store(const int64_t* ids, const float* const* rows, const int32_t* sleeps, int64_t num,
             int64_t step);

  // Takes the summed gradients of distinct rows: holds those of rows that sleep, drops those that
  // are skipped, and gives out all others, with what was held of them. Rows awake whose room is
  // needed are given out too; where `flush`, all that is held, and nothing is kept.
  //   ids         [num], of the whole table, distinct
  //   grads       [num, dim]
  //   num_lookups [num]
  //   clip_value  bound on each element of a batch's gradient; 0: none
  // Where a gradient is not finite, nothing has changed.
  BadRow Push(const int64_t* ids, const float* grads, const int32_t* num_lookups, int64_t num,
              int64_t step, float clip_value, bool flush);
  int64_t num_pushed(int shard) const { return static_cast<int64_t>(pushed_[shard].size()); }
  // What Push() gave out for a shard; once for each shard, and then Finish().
  //   ids     [num_pushed], of the shard
  //   grads   [num_pushed, dim]
  //   batches [num_pushed, 2]: batches that the gradient is of, and lookups in this batch
  void CopyPushed(int shard, int32_t* ids, float* grads, int32_t* batches) const;
  void Finish();

  // What happened since the last call.
  WorkerCounts TakeCounts(int shard);
  // Batches of which gradients are held.
  int64_t num_held(int shard) const { return num_held_[shard]; }
  int64_t num_entries() const { return slot_of_.size(); }

 private:
  struct Entry {
    int64_t id = -1;  // -1: free
    int64_t wake_step = 0;
    int64_t pulled_step = 0;
    int64_t max_batches = 0;  // as Sleep's
    int32_t held_steps = 0;
    bool is_due = false;  // it woke, so what is held is to be sent, though it sleeps again
  };
  struct PushedRow {
    int64_t id;
    const float* grad;  // null: none in this batch
    int32_t num_lookups;
    int32_t slot;  // of what is held of it; -1: nothing is
    bool is_kept;  // whether its value stays here
  };
  float* value(int32_t slot) { return floats_.data() + 2 * dim_ * slot; }
  const float* value(int32_t slot) const { return floats_.data() + 2 * dim_ * slot; }
  float* held(int32_t slot) { return value(slot) + dim_; }
  const float* held(int32_t slot) const { return value(slot) + dim_; }
  int32_t NewSlot(int64_t id, int64_t step);
  void Free(int32_t slot);
  void GiveOut(int32_t slot);
  void Sweep(int64_t step);

  Shards shards_;
  int64_t dim_;
  int64_t capacity_;
  SlotMap slot_of_;
  std::vector<Entry> entries_;
  std::vector<float> floats_;  // [entries, 2 dim]: value, held
  std::vector<int32_t> free_;
  int64_t hand_ = 0;  // where the next sweep begins
  std::vector<WorkerCounts> counts_;
  std::vector<int64_t> num_held_;
  std::vector<std::vector<PushedRow>> pushed_;
  float clip_value_ = 0;
  // Of Find().
  Buffer<int64_t> keys_;
  Buffer<int32_t> places_;
};

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_ROW_CACHE_H_
