// LookUpAndAdmit under sanitizers: random steps beside a map, on one thread and on several.
#include "../kernels/vocabulary.h"

#include <limits>
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
    SetView(capacity);
  }
  Arrays(const Arrays& other, const VocabularySettings&)
      : index(other.index),
        ids(other.ids),
        last_seen(other.last_seen),
        free_rows(other.free_rows),
        changed_index(other.changed_index),
        changed_ids(other.changed_ids),
        sketch(other.sketch),
        counters(other.counters) {
    SetView(other.view.capacity);
  }

  void SetView(int64_t capacity) {
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

// State of a checkpoint that somebody damaged: refused, or nothing is read or written out of
// bounds.
void TestHostile(int64_t num_words, int64_t forget_after) {
  VocabularySettings settings;
  settings.num_words = num_words;
  settings.padding.assign(num_words, -1);
  settings.admit_after = num_words == 1 ? 1 : 2;
  settings.forget_after = forget_after;
  constexpr int64_t kCapacity = 19;
  std::mt19937_64 random(7);
  const auto do_step = [&](Arrays* arrays) {
    std::vector<int64_t> ids(40 * num_words), rows(40), taken_back;
    for (int64_t i = 0; i < 40; ++i) {
      std::fill_n(&ids[i * num_words], num_words, static_cast<int64_t>(random() % 60));
    }
    LookUpAndAdmit(settings, arrays->view, ids.data(), 40, rows.data(), &taken_back,
                   AllParallelFors()[0]);
    for (const std::vector<int64_t>* found : {&rows, &taken_back}) {
      for (const int64_t row : *found) CHECK(0 <= row && row < kCapacity);
    }
  };
  Arrays good(settings, kCapacity);
  for (int step = 0; step < 9; ++step) do_step(&good);
  // A slot of a row that there is not, in all places of a tag too.
  const int64_t numbers[] = {-1,
                             0,
                             1,
                             kCapacity + 1,
                             int64_t{1} << 31,
                             int64_t{1} << 61,
                             std::numeric_limits<int64_t>::max(),
                             std::numeric_limits<int64_t>::min()};
  int64_t num_refused = 0;
  const auto use = [&](Arrays* arrays) {
    for (int step = 0; step < 3; ++step) {
      if (!IsWhole(settings, arrays->view)) {
        ++num_refused;
        return;
      }
      do_step(arrays);
    }
  };
  const auto make_hostile = [&](Arrays* to, int which, int64_t place, int64_t number) {
    std::vector<int64_t>* words[] = {&to->index, &to->ids, &to->last_seen};
    if (which < 3) {
      (*words[which])[place % words[which]->size()] = number;
    } else if (which == 3) {
      to->free_rows[place % kCapacity] = static_cast<int32_t>(number);
    } else {
      reinterpret_cast<int64_t*>(to->counters.data())[place % kNumVocabularyCounters] = number;
    }
  };
  for (int which = 0; which < 5; ++which) {
    for (int64_t place = 0; place < static_cast<int64_t>(good.index.size()); ++place) {
      for (const int64_t number : numbers) {
        Arrays one(good, settings);
        make_hostile(&one, which, place, number);
        use(&one);
      }
    }
    for (const int64_t number : numbers) {
      Arrays all(good, settings);
      for (int64_t place = 0; place < 100; ++place) make_hostile(&all, which, place, number);
      use(&all);
    }
  }
  // All rows have an id that nobody has looked up for long, and are free.
  Arrays both(good, settings);
  const int64_t first = settings.first_row();
  for (int64_t row = first; row < kCapacity; ++row) {
    both.last_seen[row] = 1;
    both.free_rows[row - first] = static_cast<int32_t>(row);
  }
  both.counters[0].num_given = both.counters[0].num_free = kCapacity - first;
  use(&both);
  // Many at once: slots of any row under any tag, rows that are given and free.
  for (int trial = 0; trial < 2000; ++trial) {
    Arrays many(good, settings);
    for (int64_t n = random() % 60; n > 0; --n) {
      const int which = random() % 4;
      const int64_t number = random() % 3 != 0 ? random() >> random() % 64 : random() % 40;
      make_hostile(&many, which, random() % 4096, number);
    }
    if (random() % 4 == 0) many.counters[0].num_free = random() % (kCapacity - 1);
    use(&many);
  }
  CHECK(num_refused > 500);
}

}  // namespace

void TestHostileVocabulary() {
  for (const int64_t num_words : {1, 3}) {
    for (const int64_t forget_after : {0, 2}) {
      current_case = "hostile vocabulary " + std::to_string(num_words);
      TestHostile(num_words, forget_after);
    }
  }
}

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
