#ifndef SLIPSTREAM_KERNELS_SIMD_H_
#define SLIPSTREAM_KERNELS_SIMD_H_

// A function marked SLIPSTREAM_SIMD is compiled once per instruction set and the best one is chosen
// when the library loads. Together with -ffp-contract=off all of them give the same bits. The
// choice runs before a sanitizer has started, so sanitized builds have the baseline alone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#if __GNUC__ >= 12
#define SLIPSTREAM_SIMD \
  __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4"), flatten))
#else  // which does not choose by the levels' names
#define SLIPSTREAM_SIMD __attribute__((target_clones("default", "avx2", "avx512f"), flatten))
#endif
#else
#define SLIPSTREAM_SIMD
#endif

// What CPU and GPU share is compiled for both by nvcc, and for the CPU alone by g++.
#ifdef __CUDACC__
#define SLIPSTREAM_HOST_DEVICE __host__ __device__
#define SLIPSTREAM_INLINE __host__ __device__ __forceinline__
#else
#define SLIPSTREAM_HOST_DEVICE
#define SLIPSTREAM_INLINE inline __attribute__((always_inline))
#endif

#include <cstdint>

namespace slipstream {

inline constexpr int64_t kCacheLineBytes = 64;

// Rows are random accesses: while one is worked on, the one this many rows ahead is on its way.
inline constexpr int64_t kPrefetchRows = 8;

// Starts to load row [dim] for writing.
#ifndef __CUDACC__
SLIPSTREAM_INLINE void PrefetchRow(const float* row, int64_t dim) {
  const char* line = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < dim * static_cast<int64_t>(sizeof(float));
       byte += kCacheLineBytes) {
    __builtin_prefetch(line + byte, 1, 3);
  }
}
#endif

// Lanes of LaneSum: element d is added in lane d % kSumLanes.
inline constexpr int64_t kSumLanes = 16;

// term(d) summed in a fixed number of lanes, so that every instruction set adds in the same order.
template <typename Term>
SLIPSTREAM_INLINE float LaneSum(int64_t dim, Term term) {
  constexpr int64_t kLanes = kSumLanes;
  float lanes[kLanes] = {};
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(d + lane);
  }
  for (int64_t lane = 0; d < dim; ++d, ++lane) lanes[lane] += term(d);
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_SIMD_H_
