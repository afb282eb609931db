// SumBags: the sums of bags of a table's rows, which are read once and written nowhere.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "../kernels/gather_rows.h"
#include "kernel_context.h"
#include "table_variables.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/util.h"

namespace slipstream {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

REGISTER_OP("Slipstream>SumBags")
    .Input("table: resource")
    .Input("ids: Tindices")
    .Input("splits: int64")
    .Output("sums: float")
    .Output("bags: int32")
    .Attr("Tindices: {int32, int64}")
    .Attr("dim: int >= 1")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* context) {
      tensorflow::shape_inference::ShapeHandle splits;
      tensorflow::shape_inference::DimensionHandle num_bags;
      TF_RETURN_IF_ERROR(context->WithRank(context->input(2), 1, &splits));
      TF_RETURN_IF_ERROR(context->Subtract(context->Dim(splits, 0), 1, &num_bags));
      int64_t dim;
      TF_RETURN_IF_ERROR(context->GetAttr("dim", &dim));
      context->set_output(0, context->Matrix(num_bags, dim));
      context->set_output(1, context->Vector(context->NumElements(context->input(1))));
      return absl::OkStatus();
    })
    .Doc(R"doc(
Sums rows of a table by bags, without writing the rows of lookups out.

table: Handle of a float [num_rows, dim].
ids: [...], flat the ids of one bag after those of another.
splits: [num_bags + 1], where each bag begins in the flat ids, and behind the last one their number.
sums: [num_bags, dim]; zeros for a bag without ids.
bags: [num_ids], the bag of each id.
)doc");

template <typename Index>
class SumBagsOp : public OpKernel {
 public:
  explicit SumBagsOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("dim", &dim_));
  }

  void Compute(OpKernelContext* context) override {
    TableVariables variables;
    OP_REQUIRES_OK(context, variables.Add(context, tensorflow::HandleFromInput(context, 0),
                                          tensorflow::DT_FLOAT));
    variables.LockForReading();
    const Tensor& table = *variables.tensor(0);
    const Tensor& ids = context->input(1);
    const Tensor& splits = context->input(2);
    OP_REQUIRES(
        context, table.dims() == 2 && table.dim_size(1) == dim_,
        InvalidArgument("table must be [num_rows, ", dim_, "], got ", table.shape().DebugString()));
    OP_REQUIRES_OK(context, Check(splits, ids.NumElements()));
    const int64_t num_bags = splits.NumElements() - 1;
    Tensor *sums, *bags;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({num_bags, dim_}), &sums));
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({ids.NumElements()}), &bags));
    ThreadTeam team = IntraOpTeam(context);
    const int64_t num_rows = table.dim_size(0);
    const int64_t bad =
        SumBags(table.flat<float>().data(), num_rows, dim_, ids.flat<Index>().data(),
                splits.flat<int64_t>().data(), num_bags, sums->flat<float>().data(),
                bags->flat<int32_t>().data(), team.parallel_for());
    OP_REQUIRES(context, bad < 0,
                InvalidArgument("indices", tensorflow::SliceDebugString(ids.shape(), bad), " = ",
                                ids.flat<Index>()(bad), " is not in [0, ", num_rows, ")"));
  }

 private:
  static absl::Status Check(const Tensor& splits, int64_t num_ids) {
    if (splits.dims() != 1 || splits.NumElements() < 1 ||
        std::max(splits.NumElements() - 1, num_ids) > std::numeric_limits<int32_t>::max()) {
      return InvalidArgument(
          "splits must be [num_bags + 1] of at most 2^31 - 1 bags of as many ids,", " got ",
          splits.shape().DebugString(), " of ", num_ids, " ids");
    }
    const auto values = splits.flat<int64_t>();
    const int64_t* begin = values.data();
    const int64_t* end = begin + splits.NumElements();
    if (*begin != 0 || end[-1] != num_ids || !std::is_sorted(begin, end)) {
      return InvalidArgument("splits must ascend from 0 to the number of ids, ", num_ids);
    }
    return absl::OkStatus();
  }

  int64_t dim_ = 0;
};

REGISTER_KERNEL_BUILDER(
    Name("Slipstream>SumBags").Device(tensorflow::DEVICE_CPU).TypeConstraint<int32_t>("Tindices"),
    SumBagsOp<int32_t>);
REGISTER_KERNEL_BUILDER(
    Name("Slipstream>SumBags").Device(tensorflow::DEVICE_CPU).TypeConstraint<int64_t>("Tindices"),
    SumBagsOp<int64_t>);

}  // namespace slipstream
