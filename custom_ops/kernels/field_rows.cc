#include "field_rows.h"

#include "simd.h"

namespace slipstream {
namespace {

// Has the top bit where the id is not in [0, size): of the id, or of what is left of the size.
SLIPSTREAM_INLINE uint64_t BadBit(int64_t id, int64_t size) {
  return static_cast<uint64_t>(id) | (static_cast<uint64_t>(size - 1) - static_cast<uint64_t>(id));
}

inline bool IsBad(int64_t id, int64_t size) { return BadBit(id, size) >> 63 != 0; }

// Bits alone, so that the loops become vectors. Returns whether an id is bad.
template <typename Id, typename Row>
SLIPSTREAM_SIMD bool AddStarts(const Id* __restrict ids, int64_t num_outer, int64_t num_fields,
                               int64_t num_inner, const int64_t* __restrict starts,
                               const int64_t* __restrict sizes, Row* __restrict rows) {
  uint64_t bits = 0;
  for (int64_t outer = 0; outer < num_outer; ++outer) {
    if (num_inner == 1) {
      for (int64_t f = 0; f < num_fields; ++f) {
        bits |= BadBit(ids[f], sizes[f]);
        rows[f] = static_cast<Row>(static_cast<uint64_t>(ids[f]) + starts[f]);
      }
    } else {
      for (int64_t f = 0; f < num_fields; ++f) {
        const int64_t start = starts[f], size = sizes[f];
        const Id* __restrict from = ids + f * num_inner;
        Row* __restrict to = rows + f * num_inner;
        for (int64_t i = 0; i < num_inner; ++i) {
          bits |= BadBit(from[i], size);
          to[i] = static_cast<Row>(static_cast<uint64_t>(from[i]) + start);
        }
      }
    }
    ids += num_fields * num_inner;
    rows += num_fields * num_inner;
  }
  return bits >> 63 != 0;
}

}  // namespace

template <typename Id, typename Row>
int64_t FieldRows(const Id* ids, int64_t num_outer, int64_t num_fields, int64_t num_inner,
                  const int64_t* starts, const int64_t* sizes, Row* rows) {
  if (!AddStarts(ids, num_outer, num_fields, num_inner, starts, sizes, rows)) return -1;
  int64_t i = 0;
  while (!IsBad(ids[i], sizes[i / num_inner % num_fields])) ++i;
  return i;
}

template int64_t FieldRows(const int32_t*, int64_t, int64_t, int64_t, const int64_t*,
                           const int64_t*, int32_t*);
template int64_t FieldRows(const int32_t*, int64_t, int64_t, int64_t, const int64_t*,
                           const int64_t*, int64_t*);
template int64_t FieldRows(const int64_t*, int64_t, int64_t, int64_t, const int64_t*,
                           const int64_t*, int64_t*);

}  // namespace slipstream
