// NoteLookup: rows as they are, with a gradient that Python defines once (ops/row_cache.py).
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace slipstream {

using tensorflow::OpKernel;
using tensorflow::OpKernelContext;

REGISTER_OP("Slipstream>NoteLookup")
    .Input("rows: float")
    .Input("parts: num_parts * float")
    .Input("inverse: int32")
    .Input("ids: int64")
    .Input("num_lookups: int32")
    .Input("order: int32")
    .Output("same_rows: float")
    .Attr("num_parts: int >= 1")
    .Attr("table: int")
    .Attr("graph: int")
    .SetShapeFn(tensorflow::shape_inference::UnchangedShape)
    .Doc(R"doc(
Gives the rows of a lookup out, and their gradient to whoever is known as `table`.

rows: [num_lookups, dim], made of the parts.
parts: Of RowCacheFind and PullRows; they get the gradient, too.
inverse: [num_lookups], each lookup's place among the parts' rows.
ids, num_lookups, order: As RowCacheFind has them; for the gradient alone.
table: A number of the process that traces.
graph: Another, of the function that is traced.
)doc");

class NoteLookupOp : public OpKernel {
 public:
  using OpKernel::OpKernel;
  void Compute(OpKernelContext* context) override { context->set_output(0, context->input(0)); }
};

REGISTER_KERNEL_BUILDER(Name("Slipstream>NoteLookup").Device(tensorflow::DEVICE_CPU), NoteLookupOp);

}  // namespace slipstream
