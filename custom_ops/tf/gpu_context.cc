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

absl::Status FindReport(OpKernelContext* context, const std::string& tables, gpu::Report** report) {
  static std::mutex mutex;  // guards reports
  static auto* reports = new std::map<std::string, gpu::Report*>;
  const std::string key = absl::StrCat(context->device()->name(), tables);
  std::lock_guard<std::mutex> lock(mutex);
  gpu::Report*& found = (*reports)[key];
  if (found == nullptr) {
    TF_RETURN_IF_ERROR(GpuStatus(gpu::AllocateReport(&found), "memory for reports"));
  }
  *report = found;
  return absl::OkStatus();
}

absl::Status TableResources(OpKernelContext* context, std::string* names) {
  tensorflow::OpInputList handles;
  TF_RETURN_IF_ERROR(context->input_list("tables", &handles));
  for (const Tensor& handle : handles) {
    const auto& resource = handle.scalar<tensorflow::ResourceHandle>()();
    absl::StrAppend(names, "\n", resource.container(), "/", resource.name());
  }
  return absl::OkStatus();
}

absl::Status TakeEarlierError(gpu::Report* report, const std::vector<std::string>& table_names,
                              const std::vector<int64_t>& num_rows) {
  const BadLookup bad = gpu::TakeReport(report);
  if (bad.kind == BadLookup::kNone) return absl::OkStatus();
  const absl::Status error = BadLookupError(bad, table_names[bad.table], num_rows[bad.table]);
  return InvalidArgument("In an earlier step, seen on the GPU: ", error.message());
}

}  // namespace slipstream
