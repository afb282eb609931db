#ifndef SLIPSTREAM_TF_GPU_CONTEXT_H_
#define SLIPSTREAM_TF_GPU_CONTEXT_H_

#include <string>
#include <vector>

#include "../kernels/gpu_step.h"
#include "absl/status/status.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/tensor.h"

// Where the GPU's kernels are registered; a test has them run on emulated CUDA, on another device.
#ifndef SLIPSTREAM_ON_GPU
#define SLIPSTREAM_ON_GPU Device(tensorflow::DEVICE_GPU)
#endif

namespace slipstream {

// The stream that the op's device works on; null where it has none.
CUstream_st* StreamOf(tensorflow::OpKernelContext* context);

// CUDA's error as a Status; `what` failed.
absl::Status GpuStatus(gpu::Error error, const char* what);

// Memory of the device for the time of an op and what it enqueued: TensorFlow gives it to others
// only behind that on the same stream.
absl::Status AllocateWorkspace(tensorflow::OpKernelContext* context, size_t num_bytes,
                               tensorflow::Tensor* workspace);

// Where an op's kernels report what is bad in these tables, see gpu::Report. The same for each op
// of that name on the device with these tables: a function that was traced anew has another op,
// which must tell what the one before it found. Kept as long as the process.
absl::Status FindReport(tensorflow::OpKernelContext* context,
                        const std::vector<std::string>& table_names, gpu::Report** report);

// Row states and pool of a table, of which the shapes alone are checked.
absl::Status ReadPool(const tensorflow::Tensor& row_states, const tensorflow::Tensor& ints,
                      const tensorflow::Tensor& floats, const tensorflow::Tensor& state,
                      int64_t num_rows, int64_t dim, gpu::Pool* pool);

}  // namespace slipstream

#endif  // SLIPSTREAM_TF_GPU_CONTEXT_H_
