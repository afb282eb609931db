#ifndef SLIPSTREAM_KERNELS_HUGE_PAGES_H_
#define SLIPSTREAM_KERNELS_HUGE_PAGES_H_

#include <cstdint>

namespace slipstream {

// Asks the kernel to back the memory [data, data + num_bytes) with huge pages, those already mapped
// included, since random rows of a large table otherwise miss the TLB on each access. Contents stay
// as they are. Does nothing for memory below 16 MB, for memory it was called with before, or where
// the system has no huge pages.
void UseHugePages(const void* data, int64_t num_bytes);

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_HUGE_PAGES_H_
