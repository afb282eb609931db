// FieldRows adds each field's first row, whatever the shape, and finds the first id outside its
// field.
#include "../kernels/field_rows.h"

#include <limits>

#include "test_support.h"

namespace slipstream {
namespace {

template <typename Id, typename Row>
void TestWith(int64_t num_outer, int64_t num_fields, int64_t num_inner) {
  current_case = std::to_string(num_outer) + " x " + std::to_string(num_fields) + " fields x " +
                 std::to_string(num_inner);
  std::mt19937_64 random(num_outer * 100 + num_fields * 10 + num_inner);
  std::vector<int64_t> starts, sizes;
  int64_t num_rows = sizeof(Row) == 8 ? int64_t{1} << 33 : 0;
  for (int64_t f = 0; f < num_fields; ++f) {
    starts.push_back(num_rows);
    sizes.push_back(1 + RandomBelow(&random, 50));
    num_rows += sizes.back();
  }
  const int64_t num = num_outer * num_fields * num_inner;
  std::vector<Id> ids(num);
  std::vector<Row> expected(num), rows(num);
  for (int64_t i = 0; i < num; ++i) {
    const int64_t f = i / num_inner % num_fields;
    ids[i] = static_cast<Id>(RandomBelow(&random, sizes[f]));
    expected[i] = static_cast<Row>(ids[i] + starts[f]);
  }
  const auto run = [&] {
    return FieldRows(ids.data(), num_outer, num_fields, num_inner, starts.data(), sizes.data(),
                     rows.data());
  };
  CHECK_EQ(run(), -1);
  CHECK_EQ(rows == expected, true);
  if (num < 2) return;

  current_case += ", two bad ids";
  const int64_t first = num / 2, size = sizes[first / num_inner % num_fields];
  for (const Id bad : {Id{-1}, static_cast<Id>(size), std::numeric_limits<Id>::min(),
                       std::numeric_limits<Id>::max()}) {
    ids[first] = bad;
    ids[num - 1] = -1;
    CHECK_EQ(run(), first);
  }
}

}  // namespace

void TestFieldRows() {
  for (const int64_t num_outer : {1, 2, 33}) {
    for (const int64_t num_fields : {1, 3, 26}) {
      for (const int64_t num_inner : {1, 5, 40}) {
        TestWith<int32_t, int32_t>(num_outer, num_fields, num_inner);
        TestWith<int32_t, int64_t>(num_outer, num_fields, num_inner);
        TestWith<int64_t, int64_t>(num_outer, num_fields, num_inner);
      }
    }
  }
}

}  // namespace slipstream
