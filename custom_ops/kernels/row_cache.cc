#include "row_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "simd.h"

namespace slipstream {
namespace {

// A full cache looks at so many entries for one that is awake before it gives up.
constexpr int64_t kProbes = 8;
constexpr int64_t kSweptRows = 1024;
// Ids by which the memory that a search begins at is asked for before the search.
constexpr int64_t kAhead = 8;

uint64_t Hash(int64_t id) {
  // Fibonacci hashing: the product's high bits depend on all bits of the id.
  return static_cast<uint64_t>(id) * 0x9E3779B97F4A7C15ull;
}

float Clipped(float x, float limit) {
  return limit == 0 ? x : std::min(std::max(x, -limit), limit);
}

SLIPSTREAM_SIMD
bool IsFinite(const float* row, int64_t dim) {
  // A NaN or an infinity times 0 is NaN, and so is every sum with it.
  return LaneSum(dim, [&](int64_t d) { return row[d] * 0.0f; }) == 0.0f;
}

}  // namespace

int Shards::of(int64_t id) const {
  return static_cast<int>(std::upper_bound(starts.begin(), starts.end(), id) - starts.begin()) - 1;
}

RowCache::RowCache(const Shards& shards, int64_t dim, int64_t capacity)
    : shards_(shards),
      dim_(dim),
      capacity_(capacity),
      counts_(shards.num()),
      num_held_(shards.num(), 0),
      pushed_(shards.num()) {}

BadRow RowCache::Find(const int64_t* ids, int64_t num_lookups, int64_t step, int64_t max_age,
                      int32_t* inverse, Distinct* distinct) {
  for (int64_t i = 0; i < num_lookups; ++i) {
    if (ids[i] < 0 || ids[i] >= shards_.num_rows()) return {i, ids[i]};
  }
  int bits = 4;
  while ((int64_t{1} << bits) < 2 * num_lookups) ++bits;
  const int64_t size = int64_t{1} << bits, mask = size - 1;
  int64_t* keys = keys_.Reserve(size);
  int32_t* places = places_.Reserve(size);
  std::fill(keys, keys + size, -1);
  std::vector<int64_t> found;
  std::vector<int32_t> lookups;
  for (int64_t i = 0; i < num_lookups; ++i) {
    int64_t at = static_cast<int64_t>(Hash(ids[i]) >> (64 - bits));
    while (keys[at] != ids[i] && keys[at] != -1) at = (at + 1) & mask;
    if (keys[at] == -1) {
      keys[at] = ids[i];
      places[at] = static_cast<int32_t>(found.size());
      found.push_back(ids[i]);
      lookups.push_back(0);
    }
    inverse[i] = places[at];
    ++lookups[places[at]];
  }
  const int64_t num = static_cast<int64_t>(found.size());
  std::vector<int32_t> group(num), slots(num, -1);
  std::vector<int32_t>& place = distinct->order;
  place.resize(num);
  // Groups: 0 is here; of shard s, 1 + 2 s must be pulled, and 2 + 2 s is known.
  std::vector<int64_t> next(2 * shards_.num() + 2, 0);
  for (int64_t i = 0; i < num; ++i) {
    if (i + kAhead < num) slot_of_.Prefetch(found[i + kAhead]);
    const int shard = shards_.of(found[i]);
    const int32_t slot = slots[i] = slot_of_.Find(found[i]);
    const bool is_here =
        slot >= 0 && step < entries_[slot].wake_step && step - entries_[slot].pulled_step < max_age;
    // With an age of 0 nothing that is here is made use of.
    const bool is_known = slot >= 0 && max_age > 0;
    group[i] = is_here ? 0 : 1 + 2 * shard + is_known;
    ++next[group[i] + 1];
    ++(is_here ? counts_[shard].num_cached_rows : counts_[shard].num_pulled_rows);
  }
  distinct->num_cached = next[1];
  distinct->num_pulled.clear();
  distinct->num_known.clear();
  for (int shard = 0; shard < shards_.num(); ++shard) {
    distinct->num_known.push_back(next[3 + 2 * shard]);
    distinct->num_pulled.push_back(next[2 + 2 * shard] + next[3 + 2 * shard]);
  }
  for (size_t g = 1; g < next.size(); ++g) next[g] += next[g - 1];
  distinct->ids.resize(num);
  distinct->slots.resize(num);
  distinct->num_lookups.resize(num);
  for (int64_t i = 0; i < num; ++i) {
    place[i] = static_cast<int32_t>(next[group[i]]++);
    distinct->ids[place[i]] = found[i];
    distinct->slots[place[i]] = slots[i];
    distinct->num_lookups[place[i]] = lookups[i];
  }
  for (int64_t i = 0; i < num_lookups; ++i) inverse[i] = place[inverse[i]];
  return {};
}

void RowCache::CopyValues(const int32_t* slots, int64_t num, float* rows) const {
  for (int64_t i = 0; i < num; ++i) {
    std::memcpy(rows + i * dim_, value(slots[i]), dim_ * sizeof(float));
  }
}

void RowCache::Store(const int64_t* ids, const float* const* rows, const int32_t* sleeps,
                     int64_t num, int64_t step) {
  for (int64_t i = 0; i < num; ++i) {
    if (i + kAhead < num) slot_of_.Prefetch(ids[i + kAhead]);
    if ((sleeps[i] & Sleep::kSameBit) != 0) {
      WorkerCounts& counts = counts_[shards_.of(ids[i])];
      --counts.num_pulled_rows;
      ++counts.num_cached_rows;
    }
    const Sleep sleep = Sleep::Unpacked(sleeps[i]);
    int32_t slot = slot_of_.Find(ids[i]);
    if (slot < 0) {
      if (sleep.steps == 0 || (slot = NewSlot(ids[i], step)) < 0) continue;
    }
    Entry& entry = entries_[slot];
    // Another worker was first to send after the row woke; this one's part must not wait for the
    // next time, and the one after.
    entry.is_due = entry.is_due || (entry.held_steps > 0 && step >= entry.wake_step);
    entry.wake_step = step + sleep.steps;
    entry.pulled_step = step;
    entry.max_batches = sleep.max_batches;
    std::memcpy(value(slot), rows[i], dim_ * sizeof(float));
  }
}

BadRow RowCache::Push(const int64_t* ids, const float* grads, const int32_t* num_lookups,
                      int64_t num, int64_t step, float clip_value, bool flush) {
  for (int64_t i = 0; i < num; ++i) {
    if (!IsFinite(grads + i * dim_, dim_)) return {i, ids[i]};
  }
  clip_value_ = clip_value;
  for (auto& rows : pushed_) rows.clear();
  for (int64_t i = 0; i < num; ++i) {
    if (i + kAhead < num) slot_of_.Prefetch(ids[i + kAhead]);
    const float* grad = grads + i * dim_;
    const int shard = shards_.of(ids[i]);
    WorkerCounts& counts = counts_[shard];
    counts.num_lookups += num_lookups[i];
    ++counts.num_row_updates;
    const int32_t slot = slot_of_.Find(ids[i]);
    if (slot >= 0 && step < entries_[slot].wake_step && !flush) {
      Entry& entry = entries_[slot];
      if (entry.is_due) {
        pushed_[shard].push_back({ids[i], grad, num_lookups[i], slot, true});
        continue;
      }
      if (entry.max_batches == 0) {
        counts.num_skipped_lookups += num_lookups[i];
        ++counts.num_skipped_row_updates;
        continue;
      }
      if (entry.held_steps < entry.max_batches) {
        float* __restrict sum = held(slot);
        for (int64_t d = 0; d < dim_; ++d) sum[d] += Clipped(grad[d], clip_value);
        ++entry.held_steps;
        ++num_held_[shard];
        counts.num_deferred_lookups += num_lookups[i];
        ++counts.num_deferred_row_updates;
        continue;
      }
    }
    pushed_[shard].push_back({ids[i], grad, num_lookups[i], slot, false});
    // Out of reach of a sweep and of the rest of a flush; freed by Finish().
    if (slot >= 0) slot_of_.Erase(ids[i]);
  }
  if (flush) {
    for (size_t slot = 0; slot < entries_.size(); ++slot) GiveOut(static_cast<int32_t>(slot));
  } else if (8 * num_entries() >= 7 * capacity_) {
    Sweep(step);
  }
  return {};
}

void RowCache::CopyPushed(int shard, int32_t* ids, float* grads, int32_t* batches) const {
  const std::vector<PushedRow>& rows = pushed_[shard];
  for (size_t i = 0; i < rows.size(); ++i) {
    const PushedRow& row = rows[i];
    const int32_t held_steps = row.slot < 0 ? 0 : entries_[row.slot].held_steps;
    float* __restrict grad = grads + i * dim_;
    ids[i] = static_cast<int32_t>(row.id - shards_.starts[shard]);
    batches[2 * i] = held_steps + (row.grad != nullptr);
    batches[2 * i + 1] = row.num_lookups;
    if (row.grad == nullptr) {
      std::memcpy(grad, held(row.slot), dim_ * sizeof(float));
    } else if (held_steps == 0 && clip_value_ == 0) {
      std::memcpy(grad, row.grad, dim_ * sizeof(float));
    } else {
      const float* sum = held_steps == 0 ? nullptr : held(row.slot);
      for (int64_t d = 0; d < dim_; ++d) {
        grad[d] = (sum == nullptr ? 0 : sum[d]) + Clipped(row.grad[d], clip_value_);
      }
    }
  }
}

void RowCache::Finish() {
  for (int shard = 0; shard < shards_.num(); ++shard) {
    for (const PushedRow& row : pushed_[shard]) {
      if (row.slot < 0) continue;
      Entry& entry = entries_[row.slot];
      num_held_[shard] -= entry.held_steps;
      if (row.is_kept) {
        std::fill(held(row.slot), held(row.slot) + dim_, 0.0f);
        entry.held_steps = 0;
        entry.is_due = false;
      } else {
        Free(row.slot);
      }
    }
    pushed_[shard].clear();
  }
}

WorkerCounts RowCache::TakeCounts(int shard) {
  const WorkerCounts counts = counts_[shard];
  counts_[shard] = {};
  return counts;
}

int32_t RowCache::NewSlot(int64_t id, int64_t step) {
  int32_t slot = -1;
  if (!free_.empty()) {
    slot = free_.back();
    free_.pop_back();
  } else if (static_cast<int64_t>(entries_.size()) < capacity_) {
    slot = static_cast<int32_t>(entries_.size());
    entries_.emplace_back();
    floats_.resize(floats_.size() + 2 * dim_);
  } else {
    for (int64_t i = 0; i < kProbes && slot < 0 && capacity_ > 0; ++i) {
      hand_ = (hand_ + 1) % capacity_;
      const Entry& entry = entries_[hand_];
      if (entry.id >= 0 && step >= entry.wake_step && entry.held_steps == 0) {
        Free(static_cast<int32_t>(hand_));
        slot = free_.back();
        free_.pop_back();
      }
    }
  }
  if (slot < 0) return -1;
  entries_[slot] = {};
  entries_[slot].id = id;
  std::fill(held(slot), held(slot) + dim_, 0.0f);
  slot_of_.Set(id, slot);
  return slot;
}

void RowCache::Free(int32_t slot) {
  slot_of_.Erase(entries_[slot].id);
  entries_[slot] = {};
  free_.push_back(slot);
}

// Gives out what is held of a row that is still in the map, and frees it.
void RowCache::GiveOut(int32_t slot) {
  const Entry& entry = entries_[slot];
  if (entry.id < 0 || slot_of_.Find(entry.id) != slot) return;
  if (entry.held_steps == 0) return Free(slot);
  pushed_[shards_.of(entry.id)].push_back({entry.id, nullptr, 0, slot, false});
  slot_of_.Erase(entry.id);
}

void RowCache::Sweep(int64_t step) {
  const int64_t num = static_cast<int64_t>(entries_.size());
  for (int64_t i = 0; i < std::min(num, kSweptRows); ++i) {
    hand_ = (hand_ + 1) % num;
    if (step >= entries_[hand_].wake_step) GiveOut(static_cast<int32_t>(hand_));
  }
}

}  // namespace slipstream
