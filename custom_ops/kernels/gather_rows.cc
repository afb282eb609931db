#include "gather_rows.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "simd.h"

namespace slipstream {
namespace {

constexpr int64_t kPrefetchRows = 16;
// A longer row's further lines come by the hardware's own prefetch.
constexpr int64_t kPrefetchBytes = 512;
// Of a task's rows, some 50 us from memory.
constexpr int64_t kTaskBytes = int64_t{1} << 18;

// Returns the first bad id's position, or `end`. kBytes: the row's length where the compiler is to
// know it, and copies whole vectors then; or 0.
template <int64_t kBytes, typename Index>
SLIPSTREAM_SIMD int64_t CopyRows(const char* table, int64_t num_rows, int64_t row_bytes,
                                 const Index* ids, int64_t begin, int64_t end, char* rows) {
  const int64_t bytes = kBytes > 0 ? kBytes : row_bytes;
  const uint64_t limit = static_cast<uint64_t>(num_rows);
  int64_t first_bad = end;
  for (int64_t i = begin; i < end; ++i) {
    if (i + kPrefetchRows < end) {
      const uint64_t ahead = static_cast<uint64_t>(ids[i + kPrefetchRows]);
      if (ahead < limit) {
        const char* line = table + ahead * bytes;
        for (int64_t byte = 0; byte < std::min(bytes, kPrefetchBytes); byte += 64) {
          __builtin_prefetch(line + byte);
        }
      }
    }
    const uint64_t id = static_cast<uint64_t>(ids[i]);
    if (id < limit) {
      std::memcpy(rows + i * bytes, table + id * bytes, bytes);
    } else {
      first_bad = std::min(first_bad, i);
    }
  }
  return first_bad;
}

}  // namespace

template <typename Index>
int64_t GatherRows(const char* table, int64_t num_rows, int64_t row_bytes, const Index* ids,
                   int64_t num, char* rows, const ParallelFor& parallel_for) {
  auto copy = CopyRows<0, Index>;
  if (row_bytes == 64) copy = CopyRows<64, Index>;
  if (row_bytes == 128) copy = CopyRows<128, Index>;
  if (row_bytes == 256) copy = CopyRows<256, Index>;
  if (row_bytes == 512) copy = CopyRows<512, Index>;
  const int64_t task_rows = std::max<int64_t>(1, kTaskBytes / std::max<int64_t>(1, row_bytes));
  std::atomic<int64_t> first_bad{num};
  parallel_for((num + task_rows - 1) / task_rows, [&](int64_t task) {
    const int64_t begin = task * task_rows, end = std::min(num, begin + task_rows);
    const int64_t bad = copy(table, num_rows, row_bytes, ids, begin, end, rows);
    int64_t before = first_bad.load();
    while (bad < end && bad < before && !first_bad.compare_exchange_weak(before, bad)) {
    }
  });
  return first_bad.load() == num ? -1 : first_bad.load();
}

template int64_t GatherRows(const char*, int64_t, int64_t, const int32_t*, int64_t, char*,
                            const ParallelFor&);
template int64_t GatherRows(const char*, int64_t, int64_t, const int64_t*, int64_t, char*,
                            const ParallelFor&);

}  // namespace slipstream
