#ifndef SLIPSTREAM_KERNELS_FIELD_ROWS_H_
#define SLIPSTREAM_KERNELS_FIELD_ROWS_H_

#include <cstdint>

namespace slipstream {

// Turns ids of fields into rows of the table that all fields share.
//
//   ids    [num_outer, num_fields, num_inner]
//   starts [num_fields], each field's first row
//   sizes  [num_fields], its number of rows; ids are below it
//   rows   [num_outer, num_fields, num_inner], overwritten
// Returns the position of the first id that is not in its field, -1 if there is none.
template <typename Id, typename Row>
int64_t FieldRows(const Id* ids, int64_t num_outer, int64_t num_fields, int64_t num_inner,
                  const int64_t* starts, const int64_t* sizes, Row* rows);

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_FIELD_ROWS_H_
