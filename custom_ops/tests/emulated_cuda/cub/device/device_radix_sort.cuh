#ifndef SLIPSTREAM_TESTS_EMULATED_CUDA_DEVICE_RADIX_SORT_CUH_
#define SLIPSTREAM_TESTS_EMULATED_CUDA_DEVICE_RADIX_SORT_CUH_

#include <algorithm>
#include <numeric>
#include <vector>

#include "cuda_runtime.h"

namespace cub {

struct DeviceRadixSort {
  template <typename Key, typename Value>
  static cudaError_t SortPairs(void* memory, size_t& num_bytes, const Key* keys, Key* sorted_keys,
                               const Value* values, Value* sorted_values, int num, int begin_bit,
                               int end_bit, cudaStream_t) {
    if (memory == nullptr) {
      num_bytes = 1;
      return cudaSuccess;
    }
    const auto bits = [&](Key key) {
      return static_cast<uint64_t>(key) >> begin_bit & ((uint64_t{1} << (end_bit - begin_bit)) - 1);
    };
    std::vector<int> order(num);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return bits(keys[a]) < bits(keys[b]); });
    for (int i = 0; i < num; ++i) {
      sorted_keys[i] = keys[order[i]];
      sorted_values[i] = values[order[i]];
    }
    return cudaSuccess;
  }
};

}  // namespace cub

#endif  // SLIPSTREAM_TESTS_EMULATED_CUDA_DEVICE_RADIX_SORT_CUH_
