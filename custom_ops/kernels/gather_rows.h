#ifndef SLIPSTREAM_KERNELS_GATHER_ROWS_H_
#define SLIPSTREAM_KERNELS_GATHER_ROWS_H_

#include <cstdint>

#include "parallel.h"

namespace slipstream {

// Copies rows `ids` of a table [num_rows, row_bytes] to `rows` [num, row_bytes].
//
// Returns the position of the first id that is not in [0, num_rows), -1 if there is none; what is
// in `rows` at such positions is left as it was.
template <typename Index>
int64_t GatherRows(const char* table, int64_t num_rows, int64_t row_bytes, const Index* ids,
                   int64_t num, char* rows, const ParallelFor& parallel_for);

// Sums rows `ids` of a table [num_rows, dim] by bags: bag b has the ids from splits[b] to before
// splits[b + 1], added in their order.
//
//   splits [num_bags + 1], ascending; the first is 0, the last the number of ids
//   sums   [num_bags, dim], overwritten; of a bag with a bad id with anything
//   bags   [splits[num_bags]], overwritten with the bag of each id
// Returns the position of the first id that is not in [0, num_rows), -1 if there is none.
template <typename Index>
int64_t SumBags(const float* table, int64_t num_rows, int64_t dim, const Index* ids,
                const int64_t* splits, int64_t num_bags, float* sums, int32_t* bags,
                const ParallelFor& parallel_for);

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_GATHER_ROWS_H_
