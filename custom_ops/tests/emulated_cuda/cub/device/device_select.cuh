#ifndef SLIPSTREAM_TESTS_EMULATED_CUDA_DEVICE_SELECT_CUH_
#define SLIPSTREAM_TESTS_EMULATED_CUDA_DEVICE_SELECT_CUH_

#include "cuda_runtime.h"

namespace cub {

struct DeviceSelect {
  template <typename Iterator, typename T, typename Condition>
  static cudaError_t If(void* memory, size_t& num_bytes, Iterator values, T* selected,
                        int32_t* num_selected, int num, Condition condition, cudaStream_t) {
    if (memory == nullptr) {
      num_bytes = 1;
      return cudaSuccess;
    }
    *num_selected = 0;
    for (int i = 0; i < num; ++i) {
      if (condition(values[i])) selected[(*num_selected)++] = values[i];
    }
    return cudaSuccess;
  }
};

}  // namespace cub

#endif  // SLIPSTREAM_TESTS_EMULATED_CUDA_DEVICE_SELECT_CUH_
