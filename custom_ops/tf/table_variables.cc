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
                                 tensorflow::DataType dtype, tensorflow::DataType other) {
  tensorflow::OpInputList handles;
  TF_RETURN_IF_ERROR(context->input_list(input, &handles));
  for (int i = 0; i < handles.size(); ++i) {
    TF_RETURN_IF_ERROR(
        Add(context, handles[i].scalar<tensorflow::ResourceHandle>()(), dtype, other));
  }
  return absl::OkStatus();
}

absl::Status TableVariables::Add(OpKernelContext* context, const tensorflow::ResourceHandle& handle,
                                 tensorflow::DataType dtype, tensorflow::DataType other) {
  tensorflow::core::RefCountPtr<Var> variable;
  TF_RETURN_IF_ERROR(tensorflow::LookupResource(context, handle, &variable));
  const tensorflow::DataType found = variable->tensor()->dtype();
  if (found != dtype && (found != other || other == tensorflow::DT_INVALID)) {
    return InvalidArgument("variable '", handle.name(), "': expected ",
                           tensorflow::DataTypeString(dtype), ", got ",
                           tensorflow::DataTypeString(found));
  }
  variables_.push_back(std::move(variable));
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

absl::Status TableVariables::LockForWriting(OpKernelContext* context, const Copy& copy_tensor) {
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
    if (copy_tensor != nullptr) {
      TF_RETURN_IF_ERROR(copy_tensor(*tensor, &copy));
    } else {
      const auto from = tensor->tensor_data();
      std::memcpy(const_cast<char*>(copy.tensor_data().data()), from.data(), from.size());
    }
    *tensor = copy;
  }
  return absl::OkStatus();
}

}  // namespace slipstream
