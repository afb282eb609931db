// SettleRows: between steps, brings tables up to date.
#include <algorithm>

#include "kernel_context.h"
#include "table_args.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace slipstream {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;

REGISTER_OP("Slipstream>SettleRows")
    .SLIPSTREAM_TABLE_INPUTS.SLIPSTREAM_TABLE_ATTRS.Attr("wake: bool")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext*) { return absl::OkStatus(); })
    .Doc(absl::StrCat(R"doc(
Applies all that is held of rows that sleep, and what rows are behind by that missed steps.

Rows that were looked up in the last step and hold nothing keep their values to the bit.

)doc",
                      kTableDoc, R"doc(
step: The number of the last step.
wake: Whether rows that sleep wake; else they sleep on.
)doc"));

class SettleRowsOp : public OpKernel {
 public:
  explicit SettleRowsOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, args_.Init(context, Memory::kHost));
    OP_REQUIRES_OK(context, context->GetAttr("wake", &wake_));
  }

  void Compute(OpKernelContext* context) override {
    std::vector<StepSettings> settings;
    OP_REQUIRES_OK(context, args_.ReadSettings(context, nullptr, 0, &settings));
    TableVariables variables;
    OP_REQUIRES_OK(context, args_.AddVariables(context, &variables));
    OP_REQUIRES_OK(context, variables.LockForWriting(context));
    TableList list;
    OP_REQUIRES_OK(context, args_.Read(&variables, &list));
    for (size_t p = 0; p < list.staleness.size(); ++p) {
      const int64_t t = args_.pools().tables()[p];
      const int64_t bad_entry = CheckPool(list.staleness[p], list.num_rows[t]);
      OP_REQUIRES(context, bad_entry < 0, BadEntryError(bad_entry, args_.names()[t]));
    }
    ThreadTeam team = IntraOpTeam(context);
    for (int64_t t = 0; t < args_.num_tables(); ++t) {
      // Of tables on parameter servers a push may have brought a later step.
      settings[t].step = std::max(settings[t].step, list.counters[t][kPushStep]);
      SettleRows(args_.rule(), list.tables[t], settings[t], wake_, team.parallel_for());
    }
  }

 private:
  TableArgs args_;
  bool wake_ = false;
};

REGISTER_KERNEL_BUILDER(Name("Slipstream>SettleRows").Device(tensorflow::DEVICE_CPU), SettleRowsOp);

}  // namespace slipstream
