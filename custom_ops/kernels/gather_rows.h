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

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_GATHER_ROWS_H_
