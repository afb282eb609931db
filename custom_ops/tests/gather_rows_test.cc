// GatherRows copies the rows asked for and nothing else, SumBags adds them up in order, and both
// find the first bad id.
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

template <typename Index>
void TestSums(int64_t dim, int64_t num_bags) {
  current_case = std::to_string(num_bags) + " bags of rows of " + std::to_string(dim);
  constexpr int64_t kNumRows = 300;
  std::mt19937_64 random(dim * 1000 + num_bags);
  const std::vector<float> table = RandomFloats(&random, kNumRows * dim);
  std::vector<Index> ids;
  std::vector<int64_t> splits = {0};
  std::vector<int32_t> expected_bags;
  std::vector<float> expected(num_bags * dim, 0);
  for (int64_t bag = 0; bag < num_bags; ++bag) {
    for (int64_t left = RandomBelow(&random, 12); left > 0; --left) {
      const int64_t id = RandomBelow(&random, kNumRows);
      for (int64_t d = 0; d < dim; ++d) expected[bag * dim + d] += table[id * dim + d];
      ids.push_back(static_cast<Index>(id));
      expected_bags.push_back(static_cast<int32_t>(bag));
    }
    splits.push_back(ids.size());
  }
  std::vector<float> sums(expected.size());
  std::vector<int32_t> bags(ids.size());
  const auto sum = [&](const ParallelFor& parallel_for) {
    sums.assign(sums.size(), 7);
    bags.assign(bags.size(), -1);
    return SumBags(table.data(), kNumRows, dim, ids.data(), splits.data(), num_bags, sums.data(),
                   bags.data(), parallel_for);
  };
  for (const ParallelFor& parallel_for : AllParallelFors()) {
    CHECK_EQ(sum(parallel_for), -1);
    CHECK_SAME_BITS(sums, expected);
    CHECK_EQ(bags == expected_bags, true);
  }
  AddToDigest(expected);
  if (ids.size() < 2) return;

  current_case += ", two bad ids";
  const int64_t first = ids.size() / 2;
  for (const Index bad : {Index{-1}, Index{kNumRows}, std::numeric_limits<Index>::min(),
                          std::numeric_limits<Index>::max()}) {
    ids[first] = ids.back() = bad;
    for (const ParallelFor& parallel_for : AllParallelFors()) CHECK_EQ(sum(parallel_for), first);
  }
}

}  // namespace

void TestGatherRows() {
  for (const int64_t dim : {1, 3, 16, 32, 33, 64, 128, 300}) {
    for (const int64_t num : {0, 1, 20, 2048, 9000}) {
      TestWith<int32_t>(dim, num);
      TestWith<int64_t>(dim, num);
      TestSums<int32_t>(dim, num);
      TestSums<int64_t>(dim, num);
    }
  }
}

}  // namespace slipstream
