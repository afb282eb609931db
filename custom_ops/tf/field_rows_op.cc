// FieldRows: rows of a collection's table of the ids of its fields, in one pass.
#include <cstdint>
#include <string>
#include <vector>

#include "../kernels/field_rows.h"
#include "kernel_context.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace slipstream {

using tensorflow::OpInputList;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

REGISTER_OP("Slipstream>FieldRows")
    .Input("ids: num_tensors * Tids")
    .Output("rows: Trows")
    .Attr("num_tensors: int >= 1")
    .Attr("axis: int >= -1")
    .Attr("starts: list(int) >= 1")
    .Attr("sizes: list(int) >= 1")
    .Attr("names: list(string) >= 1")
    .Attr("user: string")
    .Attr("Tids: {int32, int64}")
    .Attr("Trows: {int32, int64}")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* context) {
      int64_t axis;
      TF_RETURN_IF_ERROR(context->GetAttr("axis", &axis));
      context->set_output(0, axis < 0 ? context->Vector(context->UnknownDim()) : context->input(0));
      return absl::OkStatus();
    })
    .Doc(R"doc(
Turns ids of fields into rows of the one table that has the fields one after the other.

ids: One tensor whose `axis` is that of the fields; or, where axis is -1, one of any shape per field.
rows: Of the shape of ids; or, where axis is -1, [num_lookups], those of the first field first.
axis: That of the fields, or -1.
starts: Each field's first row.
sizes: Its number of rows. An id that is not in [0, size) is an error.
names: Of the fields, for that error.
user: Who asks, for the same.
)doc");

template <typename Id, typename Row>
class FieldRowsOp : public OpKernel {
 public:
  explicit FieldRowsOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("axis", &axis_));
    OP_REQUIRES_OK(context, context->GetAttr("starts", &starts_));
    OP_REQUIRES_OK(context, context->GetAttr("sizes", &sizes_));
    OP_REQUIRES_OK(context, context->GetAttr("names", &names_));
    OP_REQUIRES_OK(context, context->GetAttr("user", &user_));
    const int64_t num_fields = starts_.size();
    const bool is_one_each = axis_ >= 0 || context->num_inputs() == num_fields;
    OP_REQUIRES(context,
                static_cast<int64_t>(sizes_.size()) == num_fields &&
                    static_cast<int64_t>(names_.size()) == num_fields && is_one_each &&
                    (axis_ < 0 || context->num_inputs() == 1),
                InvalidArgument("starts, sizes, names and, where axis is -1, ids must be one per "
                                "field; got ",
                                num_fields, ", ", sizes_.size(), ", ", names_.size(), " and ",
                                context->num_inputs()));
  }

  void Compute(OpKernelContext* context) override {
    OpInputList ids;
    OP_REQUIRES_OK(context, context->input_list("ids", &ids));
    TensorShape shape({0});
    if (axis_ >= 0) {
      shape = ids[0].shape();
      OP_REQUIRES(
          context,
          axis_ < shape.dims() && shape.dim_size(axis_) == static_cast<int64_t>(starts_.size()),
          InvalidArgument(user_, ": ids must have ", starts_.size(), " fields along axis ", axis_,
                          ", got ", shape.DebugString()));
    } else {
      int64_t num = 0;
      for (const Tensor& one : ids) num += one.NumElements();
      shape.set_dim(0, num);
    }
    Tensor* rows;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &rows));
    Row* to = rows->flat<Row>().data();
    if (axis_ >= 0) {
      int64_t num_outer = 1, num_inner = 1;
      for (int d = 0; d < axis_; ++d) num_outer *= shape.dim_size(d);
      for (int d = axis_ + 1; d < shape.dims(); ++d) num_inner *= shape.dim_size(d);
      if (shape.num_elements() == 0) return;
      OP_REQUIRES_OK(context, Convert(ids[0], num_outer, 0, starts_.size(), num_inner, to));
      return;
    }
    for (int f = 0; f < ids.size(); ++f) {
      OP_REQUIRES_OK(context, Convert(ids[f], 1, f, 1, ids[f].NumElements(), to));
      to += ids[f].NumElements();
    }
  }

 private:
  absl::Status Convert(const Tensor& ids, int64_t num_outer, int64_t first_field,
                       int64_t num_fields, int64_t num_inner, Row* rows) const {
    const int64_t bad = FieldRows(ids.flat<Id>().data(), num_outer, num_fields, num_inner,
                                  starts_.data() + first_field, sizes_.data() + first_field, rows);
    if (bad < 0) return absl::OkStatus();
    const int64_t field = first_field + bad / num_inner % num_fields;
    return InvalidArgument(user_, ": field ", names_[field], ": id ", ids.flat<Id>()(bad),
                           " is not in [0, ", sizes_[field], ")");
  }

  int64_t axis_ = 0;
  std::vector<int64_t> starts_, sizes_;
  std::vector<std::string> names_;
  std::string user_;
};

#define SLIPSTREAM_REGISTER_FIELD_ROWS(Id, Row)               \
  REGISTER_KERNEL_BUILDER(Name("Slipstream>FieldRows")        \
                              .Device(tensorflow::DEVICE_CPU) \
                              .TypeConstraint<Id>("Tids")     \
                              .TypeConstraint<Row>("Trows"),  \
                          FieldRowsOp<Id, Row>)
SLIPSTREAM_REGISTER_FIELD_ROWS(int32_t, int32_t);
SLIPSTREAM_REGISTER_FIELD_ROWS(int32_t, int64_t);
SLIPSTREAM_REGISTER_FIELD_ROWS(int64_t, int64_t);
#undef SLIPSTREAM_REGISTER_FIELD_ROWS

}  // namespace slipstream
