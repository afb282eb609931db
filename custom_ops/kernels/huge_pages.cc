#include "huge_pages.h"

#include <mutex>
#include <unordered_map>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace slipstream {

#ifdef __linux__
namespace {

constexpr int64_t kHugePageBytes = int64_t{2} << 20;
constexpr int64_t kMinBytes = int64_t{16} << 20;
// MADV_COLLAPSE (Linux 6.1) is younger than most build machines' headers.
constexpr int kMadvCollapse = 25;
// Looking in vain for a huge page takes the kernel up to milliseconds. After so many the rest of
// the buffer is left to the kernel's background work, as it is where MADV_COLLAPSE is unknown.
constexpr int kMaxFailuresInARow = 32;

// One huge page at a time: asked for more, the kernel stops at the first that it cannot get.
void Collapse(uintptr_t begin, uintptr_t end) {
  int failures = 0;
  for (uintptr_t page = begin; page < end && failures < kMaxFailuresInARow;
       page += kHugePageBytes) {
    void* start = reinterpret_cast<void*>(page);
    failures = madvise(start, kHugePageBytes, kMadvCollapse) == 0 ? 0 : failures + 1;
  }
}

}  // namespace

void UseHugePages(const void* data, int64_t num_bytes) {
  if (num_bytes < kMinBytes) return;
  // A variable's buffer changes seldom (on restore), so the table of those seen stays small. Memory
  // that came back at a known address with the same size is left alone, which costs speed at most.
  static std::mutex mutex;
  static std::unordered_map<const void*, int64_t> seen;
  {
    std::lock_guard<std::mutex> lock(mutex);
    int64_t& bytes = seen[data];
    if (bytes == num_bytes) return;
    bytes = num_bytes;
  }
  const uintptr_t begin =
      (reinterpret_cast<uintptr_t>(data) + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  const uintptr_t end =
      (reinterpret_cast<uintptr_t>(data) + num_bytes) / kHugePageBytes * kHugePageBytes;
  if (begin >= end) return;
  if (madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE) == 0) {
    Collapse(begin, end);
  }
}
#else
void UseHugePages(const void*, int64_t) {}
#endif

}  // namespace slipstream
