// MarkRows: sets or clears bits of `changed_rows` in place.
#include "kernel_context.h"
#include "table_variables.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace slipstream {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

REGISTER_OP("Slipstream>MarkRows")
    .Input("changed_rows: resource")
    .Input("words: T")
    .Attr("T: {int32, uint32}")
    .Attr("clear: bool")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext*) { return absl::OkStatus(); })
    .Doc(R"doc(
Sets bits of a table's `changed_rows`, or clears them, and leaves all others, whatever a training
step does meanwhile.

words: the bits, of the variable's shape.
)doc");

class MarkRowsOp : public OpKernel {
 public:
  explicit MarkRowsOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("clear", &clear_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& words = context->input(1);
    TableVariables variables;
    OP_REQUIRES_OK(context,
                   variables.Add(context, tensorflow::HandleFromInput(context, 0), words.dtype()));
    OP_REQUIRES_OK(context, variables.LockForWriting(context));
    Tensor* changed = variables.tensor(0);
    OP_REQUIRES(
        context, changed->shape() == words.shape(),
        InvalidArgument("`words` must have the shape of `changed_rows`, ",
                        changed->shape().DebugString(), ", got ", words.shape().DebugString()));
    // int32 or uint32: the same bits.
    auto* to = reinterpret_cast<uint32_t*>(const_cast<char*>(changed->tensor_data().data()));
    const auto* bits = reinterpret_cast<const uint32_t*>(words.tensor_data().data());
    for (int64_t i = 0; i < words.NumElements(); ++i) {
      to[i] = clear_ ? to[i] & ~bits[i] : to[i] | bits[i];
    }
  }

 private:
  bool clear_ = false;
};

REGISTER_KERNEL_BUILDER(Name("Slipstream>MarkRows").Device(tensorflow::DEVICE_CPU), MarkRowsOp);

}  // namespace slipstream
