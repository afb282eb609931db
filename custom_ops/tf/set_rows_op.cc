// SetRows: writes rows of a table in place.
#include <cstring>

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

REGISTER_OP("Slipstream>SetRows")
    .Input("table: resource")
    .Input("ids: int64")
    .Input("rows: T")
    .Attr("T: {float, bfloat16}")
    .Attr("table_name: string")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext*) { return absl::OkStatus(); })
    .Doc(R"doc(
Sets rows of a table, which nobody reads by copying all of it afterwards.

ids: [num_rows] in [0, num_rows).
rows: [num_rows, dim].
)doc");

class SetRowsOp : public OpKernel {
 public:
  explicit SetRowsOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("table_name", &table_name_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &ids = context->input(1), &rows = context->input(2);
    TableVariables variables;
    OP_REQUIRES_OK(context,
                   variables.Add(context, tensorflow::HandleFromInput(context, 0), rows.dtype()));
    OP_REQUIRES_OK(context, variables.LockForWriting(context));
    Tensor* table = variables.tensor(0);
    OP_REQUIRES(
        context,
        table->dims() == 2 && ids.dims() == 1 && rows.dims() == 2 &&
            rows.dim_size(0) == ids.dim_size(0) && rows.dim_size(1) == table->dim_size(1),
        InvalidArgument("table '", table_name_, "' ", table->shape().DebugString(), ": got ",
                        ids.shape().DebugString(), " ids and rows ", rows.shape().DebugString()));
    const int64_t num_rows = table->dim_size(0), num = ids.NumElements();
    const int64_t* first = ids.flat<int64_t>().data();
    for (int64_t i = 0; i < num; ++i) {
      OP_REQUIRES(context, 0 <= first[i] && first[i] < num_rows,
                  InvalidArgument("table '", table_name_, "': id ", first[i], " at position ", i,
                                  " is not in [0, ", num_rows, "). No row was changed."));
    }
    const size_t row_bytes = num_rows == 0 ? 0 : table->TotalBytes() / num_rows;
    char* to = const_cast<char*>(table->tensor_data().data());
    const char* from = rows.tensor_data().data();
    for (int64_t i = 0; i < num; ++i) {
      std::memcpy(to + first[i] * row_bytes, from + i * row_bytes, row_bytes);
    }
  }

 private:
  std::string table_name_;
};

REGISTER_KERNEL_BUILDER(Name("Slipstream>SetRows").Device(tensorflow::DEVICE_CPU), SetRowsOp);

}  // namespace slipstream
