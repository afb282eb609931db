#ifndef SLIPSTREAM_KERNELS_GPU_ROWS_CUH_
#define SLIPSTREAM_KERNELS_GPU_ROWS_CUH_

// What the GPU kernels share: a row spread over the lanes of a warp, the workspace, launches.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gpu_step.h"

namespace slipstream::gpu {

// A multiple of every group of lanes; small, so that a kernel with many registers still fills a
// multiprocessor well (at 64 registers a thread, four blocks of 256).
inline constexpr int kThreads = 256;
// Twice the blocks that a multiprocessor holds at once, so that those who are done early find more;
// the rest of the work comes in loops.
inline constexpr int64_t kBlocksPerMultiprocessor = 16;

// A row that a step looked up.
//   sum  its place in the sums; or kOwnGrad, its gradient lies at its first lookup; or kNotRead
struct alignas(16) FoundRow {
  uint32_t id;
  int32_t first_lookup;
  int32_t state;
  int32_t sum;
};
inline constexpr int32_t kOwnGrad = -1, kNotRead = -2;

// The first bad lookup so far. Packed so that the least comes first in (table, lookup).
struct Fault {
  unsigned long long bad_id;     // table, lookup; kNoFault where there is none
  unsigned long long bad_row;    // table, first lookup, whether it is the state
  unsigned long long bad_entry;  // table, entry of the pool
};
inline constexpr unsigned long long kNoFault = ~0ull;

// What a step knows of a table, in device memory.
//   next_policy  the policy's state, which the table gets at the end if nothing is bad
//   rule   the update rule, made for this step
struct TableState {
  StepSettings settings;
  PolicyState next_policy;
  unsigned long long sleeping_change;  // modulo 2^64
  unsigned long long num_stale[4];  // skipped lookups, deferred ones, skipped rows, deferred ones
  int32_t num_found;
  bool is_refresh;
  int32_t num_idle;
  int32_t idle[kIdleWindow];  // entries that others may get
  alignas(16) unsigned char rule[192];
};

// What the kernels need of a table, whatever the type of its ids.
//   rows   [state->num_found], at most num_lookups
//   sums   [num_lookups / 2, dim]
//   marks  [num_lookups]; with places for what is ordered by first lookup
struct View {
  const float* grads;
  int64_t num_lookups;
  Table table;
  Staleness pool;
  TableState* state;
  Fault* fault;
  FoundRow* rows;
  float* sums;
  int32_t* marks;
  int32_t* places;
  int32_t index;
};

// Memory of one table at a time, for finding its rows.
//   keys, positions  [num_lookups]: ids and places in the batch, before and after sorting
//   starts           [num_lookups]: of each row, its first place in the sorted ones
//   partials         [num_lookups / kPieceSize + 1, dim]: sums of pieces
//   partials_2       the same of pieces of these
struct FindMemory {
  uint32_t* keys[2];
  int32_t* positions[2];
  int32_t* starts;
  float* partials;
  float* partials_2;
  void* library;
  size_t library_bytes;
};

// Where everything lies in the workspace, for one call.
struct Layout {
  std::vector<View> views;
  FindMemory find;
  Fault* fault;
  size_t num_bytes;
};

// Defined in live_rows.cu.
template <typename Index>
Error Lay(const std::vector<TableStep<Index>>& tables, void* workspace, Layout* layout);
// Finds the rows of a table whose state has begun; sums their gradients.
template <typename Index>
Error FindRows(const TableStep<Index>& table, const View& view, const FindMemory& memory,
               cudaStream_t stream);
// places[i] = marks[0] + ... + marks[i - 1]
Error SumMarks(const View& view, const FindMemory& memory, cudaStream_t stream);

// Whether the step is to change nothing.
__device__ inline bool IsFaulty(const Fault& fault) {
  return fault.bad_id != kNoFault || fault.bad_row != kNoFault || fault.bad_entry != kNoFault;
}

__device__ inline unsigned long long PackFault(int64_t table, int64_t place, bool is_state) {
  return static_cast<unsigned long long>(table) << 33 |
         static_cast<unsigned long long>(place) << 1 | is_state;
}

// Begins a step with what the table's policy has; one that makes no sense has no entries. One
// thread calls it.
__device__ inline void TakePolicy(const View& view) {
  PolicyState& policy = view.state->next_policy;
  policy = *view.pool.state;
  if (IsWhole(policy, view.pool.capacity)) return;
  atomicMin(&view.fault->bad_entry, PackFault(view.index, 0, false));
  policy = {};
}

// Checks, with all threads of the grid, the entries of a table's pool.
__device__ inline void CheckEntries(const View& view) {
  const int64_t num_entries = static_cast<int64_t>(view.state->next_policy.num_entries);
  const int64_t num_threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; e < num_entries;
       e += num_threads) {
    if (!IsWhole(view.pool, e, view.table.num_rows)) {
      atomicMin(&view.fault->bad_entry, PackFault(view.index, e, false));
    }
  }
}

// Tells `report` of the step's first fault, if it is in this table and the report is free. Returns
// whether it is. One thread calls it.
template <typename Index>
__device__ bool TellFault(const View& view, const Index* ids, Report* report) {
  const bool is_id = view.fault->bad_id != kNoFault;
  const bool is_entry = !is_id && view.fault->bad_entry != kNoFault;
  const unsigned long long packed = is_id      ? view.fault->bad_id
                                    : is_entry ? view.fault->bad_entry
                                               : view.fault->bad_row;
  if (packed == kNoFault || static_cast<int64_t>(packed >> 33) != view.index) return false;
  volatile Report* to = report;
  if (to->kind != BadLookup::kNone) return true;
  const int64_t place = static_cast<int64_t>(packed >> 1 & 0xffffffffull);
  to->table = view.index;
  to->lookup = is_entry ? 0 : place;
  to->id = is_entry ? place : ids[place];
  __threadfence_system();  // the host sees `kind` last
  to->kind = is_id        ? BadLookup::kId
             : is_entry   ? BadLookup::kEntry
             : packed & 1 ? BadLookup::kState
                          : BadLookup::kGradient;
  return true;
}

// kLanes lanes of a warp that work on one row together. Lane i has the elements
// [i kVector, (i + 1) kVector) of every kWidth.
template <int kVector_, int kLanes_>
struct Group {
  static constexpr int kVector = kVector_, kLanes = kLanes_;
  static constexpr int kWidth = kVector * kLanes;
  static_assert(kWidth % kSumLanes == 0 && kSumLanes % kVector == 0, "for RowSum");
  static_assert(32 % kLanes == 0, "in one warp");

  Group() = default;
  // The group of this thread.
  __device__ static Group Own() {
    Group group;
    group.lane = threadIdx.x % kLanes;
    group.mask =
        kLanes == 32 ? ~0u : ((1u << (kLanes % 32)) - 1) << (threadIdx.x % 32 - group.lane);
    return group;
  }
  __device__ void Sync() const { __syncwarp(mask); }

  // The groups of the whole grid.
  __device__ static int64_t Index() {
    return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kLanes;
  }
  __device__ static int64_t Number() {
    return static_cast<int64_t>(gridDim.x) * blockDim.x / kLanes;
  }

  // visit(d, is_inside) for every kWidth: d is this lane's first element, inside the row or not.
  // All lanes come to each visit.
  template <typename Visit>
  __device__ void ForEach(int64_t dim, Visit visit) const {
    for (int64_t first = 0; first < dim; first += kWidth) {
      const int64_t d = first + lane * kVector;
      visit(d, d < dim);
    }
  }

  unsigned lane;
  unsigned mask;
};

// kVector floats, in registers once loops are unrolled; with four, `from` is 16-byte aligned.
template <int kVector>
__device__ inline void Load(const float* from, float (&values)[kVector]) {
  if constexpr (kVector == 4) {
    const float4 loaded = *reinterpret_cast<const float4*>(from);
    values[0] = loaded.x, values[1] = loaded.y, values[2] = loaded.z, values[3] = loaded.w;
  } else {
    for (int j = 0; j < kVector; ++j) values[j] = from[j];
  }
}

template <int kVector>
__device__ inline void Store(float* to, const float (&values)[kVector]) {
  if constexpr (kVector == 4) {
    *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
  } else {
    for (int j = 0; j < kVector; ++j) to[j] = values[j];
  }
}

// LaneSum of a row that is spread over a group, with the same additions in the same order.
template <typename Group>
class RowSum {
 public:
  // Adds kWidth terms, those of one visit; 0 outside of the row. All lanes call it.
  __device__ void Add(const Group& group, const float (&terms)[Group::kVector]) {
    constexpr int kLanesPerRound = kSumLanes / Group::kVector;
    for (int round = 0; round < Group::kWidth / kSumLanes; ++round) {
      for (int j = 0; j < Group::kVector; ++j) {
        lanes_[j] +=
            __shfl_sync(group.mask, terms[j], round * kLanesPerRound + group.lane % kLanesPerRound,
                        Group::kLanes);
      }
    }
  }
  // The sum, the same in all lanes, which all call it.
  __device__ float Total(const Group& group) {
    for (int width = kSumLanes / 2; width >= Group::kVector; width /= 2) {
      for (int j = 0; j < Group::kVector; ++j) {
        lanes_[j] += __shfl_down_sync(group.mask, lanes_[j], width / Group::kVector, Group::kLanes);
      }
    }
    for (int width = Group::kVector / 2; width > 0; width /= 2) {
      for (int j = 0; j < width; ++j) lanes_[j] += lanes_[j + width];
    }
    return __shfl_sync(group.mask, lanes_[0], 0, Group::kLanes);
  }

 private:
  float lanes_[Group::kVector] = {};
};

// Enough blocks for as many threads, or for a full device.
inline int64_t NumBlocks(int64_t num_threads) {
  int device = 0, num_multiprocessors = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&num_multiprocessors, cudaDevAttrMultiProcessorCount, device) !=
          cudaSuccess) {
    num_multiprocessors = 1;  // the launch will report what is wrong
  }
  const int64_t num_blocks = (num_threads + kThreads - 1) / kThreads;
  return std::max<int64_t>(1, std::min(num_blocks, kBlocksPerMultiprocessor * num_multiprocessors));
}

// Launches a kernel of a one-dimensional grid; returns the launch's error.
template <typename... Parameters, typename... Arguments>
Error Launch(void (*kernel)(Parameters...), int64_t num_blocks, int num_threads,
             cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(num_blocks));
  config.blockDim = dim3(static_cast<unsigned>(num_threads));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// Whether rows can be read and written four floats at a time.
inline bool IsAligned(const View& view) {
  uintptr_t bits = reinterpret_cast<uintptr_t>(view.grads) |
                   reinterpret_cast<uintptr_t>(view.table.table) |
                   reinterpret_cast<uintptr_t>(view.table.bfloat16_table);
  for (int s = 0; s < view.table.num_slots && view.table.slot_dim > 1; ++s) {
    bits |= reinterpret_cast<uintptr_t>(view.table.slots[s]);
  }
  return view.table.dim % 4 == 0 && bits % 16 == 0;
}

// Calls call(group) with the Group for the table's rows: one or more to a warp, and no more lanes
// than a row has vectors, where that can be.
template <typename Call>
Error WithGroup(const View& view, Call call) {
  if (!IsAligned(view)) return call(Group<1, 16>());
  if (view.table.dim <= 32) return call(Group<4, 8>());
  if (view.table.dim <= 64) return call(Group<4, 16>());
  return call(Group<4, 32>());
}

#define SLIPSTREAM_RETURN_IF_ERROR(call)                          \
  do {                                                            \
    const ::slipstream::gpu::Error slipstream_error = (call);     \
    if (slipstream_error != cudaSuccess) return slipstream_error; \
  } while (false)

}  // namespace slipstream::gpu

#endif  // SLIPSTREAM_KERNELS_GPU_ROWS_CUH_
