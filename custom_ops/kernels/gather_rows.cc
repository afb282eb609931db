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

// Returns the first bad id's position, or `num_ids`. kDim: the row's length where the compiler is
// to know it, and keeps the sum in registers then; or 0.
template <int64_t kDim, typename Index>
SLIPSTREAM_SIMD int64_t SumRows(const float* table, int64_t num_rows, int64_t row_dim,
                                const Index* ids, const int64_t* splits, int64_t begin, int64_t end,
                                int64_t num_ids, float* sums, int32_t* bags) {
  const int64_t dim = kDim > 0 ? kDim : row_dim;
  const uint64_t limit = static_cast<uint64_t>(num_rows);
  float registers[kDim > 0 ? kDim : 1];
  int64_t first_bad = num_ids;
  for (int64_t bag = begin; bag < end; ++bag) {
    float* __restrict sum = kDim > 0 ? registers : sums + bag * dim;
    for (int64_t d = 0; d < dim; ++d) sum[d] = 0;
    for (int64_t i = splits[bag]; i < splits[bag + 1]; ++i) {
      if (i + kPrefetchRows < splits[end]) {
        const uint64_t ahead = static_cast<uint64_t>(ids[i + kPrefetchRows]);
        if (ahead < limit) {
          const char* line = reinterpret_cast<const char*>(table + ahead * dim);
          const int64_t bytes = dim * static_cast<int64_t>(sizeof(float));
          for (int64_t byte = 0; byte < std::min(bytes, kPrefetchBytes); byte += 64) {
            __builtin_prefetch(line + byte);
          }
        }
      }
      bags[i] = static_cast<int32_t>(bag);
      const uint64_t id = static_cast<uint64_t>(ids[i]);
      if (id >= limit) {
        first_bad = std::min(first_bad, i);
        continue;
      }
      const float* __restrict row = table + id * dim;
      for (int64_t d = 0; d < dim; ++d) sum[d] += row[d];
    }
    if (kDim > 0) std::memcpy(sums + bag * dim, sum, dim * sizeof(float));
  }
  return first_bad;
}

// Runs tasks that each return the first bad position that they met, `num` for none; returns the
// first of all, -1 for none.
template <typename Task>
int64_t FirstBad(int64_t num_tasks, int64_t num, const ParallelFor& parallel_for, Task run) {
  std::atomic<int64_t> first_bad{num};
  parallel_for(num_tasks, [&](int64_t task) {
    const int64_t bad = run(task);
    int64_t before = first_bad.load();
    while (bad < before && !first_bad.compare_exchange_weak(before, bad)) {
    }
  });
  return first_bad.load() == num ? -1 : first_bad.load();
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
  return FirstBad((num + task_rows - 1) / task_rows, num, parallel_for, [&](int64_t task) {
    const int64_t begin = task * task_rows, end = std::min(num, begin + task_rows);
    const int64_t bad = copy(table, num_rows, row_bytes, ids, begin, end, rows);
    return bad < end ? bad : num;
  });
}

template <typename Index>
int64_t SumBags(const float* table, int64_t num_rows, int64_t dim, const Index* ids,
                const int64_t* splits, int64_t num_bags, float* sums, int32_t* bags,
                const ParallelFor& parallel_for) {
  auto sum = SumRows<0, Index>;
  if (dim == 16) sum = SumRows<16, Index>;
  if (dim == 32) sum = SumRows<32, Index>;
  if (dim == 64) sum = SumRows<64, Index>;
  if (dim == 128) sum = SumRows<128, Index>;
  const int64_t num_ids = splits[num_bags], row_bytes = dim * static_cast<int64_t>(sizeof(float));
  // Bags of about as many rows as a task copies.
  const int64_t bag_bytes = (num_ids / std::max<int64_t>(1, num_bags) + 1) * row_bytes;
  const int64_t task_bags = std::max<int64_t>(1, kTaskBytes / std::max<int64_t>(1, bag_bytes));
  return FirstBad((num_bags + task_bags - 1) / task_bags, num_ids, parallel_for, [&](int64_t task) {
    const int64_t begin = task * task_bags, end = std::min(num_bags, begin + task_bags);
    return sum(table, num_rows, dim, ids, splits, begin, end, num_ids, sums, bags);
  });
}

template int64_t GatherRows(const char*, int64_t, int64_t, const int32_t*, int64_t, char*,
                            const ParallelFor&);
template int64_t GatherRows(const char*, int64_t, int64_t, const int64_t*, int64_t, char*,
                            const ParallelFor&);
template int64_t SumBags(const float*, int64_t, int64_t, const int32_t*, const int64_t*, int64_t,
                         float*, int32_t*, const ParallelFor&);
template int64_t SumBags(const float*, int64_t, int64_t, const int64_t*, const int64_t*, int64_t,
                         float*, int32_t*, const ParallelFor&);

}  // namespace slipstream
