#include "gpu_context.h"

#include <map>
#include <mutex>

#include "kernel_context.h"
#include "xla/stream_executor/stream.h"

namespace slipstream {

using tensorflow::OpKernelContext;
using tensorflow::Tensor;

CUstream_st* StreamOf(OpKernelContext* context) {
  tensorflow::DeviceContext* device = context->op_device_context();
  if (device == nullptr || device->stream() == nullptr) return nullptr;
  return static_cast<CUstream_st*>(device->stream()->platform_specific_handle().stream);
}

absl::Status GpuStatus(gpu::Error error, const char* what) {
  if (error == 0) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(what, ": CUDA error ", error, ", ", gpu::ErrorName(error)));
}

absl::Status AllocateWorkspace(OpKernelContext* context, size_t num_bytes, Tensor* workspace) {
  return context->allocate_temp(
      tensorflow::DT_UINT8, tensorflow::TensorShape({static_cast<int64_t>(num_bytes)}), workspace);
}

absl::Status FindReport(OpKernelContext* context, const std::vector<std::string>& table_names,
                        gpu::Report** report) {
  static std::mutex mutex;  // guards reports
  static auto* reports = new std::map<std::string, gpu::Report*>;
  std::string key =
      absl::StrCat(context->op_kernel().type_string(), " ", context->device()->name());
  for (const std::string& name : table_names) absl::StrAppend(&key, "\n", name);
  std::lock_guard<std::mutex> lock(mutex);
  gpu::Report*& found = (*reports)[key];
  if (found == nullptr) {
    TF_RETURN_IF_ERROR(GpuStatus(gpu::AllocateReport(&found), "memory for reports"));
  }
  *report = found;
  return absl::OkStatus();
}

namespace {

template <typename To, typename From>
To* Data(const Tensor& tensor) {
  return reinterpret_cast<To*>(const_cast<From*>(tensor.flat<From>().data()));
}

}  // namespace

absl::Status ReadPool(const Tensor& row_states, const Tensor& ints, const Tensor& floats,
                      const Tensor& state, int64_t num_rows, int64_t dim, gpu::Pool* pool) {
  constexpr int64_t kInts = sizeof(PoolEntry) / sizeof(int64_t);
  constexpr int64_t kStates = sizeof(PolicyState) / sizeof(double);
  const int64_t capacity = ints.dims() == 2 ? ints.dim_size(0) : -1;
  if (row_states.NumElements() != num_rows || capacity < 0 || ints.dim_size(1) != kInts ||
      floats.NumElements() != capacity * (2 * dim + 1) || state.NumElements() != kStates) {
    return InvalidArgument("the row states and pool of a table [", num_rows, ", ", dim,
                           "] have shapes ", row_states.shape().DebugString(), ", ",
                           ints.shape().DebugString(), ", ", floats.shape().DebugString(), " and ",
                           state.shape().DebugString());
  }
  pool->row_states = Data<int32_t, uint32_t>(row_states);
  pool->entries = Data<PoolEntry, int64_t>(ints);
  pool->floats = Data<float, float>(floats);
  pool->state = Data<PolicyState, double>(state);
  pool->capacity = capacity;
  return absl::OkStatus();
}

}  // namespace slipstream
