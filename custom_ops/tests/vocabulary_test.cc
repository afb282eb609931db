// LookUpAndAdmit under sanitizers: random steps beside a map, on one thread and on several.
#include "../kernels/vocabulary.h"

#include <random>
#include <unordered_map>

#include "test_support.h"

namespace slipstream {
namespace {

struct Arrays {
  Arrays(const VocabularySettings& settings, int64_t capacity)
      : index((capacity + 3) / 4 * kSlots),
        ids(capacity * settings.num_words),
        last_seen(capacity),
        free_rows(capacity),
        changed_index((index.size() / kSlots + 31) / 32),
        changed_ids((capacity + 31) / 32),
        sketch(64 * kSketchBytes),
        counters(1) {
    view.index = index.data();
    view.ids = ids.data();
    view.last_seen = last_seen.data();
    view.free_rows = free_rows.data();
    view.sketch = sketch.data();
    view.counters = counters.data();
    view.changed_index = changed_index.data();
    view.changed_ids = changed_ids.data();
    view.num_buckets = index.size() / kSlots;
    view.capacity = capacity;
    view.num_blocks = 64;
  }

  std::vector<int64_t> index, ids, last_seen;
  std::vector<int32_t> free_rows;
  std::vector<uint32_t> changed_index, changed_ids;
  std::vector<uint8_t> sketch;
  std::vector<VocabularyCounters> counters;
  Vocabulary view;
};

void TestSteps(int64_t num_words, int64_t admit_after, int64_t forget_after) {
  VocabularySettings settings;
  settings.num_words = num_words;
  settings.padding.assign(num_words, -1);
  settings.admit_after = admit_after;
  settings.forget_after = forget_after;
  Arrays alone(settings, 97), threads(settings, 97);
  std::mt19937 random(7);
  std::unordered_map<int64_t, int64_t> row_of;
  for (int64_t step = 0; step < 60; ++step) {
    const int64_t num = step % 17 == 0 ? 0 : random() % 9000;
    std::vector<int64_t> ids(num * num_words), rows(num), others(num), taken_back, taken;
    for (int64_t i = 0; i < num; ++i) {
      const int64_t id = static_cast<int64_t>(std::min(random() % 300, random() % 300)) - 1 + step;
      for (int64_t w = 0; w < num_words; ++w) ids[i * num_words + w] = id == step - 1 ? -1 : id;
    }
    LookUpAndAdmit(settings, alone.view, ids.data(), num, rows.data(), &taken_back,
                   AllParallelFors()[0]);
    LookUpAndAdmit(settings, threads.view, ids.data(), num, others.data(), &taken,
                   AllParallelFors()[step % 2 + 1]);
    CHECK_SAME_BITS(rows, others);
    CHECK_SAME_BITS(taken_back, taken);
    CHECK_SAME_BITS(alone.index, threads.index);
    CHECK_SAME_BITS(alone.last_seen, threads.last_seen);
    CHECK(IsWhole(settings, alone.view));
    // An id has one row, and a row one id, until the row is taken back.
    for (int64_t i = 0; i < num; ++i) {
      const int64_t id = ids[i * num_words];
      CHECK((rows[i] == 0) == (id == -1));
      CHECK(0 <= rows[i] && rows[i] < 97);
      if (rows[i] >= settings.first_row() &&
          (alone.last_seen[rows[i]] & ((1 << kStepBits) - 1)) == step + 1) {
        CHECK(alone.ids[rows[i] * num_words] == id);
      }
    }
    AddToDigest(rows);
    AddToDigest(taken_back);
  }
  CHECK(alone.counters[0].num_admitted > 97);
}

}  // namespace

void TestVocabulary() {
  for (const int64_t num_words : {1, 3}) {
    for (const int64_t admit_after : {1, 3}) {
      for (const int64_t forget_after : {0, 2}) {
        current_case = "vocabulary " + std::to_string(num_words);
        TestSteps(num_words, admit_after, forget_after);
      }
    }
  }
}

}  // namespace slipstream
