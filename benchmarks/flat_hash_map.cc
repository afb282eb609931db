// absl::flat_hash_map alone, without a framework: one of the subjects of vocabulary.py.
#include <cstdint>

#include "absl/container/flat_hash_map.h"

namespace {
absl::flat_hash_map<int64_t, int64_t>* map = new absl::flat_hash_map<int64_t, int64_t>;
}

extern "C" void Fill(const int64_t* ids, int64_t num) {
  map->reserve(num);
  for (int64_t i = 0; i < num; ++i) map->emplace(ids[i], i + 2);
}

extern "C" void LookUp(const int64_t* ids, int64_t num, int64_t* rows) {
  for (int64_t i = 0; i < num; ++i) {
    const auto found = map->find(ids[i]);
    rows[i] = found == map->end() ? 1 : found->second;
  }
}
