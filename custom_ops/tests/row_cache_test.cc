// RowCache under sanitizers: random steps, in which nothing of what is pushed is lost.
#include "../kernels/row_cache.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <unordered_map>

#include "test_support.h"

namespace slipstream {
namespace {

constexpr int64_t kRows = 200, kBatch = 64, kDim = 5, kSteps = 300;

// Takes what the cache gives out, in blocks of exactly their size.
void Receive(RowCache* cache, const Shards& shards, std::vector<float>* sums,
             std::vector<int64_t>* batches) {
  for (int s = 0; s < shards.num(); ++s) {
    const int64_t num = cache->num_pushed(s);
    std::vector<int32_t> ids(num), counts(2 * num);
    std::vector<float> grads(num * kDim);
    cache->CopyPushed(s, ids.data(), grads.data(), counts.data());
    for (int64_t i = 0; i < num; ++i) {
      const int64_t id = ids[i] + shards.starts[s];
      (*batches)[id] += counts[2 * i];
      for (int64_t d = 0; d < kDim; ++d) (*sums)[id * kDim + d] += grads[i * kDim + d];
    }
  }
  cache->Finish();
}

int32_t RandomSleep(std::mt19937* random) {
  const int64_t steps = (*random)() % 3 == 0 ? 0 : (*random)() % 30;
  const int64_t max_batches = 1 + (*random)() % 9;
  return Sleep{steps, max_batches}.Packed();
}

void TestCapacity(int64_t capacity) {
  const Shards shards{{0, 70, 70, kRows}};
  RowCache cache(shards, kDim, capacity);
  std::mt19937 random(7);
  std::vector<float> expected(kRows * kDim), sums(kRows * kDim);
  std::vector<int64_t> num_batches(kRows), sent_batches(kRows);
  for (int64_t step = 1; step <= kSteps; ++step) {
    std::vector<int64_t> lookups(step % 17 == 0 ? 0 : kBatch);
    for (int64_t& id : lookups) id = std::min(random() % kRows, random() % kRows);
    std::vector<int32_t> inverse(lookups.size());
    RowCache::Distinct distinct;
    const BadRow bad =
        cache.Find(lookups.data(), lookups.size(), step, 20, inverse.data(), &distinct);
    CHECK(bad.position == -1);
    for (size_t i = 0; i < lookups.size(); ++i) {
      CHECK(distinct.ids[inverse[i]] == lookups[i]);
    }
    // Each id is named once in the order of first appearance.
    CHECK(distinct.order.size() == distinct.ids.size());
    size_t num_named = 0;
    for (const int32_t place : inverse) {
      if (num_named < distinct.order.size() && distinct.order[num_named] == place) ++num_named;
    }
    CHECK(num_named == distinct.order.size());
    std::vector<float> cached(distinct.num_cached * kDim);
    cache.CopyValues(distinct.slots.data(), distinct.num_cached, cached.data());
    // Before any is stored, by which another may have to go.
    std::vector<float> known;
    int64_t next = distinct.num_cached;
    for (int s = 0; s < shards.num(); ++s) {
      const int64_t num = distinct.num_known[s], size = known.size();
      next += distinct.num_pulled[s];
      known.resize(size + num * kDim);
      cache.CopyValues(distinct.slots.data() + next - num, num, known.data() + size);
    }
    const float* next_known = known.data();
    next = distinct.num_cached;
    for (int s = 0; s < shards.num(); ++s) {
      const int64_t num = distinct.num_pulled[s];
      std::vector<int64_t> ids(distinct.ids.begin() + next, distinct.ids.begin() + next + num);
      const int64_t first_known = num - distinct.num_known[s];
      CHECK(0 <= first_known && first_known <= num);
      std::vector<float> values(num * kDim, static_cast<float>(step));
      std::vector<const float*> rows(num);
      std::vector<int32_t> sleeps(num);
      for (int64_t i = 0; i < num; ++i) {
        rows[i] = values.data() + i * kDim;
        sleeps[i] = RandomSleep(&random);
        if (i >= first_known) {
          if (random() % 2 == 0) {
            sleeps[i] |= Sleep::kSameBit;
            rows[i] = next_known;
          }
          next_known += kDim;
        }
        CHECK(Sleep::Unpacked(sleeps[i]).max_batches < 10);
      }
      cache.Store(ids.data(), rows.data(), sleeps.data(), num, step);
      next += num;
    }
    CHECK(cache.num_entries() <= capacity);
    const int64_t num = distinct.ids.size();
    std::vector<float> grads(num * kDim);
    for (int64_t i = 0; i < num; ++i) {
      ++num_batches[distinct.ids[i]];
      for (int64_t d = 0; d < kDim; ++d) {
        grads[i * kDim + d] = static_cast<float>(random() % 9) - 4;
        expected[distinct.ids[i] * kDim + d] += grads[i * kDim + d];
      }
    }
    cache.Push(distinct.ids.data(), grads.data(), distinct.num_lookups.data(), num, step, 0, false);
    Receive(&cache, shards, &sums, &sent_batches);
  }
  cache.Push(nullptr, nullptr, nullptr, 0, kSteps + 1, 0, true);
  Receive(&cache, shards, &sums, &sent_batches);
  CHECK(sums == expected);
  CHECK(sent_batches == num_batches);
  CHECK(cache.num_entries() == 0);
  for (int s = 0; s < shards.num(); ++s) CHECK(cache.num_held(s) == 0);
}

void TestRowHash() {
  // Whatever bit of a row changes, its hash does.
  std::vector<float> row(kDim, 0.5f);
  const int64_t before = RowHash(row.data(), kDim);
  for (int64_t d = 0; d < kDim; ++d) {
    for (int bit = 0; bit < 32; ++bit) {
      std::vector<float> other = row;
      uint32_t bits;
      std::memcpy(&bits, &other[d], sizeof(bits));
      bits ^= 1u << bit;
      std::memcpy(&other[d], &bits, sizeof(bits));
      CHECK(RowHash(other.data(), kDim) != before);
    }
  }
}

void TestSlotMap() {
  SlotMap slots;
  std::unordered_map<int64_t, int32_t> expected;
  std::mt19937 random(0);
  for (int i = 0; i < 20000; ++i) {
    // Few ids, so that runs of places form, and multiples that share their low bits.
    const int64_t id = static_cast<int64_t>(random() % 300) << (random() % 2 ? 0 : 32);
    if (random() % 3 == 0) {
      slots.Erase(id);
      expected.erase(id);
    } else {
      slots.Set(id, i);
      expected[id] = i;
    }
    CHECK(slots.size() == static_cast<int64_t>(expected.size()));
    if (i % 100 != 0) continue;
    for (int64_t n = 0; n < 600; ++n) {
      const int64_t one = (n % 300) << (n < 300 ? 0 : 32);
      const auto found = expected.find(one);
      CHECK(slots.Find(one) == (found == expected.end() ? -1 : found->second));
    }
  }
}

}  // namespace

void TestRowCache() {
  TestRowHash();
  TestSlotMap();
  for (const int64_t capacity : {0, 1, 10, 60, 1000}) TestCapacity(capacity);
}

}  // namespace slipstream
