#ifndef SLIPSTREAM_KERNELS_VOCABULARY_H_
#define SLIPSTREAM_KERNELS_VOCABULARY_H_

// Which row of a table an id has, while training gives and takes rows. docs/guide/vocabulary.md
// says what a step does; tf_slipstream/ops/vocabulary_fallback.py is the same in NumPy, to the bit.

#include <cstdint>
#include <vector>

#include "parallel.h"
#include "schema.h"

namespace slipstream {

struct VocabularyCounters {
  SLIPSTREAM_VOCABULARY_COUNTERS(SLIPSTREAM_INT64)
};
inline constexpr int64_t kNumVocabularyCounters =
    0 SLIPSTREAM_VOCABULARY_COUNTERS(SLIPSTREAM_COUNT_OF);
static_assert(sizeof(VocabularyCounters) == kNumVocabularyCounters * sizeof(int64_t));

inline constexpr int64_t kSlots = 8;         // of a bucket, which is a cache line
inline constexpr int64_t kSketchBytes = 16;  // of a block of the sketch
// What of a full table is taken back at once, so that the search for it is worth its time.
inline constexpr int64_t kEvictedPart = 128;
// Of the lower half of last_seen those of the step; the others count.
inline constexpr int kStepBits = 27;
// The last byte of a string's id that is too long to be kept.
inline constexpr uint8_t kTooLong = 2;

// What does not change.
//   num_words     int64 words of an id
//   padding       [num_words], the id that is padding and has row 0; empty: there is none
//   num_oov       rows for ids without one of their own; they come after that of padding
//   is_string     whether ids are the bytes of strings
//   admit_after   lookups after which an id gets a row
//   forget_after  steps without a lookup after which it loses it; 0: never
struct VocabularySettings {
  int64_t num_words = 1;
  std::vector<int64_t> padding;
  int64_t num_oov = 1;
  bool is_string = false;
  int64_t admit_after = 1;
  int64_t forget_after = 0;

  int64_t first_oov() const { return padding.empty() ? 0 : 1; }
  int64_t first_row() const { return first_oov() + num_oov; }
};

// A vocabulary, in place.
//   index      [num_buckets, kSlots]: 32 bits of an id's hash, then its row + 1; 0: free. An id is
//              in the bucket of its hash or, where all buckets in between are full, in a later one
//   ids        [capacity, num_words], of each row that has one; else 0
//   last_seen  [capacity], the upper 32 bits of the hash of a row's id, then in 5 bits how many
//              steps have looked it up, at most 31, then the lower 27 bits of the last of them; 0:
//              no id has it
//   free_rows  [capacity], a stack of rows that ids had and have no more
//   sketch     [num_blocks, kSketchBytes]: lookups of ids without a row, 4 counters in a block each
//   changed_index, changed_ids   a bit for each bucket and row that is written
struct Vocabulary {
  int64_t* index = nullptr;
  int64_t* ids = nullptr;
  int64_t* last_seen = nullptr;
  int32_t* free_rows = nullptr;
  uint8_t* sketch = nullptr;
  VocabularyCounters* counters = nullptr;
  uint32_t* changed_index = nullptr;
  uint32_t* changed_ids = nullptr;
  int64_t num_buckets = 0;
  int64_t capacity = 0;
  int64_t num_blocks = 0;
};

// Whether counters and the stack of free rows make sense together; state that was not restored
// whole does not.
bool IsWhole(const VocabularySettings& settings, const Vocabulary& vocabulary);

// Does a training step: finds the rows of all ids, forgets, then admits in the order of the ids.
// The result does not depend on the number of threads.
//   ids         [num, num_words]
//   rows        [num], overwritten
//   taken_back  rows that lost their id, in order, appended; one may come twice
void LookUpAndAdmit(const VocabularySettings& settings, const Vocabulary& vocabulary,
                    const int64_t* ids, int64_t num, int64_t* rows,
                    std::vector<int64_t>* taken_back, const ParallelFor& parallel_for);

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_VOCABULARY_H_
