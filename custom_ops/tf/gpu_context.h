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

// Where kernels report what is bad in tables, see gpu::Report: one report for each list of tables
// on a device, whatever op works on them. A function that was traced anew has another op, which
// must tell what the one before it found. Kept as long as the process.
//   tables  what tells these tables from others
absl::Status FindReport(tensorflow::OpKernelContext* context, const std::string& tables,
                        gpu::Report** report);

// The names of the resources of the input "tables", no two of which are alike in a process.
absl::Status TableResources(tensorflow::OpKernelContext* context, std::string* names);

// The error of a step before this one, which changed nothing, if there is one; nor may this one.
absl::Status TakeEarlierError(gpu::Report* report, const std::vector<std::string>& table_names,
                              const std::vector<int64_t>& num_rows);

// How all kernels that have TableArgs get at the variables: handles lie in host memory.
#define SLIPSTREAM_TABLES_ON_GPU         \
  SLIPSTREAM_ON_GPU.HostMemory("tables") \
      .HostMemory("slots")               \
      .HostMemory("last_steps")          \
      .HostMemory("changed_rows")        \
      .HostMemory("counters")            \
      .SLIPSTREAM_POOLS_ON_GPU
#define SLIPSTREAM_POOLS_ON_GPU  \
  HostMemory("row_states")       \
      .HostMemory("pool_ints")   \
      .HostMemory("pool_floats") \
      .HostMemory("policy_states")

}  // namespace slipstream

#endif  // SLIPSTREAM_TF_GPU_CONTEXT_H_
