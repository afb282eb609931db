#ifndef SLIPSTREAM_KERNELS_ROUNDING_H_
#define SLIPSTREAM_KERNELS_ROUNDING_H_

// Stochastic rounding of float32 to bfloat16: up or down with the probability that makes the
// expected result the value itself, so that small updates are not lost. The random bits are a hash
// of seed, step, row and element: there is no generator whose state would depend on the order of
// rows, so results repeat for any number of threads, and on a GPU.

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace slipstream {

// Spreads every bit over all: MurmurHash3's last step (Appleby).
SLIPSTREAM_INLINE uint32_t MixBits(uint32_t x) {
  x ^= x >> 16;
  x *= 0x85ebca6bu;
  x ^= x >> 13;
  x *= 0xc2b2ae35u;
  return x ^ x >> 16;
}

// What the random bits of a row come from in a step.
SLIPSTREAM_INLINE uint32_t RoundingKey(uint32_t seed, int64_t step, int64_t row) {
  uint32_t key = MixBits(seed ^ static_cast<uint32_t>(step));
  key = MixBits(key ^ static_cast<uint32_t>(row));
  return MixBits(key ^ static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32));
}

// Other bits than those of the update that may follow.
inline constexpr uint32_t kSettleSeed = 0x5bd1e995u;

// 16 random bits for element d.
SLIPSTREAM_INLINE uint32_t RoundingBits(uint32_t key, uint32_t d) {
  return MixBits(key + d * 0x9e3779b9u) >> 16;
}

SLIPSTREAM_INLINE float FromBfloat16(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// A value that bfloat16 has stays as it is; so do infinities, and NaN stays NaN.
SLIPSTREAM_INLINE uint16_t ToBfloat16(float value, uint32_t random_bits) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const bool is_finite = (bits & 0x7f800000u) != 0x7f800000u;
  const uint32_t not_a_number = (bits & 0x7fffffu) != 0 ? 0x400000u : 0;
  bits = is_finite ? bits + random_bits : bits | not_a_number;
  return static_cast<uint16_t>(bits >> 16);
}

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_ROUNDING_H_
