// MarkRows on a GPU.
#include "../kernels/gpu_step.h"
#include "gpu_context.h"
#include "kernel_context.h"
#include "table_variables.h"
#include "tensorflow/core/framework/resource_mgr.h"

namespace slipstream {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

class MarkRowsGpuOp : public OpKernel {
 public:
  explicit MarkRowsGpuOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("clear", &clear_));
  }

  // The lock guards the buffer; the stream puts the kernel between those of two steps.
  void Compute(OpKernelContext* context) override {
    const Tensor& words = context->input(1);
    CUstream_st* stream = StreamOf(context);
    const auto copy = [stream](const Tensor& from, Tensor* to) {
      return GpuStatus(gpu::CopyBytes(const_cast<char*>(to->tensor_data().data()),
                                      from.tensor_data().data(), from.TotalBytes(), stream),
                       "copying a variable");
    };
    TableVariables variables;
    OP_REQUIRES_OK(context,
                   variables.Add(context, tensorflow::HandleFromInput(context, 0), words.dtype()));
    OP_REQUIRES_OK(context, variables.LockForWriting(context, copy));
    Tensor* changed = variables.tensor(0);
    OP_REQUIRES(
        context, changed->shape() == words.shape(),
        InvalidArgument("`words` must have the shape of `changed_rows`, ",
                        changed->shape().DebugString(), ", got ", words.shape().DebugString()));
    OP_REQUIRES_OK(
        context,
        GpuStatus(gpu::MarkRows(
                      reinterpret_cast<const uint32_t*>(words.tensor_data().data()),
                      words.NumElements(), clear_,
                      reinterpret_cast<uint32_t*>(const_cast<char*>(changed->tensor_data().data())),
                      stream),
                  "MarkRows"));
  }

 private:
  bool clear_ = false;
};

REGISTER_KERNEL_BUILDER(Name("Slipstream>MarkRows")
                            .SLIPSTREAM_ON_GPU.HostMemory("changed_rows")
                            .TypeConstraint<uint32_t>("T"),
                        MarkRowsGpuOp);

}  // namespace slipstream
