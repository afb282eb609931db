#include "vocabulary.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace slipstream {
namespace {

// Lookups from one stage of a lookup to the next: as many cache lines as a core can wait for.
constexpr int64_t kDistance = 16;
constexpr int64_t kChunk = 4096;
// Lookups from the prefetch to the use, of ids without a row.
constexpr int64_t kAhead = 16;
constexpr int64_t kMostCounted = int64_t{1} << 61;
constexpr int64_t kUnknown = -1;
// It may have one, in a later bucket than the first.
constexpr int64_t kNotThere = -2;

uint64_t Hash(const int64_t* words, int64_t num_words) {
  uint64_t hash = 0x9E3779B97F4A7C15u;
  for (int64_t w = 0; w < num_words; ++w) {
    hash ^= static_cast<uint64_t>(words[w]);
    hash *= 0xFF51AFD7ED558CCDu;
    hash ^= hash >> 32;
    hash *= 0xC4CEB9FE1A85EC53u;
    hash ^= hash >> 29;
  }
  return hash;
}

// A number in [0, num), num < 2^31, of the upper half of a hash.
int64_t Scaled(uint64_t hash, int64_t num) {
  return static_cast<int64_t>((hash >> 32) * static_cast<uint64_t>(num) >> 32);
}

int64_t SlotOf(uint64_t hash, int64_t row) {
  return static_cast<int64_t>(hash << 32 | static_cast<uint64_t>(row + 1));
}
uint32_t TagOf(int64_t slot) { return static_cast<uint32_t>(static_cast<uint64_t>(slot) >> 32); }
int64_t RowOf(int64_t slot) { return static_cast<int64_t>(slot & 0xFFFFFFFF) - 1; }

// A bit for each slot of a bucket with a tag, those of free slots too where it is 0. Without
// branches, as below: nobody can foretell them.
unsigned WithTag(const int64_t* slots, uint32_t tag) {
  unsigned found = 0;
  for (int64_t s = 0; s < kSlots; ++s) found |= unsigned{TagOf(slots[s]) == tag} << s;
  return found;
}

// The last of them, 0 where there is none.
int64_t LastWithTag(const int64_t* slots, uint32_t tag) {
  int64_t slot = 0;
  for (int64_t s = 0; s < kSlots; ++s) slot = TagOf(slots[s]) == tag ? slots[s] : slot;
  return slot;
}

bool IsFull(const int64_t* slots) {
  bool is_full = true;
  for (int64_t s = 0; s < kSlots; ++s) is_full &= slots[s] != 0;
  return is_full;
}

// Of what is in last_seen: the step without its upper bits, the count, and half of the hash.
constexpr int64_t kSteps = int64_t{1} << kStepBits;
constexpr int64_t kMaxCount = (int64_t{1} << (32 - kStepBits)) - 1;
int64_t StepOf(int64_t seen) { return seen & (kSteps - 1); }
int64_t CountOf(int64_t seen) { return (seen & 0xFFFFFFFF) >> kStepBits; }
uint32_t HashOf(int64_t seen) { return static_cast<uint32_t>(static_cast<uint64_t>(seen) >> 32); }

void Mark(uint32_t* bits, int64_t place) { bits[place / 32] |= 1u << (place % 32); }

//   kNumWords  int64 words of an id; 0: as the settings say
template <int64_t kNumWords>
class Step {
 public:
  Step(const VocabularySettings& settings, const Vocabulary& v, std::vector<int64_t>* taken_back)
      : settings_(settings), v_(v), counters_(*v.counters), taken_back_(*taken_back) {}

  void Run(const int64_t* ids, int64_t num, int64_t* rows, const ParallelFor& parallel_for) {
    ++counters_.step;
    parallel_for((num + kChunk - 1) / kChunk, [&](int64_t chunk) {
      const int64_t begin = chunk * kChunk;
      FindChunk(Id(ids, begin), std::min(kChunk, num - begin), rows + begin);
    });
    Forget();
    unknown_.resize(num);
    int64_t num_padding = 0, num_unknown = 0;
    for (int64_t i = 0; i < num; ++i) {
      unknown_[num_unknown] = i;
      num_unknown += rows[i] == kUnknown;
      num_padding += rows[i] == 0 && !settings_.padding.empty();
    }
    unknown_.resize(num_unknown);
    counters_.num_lookups += num;
    counters_.num_padding_lookups += num_padding;
    counters_.num_known_lookups += num - num_padding - num_unknown;
    AdmitAll(ids, rows);
  }

 private:
  int64_t num_words() const { return kNumWords > 0 ? kNumWords : settings_.num_words; }
  const int64_t* Id(const int64_t* ids, int64_t i) const { return ids + i * num_words(); }
  uint64_t HashOfId(const int64_t* id) const { return Hash(id, num_words()); }

  // A slot may say anything, of a checkpoint that somebody damaged.
  bool IsInTable(int64_t row) const {
    return static_cast<uint64_t>(row) < static_cast<uint64_t>(v_.capacity);
  }

  // Whether a row that has a slot with the tag of an id is the id's.
  bool IsId(int64_t row, const int64_t* id, uint64_t hash) const {
    if (!IsInTable(row)) return false;
    // No two words have the same hash, of which the tag is one half. So a cache line less is read.
    // Another thread may see the row now, which leaves this half as it is.
    if (kNumWords == 1) {
      return HashOf(__atomic_load_n(v_.last_seen + row, __ATOMIC_RELAXED)) == hash >> 32;
    }
    return IsSame(v_.ids + row * num_words(), id);
  }
  bool IsPadding(const int64_t* id) const {
    return !settings_.padding.empty() && IsSame(settings_.padding.data(), id);
  }
  bool IsSame(const int64_t* a, const int64_t* b) const {
    if (kNumWords == 1) return *a == *b;
    return std::memcmp(a, b, num_words() * sizeof(int64_t)) == 0;
  }
  bool IsTooLong(const int64_t* id) const {
    return settings_.is_string && static_cast<uint64_t>(id[num_words() - 1]) >> 56 == kTooLong;
  }
  int64_t* Bucket(int64_t bucket) const { return v_.index + bucket * kSlots; }
  int64_t After(int64_t bucket) const { return bucket + 1 == v_.num_buckets ? 0 : bucket + 1; }

  // The row of an id, kUnknown where it has none.
  int64_t Find(const int64_t* id, uint64_t hash) const {
    int64_t bucket = Scaled(hash, v_.num_buckets);
    for (int64_t n = 0; n < v_.num_buckets; ++n, bucket = After(bucket)) {
      const int64_t* slots = Bucket(bucket);
      for (unsigned left = WithTag(slots, static_cast<uint32_t>(hash)); left != 0;
           left &= left - 1) {
        const int64_t row = RowOf(slots[__builtin_ctz(left)]);
        if (IsId(row, id, hash)) return row;
      }
      if (!IsFull(slots)) break;
    }
    return kUnknown;
  }

  int64_t SeenAt(uint64_t hash, int64_t count) const {
    return static_cast<int64_t>(hash >> 32 << 32) | count << kStepBits | StepOf(counters_.step);
  }

  // How many steps ago a row was looked up.
  int64_t AgeOf(int64_t seen) const { return StepOf(counters_.step - StepOf(seen)); }

  // A step counts once: threads that see a row at once write the same.
  void See(int64_t row, uint64_t hash) const {
    const int64_t seen = __atomic_load_n(v_.last_seen + row, __ATOMIC_RELAXED);
    if (StepOf(seen) == StepOf(counters_.step)) return;
    const int64_t count = std::min(CountOf(seen) + 1, kMaxCount);
    __atomic_store_n(v_.last_seen + row, SeenAt(hash, count), __ATOMIC_RELAXED);
  }

  // Finds the rows of a chunk of ids. Each goes through three stages, and others are in between, so
  // that the cache lines that the next stage needs are on their way.
  void FindChunk(const int64_t* ids, int64_t num, int64_t* rows) const {
    uint64_t hashes[4 * kDistance];  // of the ids on their way, in a ring
    constexpr int64_t kRing = 4 * kDistance - 1;
    for (int64_t n = 0; n < num + 2 * kDistance; ++n) {
      if (n < num) {
        const uint64_t hash = HashOfId(Id(ids, n));
        hashes[n & kRing] = hash;
        __builtin_prefetch(Bucket(Scaled(hash, v_.num_buckets)));
      }
      if (const int64_t i = n - kDistance; 0 <= i && i < num) {
        rows[i] = FirstMatch(hashes[i & kRing]);
      }
      if (const int64_t i = n - 2 * kDistance; 0 <= i) {
        rows[i] = RowFrom(rows[i], Id(ids, i), hashes[i & kRing]);
      }
    }
  }

  // The row of a slot with the right tag in the first bucket, which is nearly always the id's; else
  // kUnknown or kNotThere.
  int64_t FirstMatch(uint64_t hash) const {
    const int64_t bucket = Scaled(hash, v_.num_buckets);
    const int64_t* slots = Bucket(bucket);
    const uint32_t tag = static_cast<uint32_t>(hash);
    const int64_t slot = LastWithTag(slots, tag);
    if (slot == 0) {
      // A free slot has the tag 0.
      if (!IsFull(slots) && tag != 0) return kUnknown;
      __builtin_prefetch(Bucket(After(bucket)));
      return kNotThere;
    }
    const int64_t row = RowOf(slot);
    if (IsInTable(row)) {
      if (kNumWords != 1) __builtin_prefetch(Id(v_.ids, row));
      __builtin_prefetch(v_.last_seen + row, 1);
    }
    return row;
  }

  // The row of an id, by what FirstMatch found; it is seen.
  int64_t RowFrom(int64_t row, const int64_t* id, uint64_t hash) const {
    if (IsPadding(id)) return 0;
    if (row != kUnknown && !IsId(row, id, hash)) row = Find(id, hash);
    if (row != kUnknown) See(row, hash);
    return row;
  }

  uint8_t* Block(uint64_t hash) const {
    return v_.sketch + Scaled(hash * 0x9E3779B97F4A7C15u, v_.num_blocks) * kSketchBytes;
  }

  void AdmitAll(const int64_t* ids, int64_t* rows) {
    const int64_t num = unknown_.size(), num_admitted = counters_.num_admitted;
    uint64_t hashes[2 * kAhead];
    for (int64_t u = 0; u < num + kAhead; ++u) {
      // Without a row it still is, unless one was given meanwhile.
      const bool may_be_known = counters_.num_admitted != num_admitted;
      if (u < num) {
        const uint64_t hash = HashOfId(Id(ids, unknown_[u]));
        hashes[u % (2 * kAhead)] = hash;
        if (may_be_known) __builtin_prefetch(Bucket(Scaled(hash, v_.num_buckets)));
        if (settings_.admit_after > 1) __builtin_prefetch(Block(hash), 1);
      }
      if (const int64_t before = u - kAhead; before >= 0) {
        const int64_t* id = Id(ids, unknown_[before]);
        const uint64_t hash = hashes[before % (2 * kAhead)];
        const int64_t row = may_be_known ? Find(id, hash) : kUnknown;
        rows[unknown_[before]] = row != kUnknown ? row : Admit(id, hash);
        counters_.num_known_lookups += row != kUnknown;
      }
    }
  }

  // Counts a lookup of an id without a row; returns how many there were, or more.
  int64_t Count(uint64_t hash) {
    uint8_t* block = Block(hash);
    uint8_t* places[4];
    uint8_t least = 255;
    for (int i = 0; i < 4; ++i) {
      places[i] = block + 4 * i + (hash >> (2 * i) & 3);
      least = std::min(least, *places[i]);
    }
    if (least < 255) ++least;
    for (uint8_t* place : places) *place = std::max(*place, least);
    // What was looked up long ago counts less, and the sketch does not fill up.
    const int64_t limit = 4 * v_.num_blocks * (settings_.admit_after - 1) / 2;
    if (++counters_.num_sketched >= limit) {
      for (int64_t i = 0; i < v_.num_blocks * kSketchBytes; ++i) v_.sketch[i] /= 2;
      counters_.num_sketched /= 2;
    }
    return least;
  }

  // The row of an id that has none, which may get one.
  int64_t Admit(const int64_t* id, uint64_t hash) {
    const int64_t oov = settings_.first_oov() + Scaled(hash << 32, settings_.num_oov);
    if (IsTooLong(id)) {
      ++counters_.num_too_long_lookups;
      return oov;
    }
    if (settings_.admit_after > 1 && Count(hash) < settings_.admit_after) return oov;
    const int64_t row = FreeRow();
    if (row == kUnknown) return oov;
    Insert(hash, row);
    std::memcpy(v_.ids + row * num_words(), id, num_words() * sizeof(int64_t));
    Mark(v_.changed_ids, row);
    v_.last_seen[row] = SeenAt(hash, 1);
    ++counters_.num_admitted;
    ++counters_.num_known_lookups;
    return row;
  }

  int64_t FreeRow() {
    const int64_t first = settings_.first_row(), num_rows = v_.capacity - first;
    if (counters_.num_free == 0 && counters_.num_given == num_rows) Evict();
    if (counters_.num_free > 0) return v_.free_rows[--counters_.num_free];
    return counters_.num_given < num_rows ? first + counters_.num_given++ : kUnknown;
  }

  void Insert(uint64_t hash, int64_t row) {
    int64_t bucket = Scaled(hash, v_.num_buckets);
    for (int64_t n = 0; n < v_.num_buckets; ++n, bucket = After(bucket)) {
      int64_t* slots = Bucket(bucket);
      int64_t* slot = std::find(slots, slots + kSlots, 0);
      if (slot == slots + kSlots) continue;
      *slot = SlotOf(hash, row);
      Mark(v_.changed_index, bucket);
      return;
    }
  }

  uint64_t HashOfRow(int64_t row) const { return HashOfId(Id(v_.ids, row)); }

  void Erase(int64_t row) {
    int64_t bucket = Scaled(HashOfRow(row), v_.num_buckets);
    int64_t* hole = nullptr;
    for (int64_t n = 0; n < v_.num_buckets && hole == nullptr; ++n) {
      int64_t* slots = Bucket(bucket);
      for (int64_t s = 0; s < kSlots; ++s) {
        if (slots[s] != 0 && RowOf(slots[s]) == row) hole = slots + s;
      }
      if (hole == nullptr && !IsFull(slots)) return;  // of a damaged index
      if (hole == nullptr) bucket = After(bucket);
    }
    // A bucket that was full may have sent ids on to later ones: one of them comes back.
    while (hole != nullptr) {
      const bool was_full = std::count(Bucket(bucket), Bucket(bucket) + kSlots, 0) == 0;
      *hole = 0;
      Mark(v_.changed_index, bucket);
      hole = was_full ? Refill(hole, &bucket) : nullptr;
    }
  }

  // Moves to a hole in a bucket an id that is in a later one and belongs there or before. Returns
  // where that was, and its bucket; null: there is none.
  int64_t* Refill(int64_t* hole, int64_t* bucket) {
    int64_t later = After(*bucket);
    for (int64_t gone = 1; gone < v_.num_buckets; ++gone, later = After(later)) {
      int64_t* slots = Bucket(later);
      bool is_full = true;
      for (int64_t s = 0; s < kSlots; ++s) {
        if (slots[s] == 0) {
          is_full = false;
          continue;
        }
        const int64_t row = RowOf(slots[s]);
        if (!IsInTable(row)) continue;
        const int64_t home = Scaled(HashOfRow(row), v_.num_buckets);
        const int64_t moved = later >= home ? later - home : later - home + v_.num_buckets;
        if (moved >= gone) {
          *hole = slots[s];
          *bucket = later;
          return slots + s;
        }
      }
      if (!is_full) break;
    }
    return nullptr;
  }

  void TakeBack(int64_t row) {
    Erase(row);
    std::memset(v_.ids + row * num_words(), 0, num_words() * sizeof(int64_t));
    Mark(v_.changed_ids, row);
    v_.last_seen[row] = 0;
    // There is always room, unless a row that has an id is among the free ones.
    if (counters_.num_free < counters_.num_given) {
      v_.free_rows[counters_.num_free++] = static_cast<int32_t>(row);
    }
    taken_back_.push_back(row);
  }

  // Looks at a part of the rows, all of them within forget_after / 8 steps.
  void Forget() {
    if (settings_.forget_after == 0) return;
    const int64_t first = settings_.first_row(), num_rows = v_.capacity - first;
    const int64_t num_steps = std::max<int64_t>(1, settings_.forget_after / 8);
    for (int64_t n = (num_rows + num_steps - 1) / num_steps; n > 0; --n) {
      const int64_t row = first + counters_.hand;
      counters_.hand = (counters_.hand + 1) % num_rows;
      const int64_t seen = v_.last_seen[row];
      if (seen != 0 && AgeOf(seen) > settings_.forget_after) {
        TakeBack(row);
        ++counters_.num_forgotten;
      }
    }
  }

  // Takes the coldest rows back that this step has not looked up: those of the greatest age for
  // each step that looked them up.
  void Evict() {
    if (has_evicted_all_) return;
    cold_.clear();
    for (int64_t row = settings_.first_row(); row < v_.capacity; ++row) {
      const int64_t seen = v_.last_seen[row];
      const int64_t age = AgeOf(seen);
      if (seen == 0 || age == 0) continue;
      // The least bits make quotients differ that do. An earlier build has not counted.
      cold_.emplace_back(-((age << 12) / std::max<int64_t>(CountOf(seen), 1)), row);
    }
    const int64_t num =
        std::min<int64_t>(cold_.size(), std::max<int64_t>(1, v_.capacity / kEvictedPart));
    has_evicted_all_ = num == static_cast<int64_t>(cold_.size());
    std::nth_element(cold_.begin(), cold_.begin() + num - (num > 0), cold_.end());
    std::sort(cold_.begin(), cold_.begin() + num);
    // The coldest is the first to be given again.
    for (int64_t i = num; i-- > 0;) TakeBack(cold_[i].second);
    counters_.num_evicted += num;
  }

  const VocabularySettings& settings_;
  const Vocabulary& v_;
  VocabularyCounters& counters_;
  std::vector<int64_t>& taken_back_;
  std::vector<int64_t> unknown_;
  std::vector<std::pair<int64_t, int64_t>> cold_;
  bool has_evicted_all_ = false;
};

}  // namespace

bool IsWhole(const VocabularySettings& settings, const Vocabulary& v) {
  const VocabularyCounters& c = *v.counters;
  const int64_t num_rows = v.capacity - settings.first_row();
  const int64_t* counters = reinterpret_cast<const int64_t*>(v.counters);
  // So that none of them overflows.
  const auto is_count = [](int64_t count) { return 0 <= count && count < kMostCounted; };
  return std::all_of(counters, counters + kNumVocabularyCounters, is_count) &&
         c.num_given <= num_rows && c.num_free <= c.num_given && c.hand < num_rows &&
         std::all_of(
             v.free_rows, v.free_rows + c.num_free,
             [&](int32_t row) { return settings.first_row() <= row && row < v.capacity; });
}

void LookUpAndAdmit(const VocabularySettings& settings, const Vocabulary& vocabulary,
                    const int64_t* ids, int64_t num, int64_t* rows,
                    std::vector<int64_t>* taken_back, const ParallelFor& parallel_for) {
  if (settings.num_words == 1) {
    Step<1>(settings, vocabulary, taken_back).Run(ids, num, rows, parallel_for);
  } else {
    Step<0>(settings, vocabulary, taken_back).Run(ids, num, rows, parallel_for);
  }
}

}  // namespace slipstream
