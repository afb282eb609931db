#ifndef SLIPSTREAM_TF_TABLE_VARIABLES_H_
#define SLIPSTREAM_TF_TABLE_VARIABLES_H_

#include <functional>
#include <string>
#include <vector>

#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/platform/refcount.h"

namespace slipstream {

// The resource variables that an op works on: looked up, checked, locked together, unlocked when
// this object goes.
//
// TensorFlow's own helper for sparse updates is not used: it turns a variable to copy-on-read, and
// each later dense read (a save, say) then copies the whole table.
class TableVariables {
 public:
  TableVariables() = default;
  ~TableVariables();
  TableVariables(const TableVariables&) = delete;
  TableVariables& operator=(const TableVariables&) = delete;

  // Adds the variables of the input list `input`; each must hold `dtype`, or `other`. Not while
  // locked.
  absl::Status Add(tensorflow::OpKernelContext* context, const char* input,
                   tensorflow::DataType dtype, tensorflow::DataType other = tensorflow::DT_INVALID);

  // Adds one variable.
  absl::Status Add(tensorflow::OpKernelContext* context, const tensorflow::ResourceHandle& handle,
                   tensorflow::DataType dtype, tensorflow::DataType other = tensorflow::DT_INVALID);

  // Locks all of them, in the order of their mutexes' addresses so that no two ops wait for each
  // other.
  void LockForReading();
  // The same, alone; and makes each writable in place. A buffer that somebody else still holds (a
  // dense read that is not done with it) is copied first, as TensorFlow's own assignments do.
  // `copy` does so for a tensor that is not in host memory.
  using Copy = std::function<absl::Status(const tensorflow::Tensor& from, tensorflow::Tensor* to)>;
  absl::Status LockForWriting(tensorflow::OpKernelContext* context, const Copy& copy = nullptr);

  // The i-th variable added, while locked.
  tensorflow::Tensor* tensor(int64_t i) { return variables_[i]->tensor(); }

 private:
  std::vector<tensorflow::mutex*> SortedMutexes() const;

  std::vector<tensorflow::core::RefCountPtr<tensorflow::Var>> variables_;
  std::vector<tensorflow::mutex*> read_locked_;
  std::vector<tensorflow::mutex*> write_locked_;
};

}  // namespace slipstream

#endif  // SLIPSTREAM_TF_TABLE_VARIABLES_H_
