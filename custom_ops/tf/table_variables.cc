#include "table_variables.h"

#include <algorithm>
#include <cstring>

#include "kernel_context.h"
#include "tensorflow/core/framework/resource_mgr.h"

namespace slipstream {

using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::Var;

TableVariables::~TableVariables() {
  for (tensorflow::mutex* mutex : read_locked_) mutex->unlock_shared();
  for (tensorflow::mutex* mutex : write_locked_) mutex->unlock();
}

absl::Status TableVariables::Add(OpKernelContext* context, const char* input,
                                 tensorflow::DataType dtype) {
  tensorflow::OpInputList handles;
  TF_RETURN_IF_ERROR(context->input_list(input, &handles));
  for (int i = 0; i < handles.size(); ++i) {
    const tensorflow::ResourceHandle& handle = handles[i].scalar<tensorflow::ResourceHandle>()();
    tensorflow::core::RefCountPtr<Var> variable;
    TF_RETURN_IF_ERROR(tensorflow::LookupResource(context, handle, &variable));
    if (variable->tensor()->dtype() != dtype) {
      return InvalidArgument(input, "[", i, "] (variable '", handle.name(), "'): expected ",
                             tensorflow::DataTypeString(dtype), ", got ",
                             tensorflow::DataTypeString(variable->tensor()->dtype()));
    }
    variables_.push_back(std::move(variable));
  }
  return absl::OkStatus();
}

std::vector<tensorflow::mutex*> TableVariables::SortedMutexes() const {
  std::vector<tensorflow::mutex*> mutexes;
  for (const auto& variable : variables_) mutexes.push_back(variable->mu());
  std::sort(mutexes.begin(), mutexes.end());
  mutexes.erase(std::unique(mutexes.begin(), mutexes.end()), mutexes.end());
  return mutexes;
}

void TableVariables::LockForReading() {
  read_locked_ = SortedMutexes();
  for (tensorflow::mutex* mutex : read_locked_) mutex->lock_shared();
}

absl::Status TableVariables::LockForWriting(OpKernelContext* context) {
  write_locked_ = SortedMutexes();
  for (tensorflow::mutex* mutex : write_locked_) mutex->lock();
  if (write_locked_.size() != variables_.size()) {
    return InvalidArgument(
        "a variable was given twice; each table and slot must be its own variable");
  }
  for (const auto& variable : variables_) {
    Tensor* tensor = variable->tensor();
    if (!variable->is_initialized) {
      return absl::FailedPreconditionError(
          absl::StrCat("variable '", variable->DebugString(), "' is not initialized"));
    }
    // In copy-on-read mode nobody else ever holds the buffer.
    if (variable->copy_on_read_mode.load() || tensor->RefCountIsOne()) continue;
    Tensor copy;
    TF_RETURN_IF_ERROR(context->allocate_temp(tensor->dtype(), tensor->shape(), &copy));
    const auto from = tensor->tensor_data();
    std::memcpy(const_cast<char*>(copy.tensor_data().data()), from.data(), from.size());
    *tensor = copy;
  }
  return absl::OkStatus();
}

absl::Status TableVariables::WakeSteps(int64_t i, int64_t num_rows, const int32_t** wake_steps) {
  const Tensor& steps = *tensor(i);
  *wake_steps = nullptr;
  if (steps.NumElements() == 0) return absl::OkStatus();
  if (steps.dims() != 1 || steps.dim_size(0) != num_rows) {
    return InvalidArgument("wake steps: expected [0] or [", num_rows, "], got ",
                           steps.shape().DebugString());
  }
  *wake_steps = steps.flat<int32_t>().data();
  return absl::OkStatus();
}

}  // namespace slipstream
