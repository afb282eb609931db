#include "kernel_context.h"

#include <functional>
#include <limits>
#include <utility>

#include "tensorflow/core/platform/threadpool.h"

namespace slipstream {

using tensorflow::OpInputList;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

ThreadTeam IntraOpTeam(OpKernelContext* context) {
  tensorflow::thread::ThreadPool* pool =
      context->device()->tensorflow_cpu_worker_threads()->workers;
  return ThreadTeam(pool->NumThreads(),
                    [pool](std::function<void()> help) { pool->Schedule(std::move(help)); });
}

std::unique_ptr<LiveRows> LiveRowsPool::Take() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (free_.empty()) return std::make_unique<LiveRows>();
  std::unique_ptr<LiveRows> live_rows = std::move(free_.back());
  free_.pop_back();
  return live_rows;
}

void LiveRowsPool::Return(std::unique_ptr<LiveRows> live_rows, int64_t num_lookups) {
  constexpr int64_t kMaxKeptLookups = int64_t{1} << 22;
  if (num_lookups > kMaxKeptLookups) return;
  std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(std::move(live_rows));
}

template <typename Index>
absl::Status ReadLookups(OpKernelContext* context, const std::vector<std::string>& table_names,
                         const std::vector<int64_t>& num_rows, const std::vector<int64_t>& dims,
                         const std::vector<RowStates>& states, std::vector<Lookups<Index>>* lookups,
                         const OpInputList& bags) {
  OpInputList indices, grads;
  TF_RETURN_IF_ERROR(context->input_list("indices", &indices));
  TF_RETURN_IF_ERROR(context->input_list("grads", &grads));
  for (int t = 0; t < indices.size(); ++t) {
    const Tensor& ids = indices[t];
    const Tensor& rows = grads[t];
    // Without a lookup there is nothing to tell bags from none, and nothing to do.
    const bool has_bags = bags.size() > 0 && (bags[t].NumElements() > 0 || ids.NumElements() == 0);
    if (has_bags && bags[t].NumElements() != ids.NumElements()) {
      return InvalidArgument("table '", table_names[t], "': expected a bag for each of ",
                             ids.NumElements(), " indices, got ", bags[t].NumElements());
    }
    if (dims[t] < 1 || ids.dims() != 1 || rows.dims() != 2 ||
        (!has_bags && rows.dim_size(0) != ids.dim_size(0)) || rows.dim_size(1) != dims[t]) {
      return InvalidArgument("table '", table_names[t],
                             "': expected indices [num_lookups] and gradient rows ",
                             "[num_lookups, ", dims[t], "], got ", ids.shape().DebugString(),
                             " and ", rows.shape().DebugString());
    }
    if (ids.dim_size(0) > std::numeric_limits<int32_t>::max()) {
      return InvalidArgument("table '", table_names[t], "': ", ids.dim_size(0),
                             " lookups in one step; at most 2^31 - 1 are possible");
    }
    lookups->push_back({ids.flat<Index>().data(), rows.flat<float>().data(), states[t],
                        ids.dim_size(0), num_rows[t], dims[t]});
    if (has_bags) {
      lookups->back().bags = bags[t].flat<int32_t>().data();
      lookups->back().num_grads = rows.dim_size(0);
    }
  }
  return absl::OkStatus();
}

template absl::Status ReadLookups(OpKernelContext*, const std::vector<std::string>&,
                                  const std::vector<int64_t>&, const std::vector<int64_t>&,
                                  const std::vector<RowStates>&, std::vector<Lookups<int32_t>>*,
                                  const OpInputList&);
template absl::Status ReadLookups(OpKernelContext*, const std::vector<std::string>&,
                                  const std::vector<int64_t>&, const std::vector<int64_t>&,
                                  const std::vector<RowStates>&, std::vector<Lookups<int64_t>>*,
                                  const OpInputList&);

absl::Status BadEntryError(int64_t entry, const std::string& table_name) {
  return InvalidArgument("table '", table_name, "': entry ", entry,
                         " of the optimizer's pool makes no sense; ", kNotRestoredWhole);
}

absl::Status BadLookupError(const BadLookup& bad, const std::string& table_name, int64_t num_rows) {
  if (bad.kind == BadLookup::kId) {
    return InvalidArgument("table '", table_name, "': id ", bad.id, " at position ", bad.lookup,
                           " is not in [0, ", num_rows, "). No row was changed.");
  }
  if (bad.kind == BadLookup::kBag) {
    return InvalidArgument("table '", table_name, "': bag ", bad.id, " at position ", bad.lookup,
                           " has no gradient. No row was changed.");
  }
  if (bad.kind == BadLookup::kEntry) return BadEntryError(bad.id, table_name);
  if (bad.kind == BadLookup::kState) {
    return InvalidArgument("table '", table_name, "': the optimizer's state of row ", bad.id,
                           " makes no sense; ", kNotRestoredWhole);
  }
  return InvalidArgument(
      "table '", table_name, "': the gradient of row ", bad.id, " (first looked up at position ",
      bad.lookup,
      ") is NaN or infinite. No row was changed. Look at the loss and the inputs of this batch, "
      "lower the learning rate, clip gradients, or train float16 under a LossScaleOptimizer.");
}

}  // namespace slipstream
