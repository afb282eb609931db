#ifndef SLIPSTREAM_TESTS_EMULATED_CUDA_CUDA_RUNTIME_H_
#define SLIPSTREAM_TESTS_EMULATED_CUDA_CUDA_RUNTIME_H_

#define SLIPSTREAM_EMULATED_CUDA

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(threads)

using std::isfinite;

struct dim3 {
  dim3(unsigned x = 1) : x(x) {}
  unsigned x, y = 1, z = 1;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct CUstream_st;
using cudaStream_t = CUstream_st*;
using cudaEvent_t = double*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2 };
enum { cudaDevAttrMultiProcessorCount = 16 };
enum { cudaHostAllocPortable = 1, cudaHostAllocMapped = 2 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
struct cudaDeviceProp {
  char name[256];
  int major, minor;
  size_t totalGlobalMem;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated_cuda {

// In what order threads of a block, and blocks, get their turns: what depends on it is a race.
enum class Order { kForward, kBackward, kShuffled };
inline Order order = Order::kForward;

// Runs `kernel` once for each thread.
void Run(const cudaLaunchConfig_t& config, const std::function<void()>& kernel);
// Waits for all lanes of `mask`, which all call it with the same one, this lane's included.
void WarpBarrier(unsigned mask);
// A place for 8 bytes per lane of this warp.
uint64_t* WarpSlots();
[[noreturn]] void Fail(const char* what);

inline unsigned Lane() { return threadIdx.x % 32; }

template <typename T>
T Exchange(unsigned mask, T value, unsigned from) {
  static_assert(sizeof(T) <= 8);
  if ((mask >> from & 1) == 0) Fail("a shuffle reads a lane that its mask does not name");
  std::memcpy(&WarpSlots()[Lane()], &value, sizeof(T));
  WarpBarrier(mask);
  T received;
  std::memcpy(&received, &WarpSlots()[from], sizeof(T));
  WarpBarrier(mask);
  return received;
}

}  // namespace emulated_cuda

inline void __syncwarp(unsigned mask) { emulated_cuda::WarpBarrier(mask); }
template <typename T>
T __shfl_sync(unsigned mask, T value, unsigned lane, unsigned width) {
  const unsigned first = emulated_cuda::Lane() / width * width;
  return emulated_cuda::Exchange(mask, value, first + lane % width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, unsigned width) {
  const unsigned lane = emulated_cuda::Lane(), target = lane + delta;
  return emulated_cuda::Exchange(mask, value, lane % width + delta < width ? target : lane);
}
inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  uint64_t* slots = emulated_cuda::WarpSlots();
  slots[emulated_cuda::Lane()] = predicate;
  emulated_cuda::WarpBarrier(mask);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) != 0 && slots[lane] != 0) ballot |= 1u << lane;
  }
  emulated_cuda::WarpBarrier(mask);
  return ballot;
}
inline bool __any_sync(unsigned mask, bool predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline void __threadfence_system() {}

template <typename T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to += value;
  return before;
}
template <typename T>
T atomicMin(T* to, T value) {
  const T before = *to;
  if (value < before) *to = value;
  return before;
}
template <typename T>
T atomicOr(T* to, T value) {
  const T before = *to;
  *to |= value;
  return before;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "an emulated error";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMalloc(void** memory, size_t size) {
  // Exactly as long as asked for, so that a sanitizer sees every access past it.
  if (posix_memalign(memory, 256, size) != 0) return cudaErrorMemoryAllocation;
  std::memset(*memory, 0xcd, size);  // not zero, as on a device
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void** memory, size_t size, unsigned) {
  return cudaMalloc(memory, size);
}
inline cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  if (size > 0) std::memcpy(to, from, size);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind,
                                   cudaStream_t) {
  return cudaMemcpy(to, from, size, kind);
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t) {
  std::memset(to, value, size);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"emulated", 0, 0, size_t{1} << 30};
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = 1;
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t{1} << 30;
  return cudaSuccess;
}
// Events take no time here.
inline cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = nullptr;
  return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1;
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  if (config->gridDim.x == 0 || config->blockDim.x == 0 || config->blockDim.x > 1024) {
    return cudaErrorInvalidValue;
  }
  emulated_cuda::Run(*config, [&] { kernel(arguments...); });
  return cudaSuccess;
}

#endif  // SLIPSTREAM_TESTS_EMULATED_CUDA_CUDA_RUNTIME_H_
