// ApplyRows: one training step of all tables that share an update rule, in place.
#include "apply_step.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace slipstream {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

REGISTER_OP("Slipstream>ApplyRows")
    .SLIPSTREAM_TABLE_INPUTS.Input("indices: N * Tindices")
    .Input("grads: N * float")
    .Input("grad_scales: N * float")
    .Input("num_lookups: num_counted * int64")
    .Input("bags: num_bagged * int32")
    .SLIPSTREAM_TABLE_ATTRS.Attr("num_counted: int >= 0")
    .Attr("num_bagged: int >= 0")
    .Attr("Tindices: {int32, int64}")
    .Attr("clip_value: float = 0")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext*) { return absl::OkStatus(); })
    .Doc(absl::StrCat(R"doc(
Updates, in each table, the live rows that a step looked up; all tables, or none if anything is wrong.

Repeated ids count once, with the sum of their gradient rows in batch order. Rows not looked up, and
stale rows, keep their values and slots to the bit.

)doc",
                      kTableDoc, R"doc(
indices: [num_lookups] ids in [0, num_rows).
grads: [num_lookups, dim]; with bags [num_bags, dim].
grad_scales: Scalars; each multiplies its table's summed gradients.
num_lookups: int64 [3 * (1 + num_fields)] per table: how many lookups to count of it, then of each field
  that its counters have, in all, skipped and deferred. None: those that there are.
bags: [num_lookups] per table, the gradient row of each lookup; empty: its own. None: all their own. Not on
  a GPU.
clip_value: Bound on each element of a summed gradient, 0 for none.
)doc"));

template <typename Index>
class ApplyRowsOp : public OpKernel {
 public:
  explicit ApplyRowsOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, args_.Init(context, Memory::kHost));
    OP_REQUIRES_OK(context, context->GetAttr("clip_value", &clip_value_));
  }

  void Compute(OpKernelContext* context) override {
    std::vector<StepSettings> settings;
    OP_REQUIRES_OK(context, args_.ReadSettings(context, "grad_scales", clip_value_, &settings));
    tensorflow::OpInputList num_lookups;
    OP_REQUIRES_OK(context, context->input_list("num_lookups", &num_lookups));
    OP_REQUIRES(context, num_lookups.size() == 0 || num_lookups.size() == args_.num_tables(),
                InvalidArgument("num_lookups must be there for each of ", args_.num_tables(),
                                " tables or for none, got ", num_lookups.size()));
    tensorflow::OpInputList bags;
    OP_REQUIRES_OK(context, context->input_list("bags", &bags));
    OP_REQUIRES(context, bags.size() == 0 || bags.size() == args_.num_tables(),
                InvalidArgument("bags must be there for each of ", args_.num_tables(),
                                " tables or for none, got ", bags.size()));
    TableVariables variables;
    OP_REQUIRES_OK(context, args_.AddVariables(context, &variables));
    OP_REQUIRES_OK(context, variables.LockForWriting(context));
    TableList list;
    OP_REQUIRES_OK(context, args_.Read(&variables, &list));
    for (int64_t t = 0; t < num_lookups.size(); ++t) {
      const int64_t num = 3 * (1 + list.num_fields[t]);
      OP_REQUIRES(context, num_lookups[t].NumElements() == num,
                  InvalidArgument("num_lookups of table '", args_.names()[t], "' must be [", num,
                                  "], got ", num_lookups[t].shape().DebugString()));
    }
    for (Table& table : list.tables) table.holds_elsewhere = num_lookups.size() > 0;
    const auto count = [&](const std::vector<Lookups<Index>>&, LiveRows* live_rows) {
      for (int64_t t = 0; t < num_lookups.size(); ++t) {
        live_rows->SetNumLookups(t, num_lookups[t].flat<int64_t>().data());
      }
      return absl::OkStatus();
    };
    OP_REQUIRES_OK(context, ApplyStep<Index>(context, args_, settings, &list, &pool_, count, bags));
  }

 private:
  TableArgs args_;
  float clip_value_ = 0;
  LiveRowsPool pool_;
};

REGISTER_KERNEL_BUILDER(
    Name("Slipstream>ApplyRows").Device(tensorflow::DEVICE_CPU).TypeConstraint<int32_t>("Tindices"),
    ApplyRowsOp<int32_t>);
REGISTER_KERNEL_BUILDER(
    Name("Slipstream>ApplyRows").Device(tensorflow::DEVICE_CPU).TypeConstraint<int64_t>("Tindices"),
    ApplyRowsOp<int64_t>);

}  // namespace slipstream
