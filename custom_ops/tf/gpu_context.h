#ifndef SLIPSTREAM_TF_GPU_CONTEXT_H_
#define SLIPSTREAM_TF_GPU_CONTEXT_H_

#include <mutex>
#include <string>
#include <vector>

#include "../kernels/gpu_step.h"
#include "absl/status/status.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/tensor.h"

namespace slipstream {

// The stream that the op's device works on.
CUstream_st* StreamOf(tensorflow::OpKernelContext* context);

// CUDA's error as a Status; `what` failed.
absl::Status GpuStatus(gpu::Error error, const char* what);

// Memory of the device for the time of an op and what it enqueued: TensorFlow gives it to others
// only behind that on the same stream.
absl::Status AllocateWorkspace(tensorflow::OpKernelContext* context, size_t num_bytes,
                               tensorflow::Tensor* workspace);

// Where an op's kernels report what is bad, see gpu::Report. Kept as long as the process: a step
// may be under way when its op goes.
class OwnReport {
 public:
  absl::Status Get(gpu::Report** report);

 private:
  std::mutex mutex_;  // guards report_
  gpu::Report* report_ = nullptr;
};

// Row states and pool of a table, of which the shapes alone are checked.
absl::Status ReadPool(const tensorflow::Tensor& row_states, const tensorflow::Tensor& ints,
                      const tensorflow::Tensor& floats, const tensorflow::Tensor& state,
                      int64_t num_rows, int64_t dim, gpu::Pool* pool);

}  // namespace slipstream

#endif  // SLIPSTREAM_TF_GPU_CONTEXT_H_
