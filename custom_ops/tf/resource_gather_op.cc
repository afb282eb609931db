// A faster kernel of TensorFlow's own ResourceGather, the lookup of a table in host memory.
//
// An op of ours would be in every exported graph, and TF Serving does not know it. A second kernel
// of the stock op is not: a graph names its ops alone, and where this library is not loaded
// TensorFlow runs its own kernel, to the same result. It is chosen here for its priority, and for
// every lookup of this process: it does all that the stock kernel does.
#include <cstdint>

#include "../kernels/gather_rows.h"
#include "kernel_context.h"
#include "table_variables.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/register_types.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/util/util.h"

namespace slipstream {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

template <typename T, typename Index>
class ResourceGatherOp : public OpKernel {
 public:
  explicit ResourceGatherOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("batch_dims", &batch_dims_));
  }

  void Compute(OpKernelContext* context) override {
    TableVariables variables;
    OP_REQUIRES_OK(context, variables.Add(context, tensorflow::HandleFromInput(context, 0),
                                          tensorflow::DataTypeToEnum<T>::value));
    // Held to the end: a writer then finds nobody else at the buffer, and writes in place.
    variables.LockForReading();
    const Tensor& table = *variables.tensor(0);
    const Tensor& indices = context->input(1);
    OP_REQUIRES(context,
                0 <= batch_dims_ && batch_dims_ < table.dims() && batch_dims_ <= indices.dims(),
                InvalidArgument("batch_dims is ", batch_dims_, ", which params ",
                                table.shape().DebugString(), " and indices ",
                                indices.shape().DebugString(), " do not have"));
    TensorShape shape = indices.shape();
    int64_t num_batches = 1, row_bytes = sizeof(T);
    for (int d = 0; d < batch_dims_; ++d) {
      OP_REQUIRES(context, table.dim_size(d) == indices.dim_size(d),
                  InvalidArgument("params ", table.shape().DebugString(), " and indices ",
                                  indices.shape().DebugString(), " differ in their first ",
                                  batch_dims_, " (batch_dims) dimensions"));
      num_batches *= table.dim_size(d);
    }
    for (int d = batch_dims_ + 1; d < table.dims(); ++d) {
      OP_REQUIRES_OK(context, shape.AddDimWithStatus(table.dim_size(d)));
      row_bytes *= table.dim_size(d);
    }
    Tensor* rows;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &rows));
    if (indices.NumElements() == 0) return;
    const int64_t num_rows = table.dim_size(batch_dims_);
    const int64_t num = indices.NumElements() / num_batches;
    const Index* ids = indices.flat<Index>().data();
    const char* from = table.tensor_data().data();
    char* to = const_cast<char*>(rows->tensor_data().data());
    // Waking a thread takes as long as copying these.
    constexpr int64_t kBytesOfOneThread = int64_t{1} << 19;
    ThreadTeam team = IntraOpTeam(context);
    ParallelFor parallel_for = team.parallel_for();
    if (num * row_bytes <= kBytesOfOneThread) parallel_for = InOrder;
    for (int64_t batch = 0; batch < num_batches; ++batch) {
      const int64_t bad =
          GatherRows(from + batch * num_rows * row_bytes, num_rows, row_bytes, ids + batch * num,
                     num, to + batch * num * row_bytes, parallel_for);
      OP_REQUIRES(context, bad < 0,
                  InvalidArgument("indices",
                                  tensorflow::SliceDebugString(indices.shape(), batch * num + bad),
                                  " = ", ids[batch * num + bad], " is not in [0, ", num_rows, ")"));
    }
  }

 private:
  static void InOrder(int64_t num_tasks, const std::function<void(int64_t)>& task) {
    for (int64_t i = 0; i < num_tasks; ++i) task(i);
  }

  int32_t batch_dims_ = 0;
};

#define SLIPSTREAM_REGISTER_GATHER(T, Index)                     \
  REGISTER_KERNEL_BUILDER(Name("ResourceGather")                 \
                              .Device(tensorflow::DEVICE_CPU)    \
                              .HostMemory("resource")            \
                              .TypeConstraint<T>("dtype")        \
                              .TypeConstraint<Index>("Tindices") \
                              .Priority(1),                      \
                          ResourceGatherOp<T, Index>)
SLIPSTREAM_REGISTER_GATHER(float, int32_t);
SLIPSTREAM_REGISTER_GATHER(float, int64_t);
SLIPSTREAM_REGISTER_GATHER(tensorflow::bfloat16, int32_t);
SLIPSTREAM_REGISTER_GATHER(tensorflow::bfloat16, int64_t);
#undef SLIPSTREAM_REGISTER_GATHER

}  // namespace slipstream
