// The rows that a step looked up, on a GPU: live_rows.h in CUDA.
//
// The ids are sorted, stably, so that each row's lookups lie together in batch order (CUB's radix
// sort). A group of lanes sums the gradients of a row. A row with more than kPieceSize = C lookups
// is cut into pieces of C, from its first lookup on, which groups sum each by itself; the sums of
// the pieces are added in their order, again by pieces of C where they are more. So a row that has
// a quarter of all lookups keeps the whole device busy, and a sum depends on the row's gradients
// and their order alone, never on scheduling.
//
// A piece needs a place for its sum and somebody to do it, without another pass over the rows: the
// q-th piece of a row that starts at sorted place s goes to floor(s / C) + q, that is, to the
// C-aligned tile of places in which the piece begins. A tile gets no more than one such piece with
// q > 0, since a piece before it, of C lookups, is the same row's; and the tile's first place
// belongs to that row. The first pieces, q = 0, go to the rows' sums themselves. The same again for
// the pieces of pieces.
#include <thrust/iterator/counting_iterator.h>

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#include <cub/device/device_select.cuh>

#include "gpu_rows.cuh"

namespace slipstream::gpu {
namespace {

constexpr int64_t kAlignment = 256;  // as cudaMalloc's

__host__ __device__ constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Hands out parts of the workspace; without one, counts what would be needed.
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}
  template <typename T>
  T* Take(int64_t num) {
    char* taken = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += CeilDiv(num * static_cast<int64_t>(sizeof(T)), kAlignment) * kAlignment;
    return reinterpret_cast<T*>(taken);
  }
  size_t used() const { return used_; }

 private:
  char* memory_;
  size_t used_ = 0;
};

// Whether a row begins at a place of the sorted keys.
struct IsStart {
  __device__ bool operator()(int32_t place) const {
    return place == 0 || keys[place] != keys[place - 1];
  }
  const uint32_t* keys;
};

// Bits of the largest id, at least one.
int KeyBits(int64_t num_rows) {
  int bits = 1;
  while (bits < 32 && (num_rows - 1) >> bits != 0) ++bits;
  return bits;
}

// With null memory: how much the library needs.
cudaError_t Sort(const FindMemory& memory, int64_t num_lookups, int64_t num_rows, size_t* num_bytes,
                 cudaStream_t stream) {
  return cub::DeviceRadixSort::SortPairs(
      memory.library, *num_bytes, memory.keys[0], memory.keys[1], memory.positions[0],
      memory.positions[1], static_cast<int>(num_lookups), 0, KeyBits(num_rows), stream);
}

cudaError_t SelectStarts(const FindMemory& memory, int64_t num_lookups, int32_t* num_found,
                         size_t* num_bytes, cudaStream_t stream) {
  return cub::DeviceSelect::If(memory.library, *num_bytes, thrust::counting_iterator<int32_t>(0),
                               memory.starts, num_found, static_cast<int>(num_lookups),
                               IsStart{memory.keys[1]}, stream);
}

cudaError_t ScanMarks(const FindMemory& memory, const int32_t* marks, int32_t* places,
                      int64_t num_lookups, size_t* num_bytes, cudaStream_t stream) {
  return cub::DeviceScan::ExclusiveSum(memory.library, *num_bytes, marks, places,
                                       static_cast<int>(num_lookups), stream);
}

Error LibraryBytes(int64_t num_lookups, int64_t num_rows, size_t* num_bytes) {
  const FindMemory none = {};
  size_t sort = 0, select = 0, scan = 0;
  SLIPSTREAM_RETURN_IF_ERROR(Sort(none, num_lookups, num_rows, &sort, nullptr));
  SLIPSTREAM_RETURN_IF_ERROR(SelectStarts(none, num_lookups, nullptr, &select, nullptr));
  SLIPSTREAM_RETURN_IF_ERROR(ScanMarks(none, nullptr, nullptr, num_lookups, &scan, nullptr));
  *num_bytes = std::max({*num_bytes, sort, select, scan});
  return cudaSuccess;
}

// Checks the ids and makes the keys and places to sort. A bad id counts as 0, so that no later
// access is out of bounds.
template <typename Index>
__global__ void __launch_bounds__(kThreads)
    CheckIds(const Index* ids, View view, uint32_t* keys, int32_t* positions) {
  const int64_t num_threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < view.num_lookups; i += num_threads) {
    const int64_t id = ids[i];
    const bool is_bad = static_cast<uint64_t>(id) >= static_cast<uint64_t>(view.table.num_rows);
    if (is_bad) atomicMin(&view.fault->bad_id, PackFault(view.index, i, false));
    keys[i] = is_bad ? 0 : static_cast<uint32_t>(id);
    positions[i] = static_cast<int32_t>(i);
  }
}

// Where the row ends that begins at starts[r].
__device__ int64_t EndOf(const View& view, const int32_t* starts, int64_t r) {
  return r + 1 < view.state->num_found ? starts[r + 1] : view.num_lookups;
}

// Says of each row whether its gradients are read, and counts those that sleep.
__global__ void __launch_bounds__(kThreads)
    Classify(View view, const int32_t* starts, const uint32_t* keys, const int32_t* positions) {
  const TableState& state = *view.state;
  const int64_t num_entries = static_cast<int64_t>(state.next_policy.num_entries);
  const int64_t woken_at = static_cast<int64_t>(state.next_policy.woken_at);
  unsigned long long num_stale[4] = {};  // as TableState's
  const int64_t num_threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; r < state.num_found;
       r += num_threads) {
    const int64_t start = starts[r];
    const int64_t count = EndOf(view, starts, r) - start;
    FoundRow row;
    row.id = keys[start];
    row.first_lookup = positions[start];
    row.state = 0;
    row.sum = count == 1 ? kOwnGrad : static_cast<int32_t>(start / 2);
    if (row.id >= view.table.num_rows) row.sum = kNotRead;  // a table without rows
    if (view.pool.row_states != nullptr && row.sum != kNotRead) {
      row.state = view.pool.row_states[row.id];
      if (row.state < 0) {
        const int64_t entry = -1 - static_cast<int64_t>(row.state);
        if (entry >= num_entries || !IsOf(view.pool.entries[entry], row.id)) {
          atomicMin(&view.fault->bad_row, PackFault(view.index, row.first_lookup, true));
          row.sum = kNotRead;
        } else {
          const RowKind kind = KindOf(view.pool.entries[entry], state.settings.step, woken_at);
          if (kind == RowKind::kSkipped) row.sum = kNotRead;
          num_stale[0] += kind == RowKind::kSkipped ? count : 0;
          num_stale[1] += kind == RowKind::kDeferred ? count : 0;
          num_stale[2] += kind == RowKind::kSkipped;
          num_stale[3] += kind == RowKind::kDeferred;
        }
      }
    }
    view.rows[r] = row;
  }
  if (view.pool.row_states != nullptr && state.is_refresh) CheckEntries(view);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (num_stale[i] != 0) atomicAdd(&view.state->num_stale[i], num_stale[i]);
  }
}

// to [dim] = the sum of at(i) [dim] for i in [begin, end), in order, not empty; added to what is
// there if `adds`. Returns whether this lane saw a NaN or an infinity in the result.
template <typename Group, typename At>
__device__ bool SumInOrder(const Group& group, int64_t dim, int64_t begin, int64_t end, bool adds,
                           At at, float* to) {
  constexpr int kAhead = 4;  // loads on their way at once
  bool is_bad = false;
  group.ForEach(dim, [&](int64_t d, bool is_inside) {
    if (!is_inside) return;
    float sum[Group::kVector];
    int64_t i = begin;
    Load(adds ? to + d : at(i++) + d, sum);
    for (; i + kAhead <= end; i += kAhead) {
      float next[kAhead][Group::kVector];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) Load(at(i + a) + d, next[a]);
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        for (int j = 0; j < Group::kVector; ++j) sum[j] += next[a][j];
      }
    }
    for (; i < end; ++i) {
      float next[Group::kVector];
      Load(at(i) + d, next);
      for (int j = 0; j < Group::kVector; ++j) sum[j] += next[j];
    }
    for (int j = 0; j < Group::kVector; ++j) is_bad |= !isfinite(sum[j]);
    if (to != nullptr) Store(to + d, sum);
  });
  return is_bad;
}

template <typename Group>
__device__ void NoteGradient(const Group& group, const View& view, const FoundRow& row,
                             bool is_bad) {
  if (__any_sync(group.mask, is_bad) && group.lane == 0) {
    atomicMin(&view.fault->bad_row, PackFault(view.index, row.first_lookup, false));
  }
}

// Sums rows of up to a piece, and the first pieces of others. One that was looked up once is only
// checked.
template <typename Group>
__global__ void __launch_bounds__(kThreads)
    SumRows(View view, const int32_t* starts, const int32_t* positions) {
  const Group group = Group::Own();
  const int64_t dim = view.table.dim;
  for (int64_t r = Group::Index(); r < view.state->num_found; r += Group::Number()) {
    const FoundRow row = view.rows[r];
    if (row.sum == kNotRead) continue;
    const int64_t start = starts[r];
    const int64_t end = EndOf(view, starts, r);
    const bool is_whole = end - start <= kPieceSize;
    const auto at = [&](int64_t i) { return view.grads + positions[i] * dim; };
    float* to = row.sum == kOwnGrad ? nullptr : view.sums + row.sum * dim;
    const bool is_bad =
        SumInOrder(group, dim, start, is_whole ? end : start + kPieceSize, false, at, to);
    if (is_whole) NoteGradient(group, view, row, is_bad);
  }
}

// A row of several pieces. Pieces 1, 2, ... have the places [first, last) of `partials`.
struct LongRow {
  int64_t index;
  int64_t start, end;
  int64_t first, last;
};

// The row whose sum of a piece (not its first) lies at place `tile` of `partials`, if there is one.
__device__ bool FindLongRow(const View& view, const int32_t* starts, int64_t tile, LongRow* row) {
  const int64_t place = tile * kPieceSize;
  if (place >= view.num_lookups) return false;
  int64_t low = 0, high = view.state->num_found;  // the last start at or before `place`
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (starts[middle] <= place ? low : high) = middle;
  }
  row->index = low;
  row->start = starts[low];
  row->end = EndOf(view, starts, low);
  row->first = row->start / kPieceSize + 1;
  row->last = row->start / kPieceSize + CeilDiv(row->end - row->start, kPieceSize);
  return row->first <= tile && tile < row->last && view.rows[low].sum != kNotRead;
}

// Sums all pieces of rows but the first ones.
template <typename Group>
__global__ void __launch_bounds__(kThreads)
    SumPieces(View view, const int32_t* starts, const int32_t* positions, float* partials) {
  const Group group = Group::Own();
  const int64_t dim = view.table.dim;
  const int64_t num_tiles = CeilDiv(view.num_lookups, kPieceSize);
  for (int64_t tile = Group::Index(); tile < num_tiles; tile += Group::Number()) {
    LongRow row;
    if (!FindLongRow(view, starts, tile, &row)) continue;
    const int64_t begin = row.start + (tile - row.first + 1) * kPieceSize;
    const int64_t end = begin + kPieceSize < row.end ? begin + kPieceSize : row.end;
    const auto at = [&](int64_t i) { return view.grads + positions[i] * dim; };
    SumInOrder(group, dim, begin, end, false, at, partials + tile * dim);
  }
}

// The same one level up: sums of kPieceSize sums of pieces, but for each row's first so many.
template <typename Group>
__global__ void __launch_bounds__(kThreads)
    SumPartials(View view, const int32_t* starts, const float* partials, float* partials_2) {
  const Group group = Group::Own();
  const int64_t dim = view.table.dim;
  const int64_t num_tiles = CeilDiv(CeilDiv(view.num_lookups, kPieceSize), kPieceSize);
  for (int64_t tile = Group::Index(); tile < num_tiles; tile += Group::Number()) {
    LongRow row;
    if (!FindLongRow(view, starts, tile * kPieceSize, &row)) continue;
    const int64_t piece = CeilDiv(tile * kPieceSize - row.first, kPieceSize);
    const int64_t begin = row.first + piece * kPieceSize;
    if (piece == 0 || begin >= row.last) continue;
    const int64_t end = begin + kPieceSize < row.last ? begin + kPieceSize : row.last;
    const auto at = [&](int64_t i) { return partials + i * dim; };
    SumInOrder(group, dim, begin, end, false, at, partials_2 + tile * dim);
  }
}

// Adds to a long row's first piece the others: the group whose tile is the row's first does so.
template <typename Group>
__global__ void __launch_bounds__(kThreads)
    FinishLongRows(View view, const int32_t* starts, const float* partials,
                   const float* partials_2) {
  const Group group = Group::Own();
  const int64_t dim = view.table.dim;
  const int64_t num_tiles = CeilDiv(view.num_lookups, kPieceSize);
  for (int64_t tile = Group::Index(); tile < num_tiles; tile += Group::Number()) {
    LongRow row;
    if (!FindLongRow(view, starts, tile, &row) || row.first != tile) continue;
    const FoundRow& found = view.rows[row.index];
    float* sum = view.sums + found.sum * dim;
    const int64_t num = row.last - row.first;
    const int64_t single = num < kPieceSize ? num : kPieceSize;
    const auto at = [&](int64_t i) { return partials + i * dim; };
    bool is_bad = SumInOrder(group, dim, row.first, row.first + single, true, at, sum);
    if (num > single) {
      const int64_t first = row.first / kPieceSize;
      const auto at_2 = [&](int64_t i) { return partials_2 + i * dim; };
      is_bad = SumInOrder(group, dim, first + 1, first + CeilDiv(num, kPieceSize), true, at_2, sum);
    }
    NoteGradient(group, view, found, is_bad);
  }
}

template <typename Group>
Error Sum(const View& view, const FindMemory& memory, cudaStream_t stream) {
  const int64_t num = view.num_lookups;
  const int32_t *starts = memory.starts, *positions = memory.positions[1];
  SLIPSTREAM_RETURN_IF_ERROR(Launch(SumRows<Group>, NumBlocks(num * Group::kLanes), kThreads,
                                    stream, view, starts, positions));
  if (num <= kPieceSize) return cudaSuccess;
  const int64_t num_tiles = CeilDiv(num, kPieceSize);
  const int64_t num_blocks = NumBlocks(num_tiles * Group::kLanes);
  SLIPSTREAM_RETURN_IF_ERROR(Launch(SumPieces<Group>, num_blocks, kThreads, stream, view, starts,
                                    positions, memory.partials));
  if (num_tiles > kPieceSize) {
    SLIPSTREAM_RETURN_IF_ERROR(
        Launch(SumPartials<Group>, NumBlocks(CeilDiv(num_tiles, kPieceSize) * Group::kLanes),
               kThreads, stream, view, starts, memory.partials, memory.partials_2));
  }
  return Launch(FinishLongRows<Group>, num_blocks, kThreads, stream, view, starts, memory.partials,
                memory.partials_2);
}

// The part of Classify that a table without lookups needs.
__global__ void __launch_bounds__(kThreads) CheckRefresh(View view) {
  if (view.state->is_refresh) CheckEntries(view);
}

// Begins a step that only finds rows.
__global__ void BeginFind(View view, const int64_t* step) {
  TableState& state = *view.state;
  state.num_found = 0;
  state.is_refresh = false;
  state.settings.step = *step;
  for (int i = 0; i < 4; ++i) state.num_stale[i] = 0;
  if (view.pool.row_states != nullptr) TakePolicy(view);
}

// Marks the first lookups of rows that are not skipped.
__global__ void __launch_bounds__(kThreads) MarkRead(View view) {
  const int64_t num_threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       r < view.state->num_found; r += num_threads) {
    const FoundRow& row = view.rows[r];
    if (row.sum != kNotRead) view.marks[row.first_lookup] = 1;
  }
}

template <typename Index>
__global__ void EndFind(View view, const Index* ids, int32_t* num_slices, Report* report) {
  const int64_t last = view.num_lookups - 1;
  *num_slices = last < 0 ? 0 : view.places[last] + view.marks[last];
  TellFault(view, ids, report);
}

template <typename Group, typename Index>
__global__ void __launch_bounds__(kThreads) CopyRows(View view, Index* ids, float* grads) {
  const Group group = Group::Own();
  const int64_t dim = view.table.dim;
  for (int64_t r = Group::Index(); r < view.state->num_found; r += Group::Number()) {
    const FoundRow row = view.rows[r];
    if (row.sum == kNotRead) continue;
    const float* grad =
        row.sum == kOwnGrad ? view.grads + row.first_lookup * dim : view.sums + row.sum * dim;
    const int64_t to = view.places[row.first_lookup];
    if (group.lane == 0) ids[to] = static_cast<Index>(row.id);
    group.ForEach(dim, [&](int64_t d, bool is_inside) {
      if (!is_inside) return;
      float values[Group::kVector];
      Load(grad + d, values);
      Store(grads + to * dim + d, values);
    });
  }
}

}  // namespace

const char* ErrorName(Error error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

Error AllocateReport(Report** report) {
  Report* allocated = nullptr;
  SLIPSTREAM_RETURN_IF_ERROR(cudaHostAlloc(reinterpret_cast<void**>(&allocated), sizeof(Report),
                                           cudaHostAllocPortable | cudaHostAllocMapped));
  *allocated = {};
  *report = allocated;
  return cudaSuccess;
}

BadLookup TakeReport(Report* report) {
  const int64_t kind = __atomic_load_n(&report->kind, __ATOMIC_ACQUIRE);
  if (kind == BadLookup::kNone) return {};
  const BadLookup bad{static_cast<BadLookup::Kind>(kind), report->table, report->lookup,
                      report->id};
  __atomic_store_n(&report->kind, BadLookup::kNone, __ATOMIC_RELEASE);
  return bad;
}

Error CopyBytes(void* to, const void* from, size_t num_bytes, CUstream_st* stream) {
  return cudaMemcpyAsync(to, from, num_bytes, cudaMemcpyDeviceToDevice, stream);
}

Error ReadBytes(void* to, const void* from, size_t num_bytes, CUstream_st* stream) {
  SLIPSTREAM_RETURN_IF_ERROR(cudaMemcpyAsync(to, from, num_bytes, cudaMemcpyDeviceToHost, stream));
  return cudaStreamSynchronize(stream);
}

template <typename Index>
Error Lay(const std::vector<TableStep<Index>>& tables, void* workspace, Layout* layout) {
  Arena arena(workspace);
  layout->fault = arena.Take<Fault>(1);
  int64_t most_lookups = 0, most_partials = 0, most_partials_2 = 0;
  FindMemory& find = layout->find;
  find = {};
  layout->views.clear();
  for (const TableStep<Index>& step : tables) {
    const int64_t num = step.num_lookups, dim = step.table.dim;
    if (num < 0 || num > INT32_MAX || step.table.num_rows > int64_t{UINT32_MAX}) {
      return cudaErrorInvalidValue;
    }
    View view = {};
    view.grads = step.grads;
    view.num_lookups = num;
    view.table = step.table;
    view.pool = step.pool;
    view.index = static_cast<int32_t>(layout->views.size());
    view.fault = layout->fault;
    view.state = arena.Take<TableState>(1);
    view.rows = arena.Take<FoundRow>(num);
    view.sums = arena.Take<float>(num / 2 * dim);
    view.marks = arena.Take<int32_t>(num);
    view.places = arena.Take<int32_t>(num);
    layout->views.push_back(view);
    const int64_t num_tiles = CeilDiv(num, kPieceSize);
    most_lookups = std::max(most_lookups, num);
    most_partials = std::max(most_partials, num_tiles * dim);
    most_partials_2 = std::max(most_partials_2, CeilDiv(num_tiles, kPieceSize) * dim);
    if (num > 0) {
      SLIPSTREAM_RETURN_IF_ERROR(LibraryBytes(num, step.table.num_rows, &find.library_bytes));
    }
  }
  for (uint32_t*& keys : find.keys) keys = arena.Take<uint32_t>(most_lookups);
  for (int32_t*& positions : find.positions) positions = arena.Take<int32_t>(most_lookups);
  find.starts = arena.Take<int32_t>(most_lookups);
  find.partials = arena.Take<float>(most_partials);
  find.partials_2 = arena.Take<float>(most_partials_2);
  // A null pointer would ask the library for its size again.
  find.library = arena.Take<char>(std::max<size_t>(find.library_bytes, 1));
  layout->num_bytes = arena.used();
  return cudaSuccess;
}

template <typename Index>
Error FindRows(const TableStep<Index>& table, const View& view, const FindMemory& memory,
               cudaStream_t stream) {
  const int64_t num = view.num_lookups;
  if (num == 0) {
    if (view.pool.row_states == nullptr) return cudaSuccess;
    return Launch(CheckRefresh, NumBlocks(view.pool.capacity), kThreads, stream, view);
  }
  SLIPSTREAM_RETURN_IF_ERROR(Launch(CheckIds<Index>, NumBlocks(num), kThreads, stream, table.ids,
                                    view, memory.keys[0], memory.positions[0]));
  size_t num_bytes = memory.library_bytes;
  SLIPSTREAM_RETURN_IF_ERROR(Sort(memory, num, view.table.num_rows, &num_bytes, stream));
  SLIPSTREAM_RETURN_IF_ERROR(SelectStarts(memory, num, &view.state->num_found, &num_bytes, stream));
  SLIPSTREAM_RETURN_IF_ERROR(Launch(Classify, NumBlocks(num), kThreads, stream, view, memory.starts,
                                    memory.keys[1], memory.positions[1]));
  return WithGroup(view, [&](auto group) { return Sum<decltype(group)>(view, memory, stream); });
}

Error SumMarks(const View& view, const FindMemory& memory, cudaStream_t stream) {
  size_t num_bytes = memory.library_bytes;
  return ScanMarks(memory, view.marks, view.places, view.num_lookups, &num_bytes, stream);
}

template <typename Index>
Error WorkspaceBytes(const std::vector<TableStep<Index>>& tables, size_t* num_bytes) {
  Layout layout;
  SLIPSTREAM_RETURN_IF_ERROR(Lay(tables, nullptr, &layout));
  *num_bytes = layout.num_bytes;
  return cudaSuccess;
}

template <typename Index>
Error FindSlices(const std::vector<TableStep<Index>>& tables, const int64_t* step, void* workspace,
                 int32_t* num_slices, Report* report, CUstream_st* stream) {
  Layout layout;
  SLIPSTREAM_RETURN_IF_ERROR(Lay(tables, workspace, &layout));
  SLIPSTREAM_RETURN_IF_ERROR(cudaMemsetAsync(layout.fault, 0xff, sizeof(Fault), stream));
  for (size_t t = 0; t < tables.size(); ++t) {
    const View& view = layout.views[t];
    SLIPSTREAM_RETURN_IF_ERROR(Launch(BeginFind, 1, 1, stream, view, step));
    SLIPSTREAM_RETURN_IF_ERROR(FindRows(tables[t], view, layout.find, stream));
    if (view.num_lookups == 0) continue;
    SLIPSTREAM_RETURN_IF_ERROR(
        cudaMemsetAsync(view.marks, 0, view.num_lookups * sizeof(int32_t), stream));
    SLIPSTREAM_RETURN_IF_ERROR(
        Launch(MarkRead, NumBlocks(view.num_lookups), kThreads, stream, view));
    SLIPSTREAM_RETURN_IF_ERROR(SumMarks(view, layout.find, stream));
  }
  for (size_t t = 0; t < tables.size(); ++t) {
    SLIPSTREAM_RETURN_IF_ERROR(Launch(EndFind<Index>, 1, 1, stream, layout.views[t], tables[t].ids,
                                      num_slices + t, report));
  }
  return cudaSuccess;
}

template <typename Index>
Error CopySlices(const std::vector<TableStep<Index>>& tables, int64_t table, void* workspace,
                 Index* ids, float* grads, CUstream_st* stream) {
  Layout layout;
  SLIPSTREAM_RETURN_IF_ERROR(Lay(tables, workspace, &layout));
  const View& view = layout.views[table];
  if (view.num_lookups == 0) return cudaSuccess;
  return WithGroup(view, [&](auto group) {
    using Group = decltype(group);
    return Launch(CopyRows<Group, Index>, NumBlocks(view.num_lookups * Group::kLanes), kThreads,
                  stream, view, ids, grads);
  });
}

#define SLIPSTREAM_INSTANTIATE(Index)                                                              \
  template Error Lay(const std::vector<TableStep<Index>>&, void*, Layout*);                        \
  template Error FindRows(const TableStep<Index>&, const View&, const FindMemory&, cudaStream_t);  \
  template Error WorkspaceBytes(const std::vector<TableStep<Index>>&, size_t*);                    \
  template Error FindSlices(const std::vector<TableStep<Index>>&, const int64_t*, void*, int32_t*, \
                            Report*, CUstream_st*);                                                \
  template Error CopySlices(const std::vector<TableStep<Index>>&, int64_t, void*, Index*, float*,  \
                            CUstream_st*);
SLIPSTREAM_INSTANTIATE(int32_t)
SLIPSTREAM_INSTANTIATE(int64_t)
#undef SLIPSTREAM_INSTANTIATE

}  // namespace slipstream::gpu
