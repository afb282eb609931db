// GatherRows copies the rows asked for and nothing else, and finds the first bad id.
#include "../kernels/gather_rows.h"

#include <limits>

#include "test_support.h"

namespace slipstream {
namespace {

template <typename Index>
void TestWith(int64_t dim, int64_t num) {
  current_case = std::to_string(num) + " rows of " + std::to_string(dim);
  constexpr int64_t kNumRows = 300;
  std::mt19937_64 random(dim * 1000 + num);
  const std::vector<float> table = RandomFloats(&random, kNumRows * dim);
  std::vector<Index> ids(num);
  std::vector<float> expected;
  for (Index& id : ids) {
    id = static_cast<Index>(RandomBelow(&random, kNumRows));
    expected.insert(expected.end(), &table[id * dim], &table[id * dim] + dim);
  }
  const auto gather = [&](const ParallelFor& parallel_for, std::vector<float>* rows) {
    return GatherRows(reinterpret_cast<const char*>(table.data()), kNumRows, dim * sizeof(float),
                      ids.data(), num, reinterpret_cast<char*>(rows->data()), parallel_for);
  };
  for (const ParallelFor& parallel_for : AllParallelFors()) {
    std::vector<float> rows(num * dim);
    CHECK_EQ(gather(parallel_for, &rows), -1);
    CHECK_SAME_BITS(rows, expected);
  }
  AddToDigest(expected);
  if (num < 2) return;

  current_case += ", two bad ids";
  const std::vector<Index> good = ids;
  for (const Index bad : {Index{-1}, Index{kNumRows}, std::numeric_limits<Index>::min(),
                          std::numeric_limits<Index>::max()}) {
    const int64_t first = num / 2;
    ids[first] = ids[num - 1] = bad;
    std::vector<float> with_marks = expected;
    for (int64_t d = 0; d < dim; ++d) {
      with_marks[first * dim + d] = with_marks[(num - 1) * dim + d] = 7;
    }
    for (const ParallelFor& parallel_for : AllParallelFors()) {
      std::vector<float> rows(num * dim, 7);
      CHECK_EQ(gather(parallel_for, &rows), first);
      CHECK_SAME_BITS(rows, with_marks);
    }
    ids = good;
  }
}

}  // namespace

void TestGatherRows() {
  for (const int64_t dim : {1, 3, 16, 32, 33, 64, 128, 300}) {
    for (const int64_t num : {0, 1, 20, 2048, 9000}) {
      TestWith<int32_t>(dim, num);
      TestWith<int64_t>(dim, num);
    }
  }
}

}  // namespace slipstream
