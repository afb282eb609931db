#ifndef SLIPSTREAM_TESTS_EMULATED_CUDA_DEVICE_SCAN_CUH_
#define SLIPSTREAM_TESTS_EMULATED_CUDA_DEVICE_SCAN_CUH_

#include "cuda_runtime.h"

namespace cub {

struct DeviceScan {
  template <typename T>
  static cudaError_t ExclusiveSum(void* memory, size_t& num_bytes, const T* values, T* sums,
                                  int num, cudaStream_t) {
    if (memory == nullptr) {
      num_bytes = 1;
      return cudaSuccess;
    }
    T sum = 0;
    for (int i = 0; i < num; ++i) {
      const T value = values[i];
      sums[i] = sum;
      sum += value;
    }
    return cudaSuccess;
  }
};

}  // namespace cub

#endif  // SLIPSTREAM_TESTS_EMULATED_CUDA_DEVICE_SCAN_CUH_
