// LiveSlices: the distinct live ids of each table and their summed gradient rows.
#include <string>
#include <vector>

#include "kernel_context.h"
#include "table_args.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace slipstream {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::OpOutputList;
using tensorflow::Tensor;
using tensorflow::TensorShape;

REGISTER_OP("Slipstream>LiveSlices")
    .SLIPSTREAM_POOL_INPUTS.Input("indices: N * Tindices")
    .Input("grads: N * float")
    .Input("step: int64")
    .Output("live_indices: N * Tindices")
    .Output("live_grads: N * float")
    .Attr("N: int >= 1")
    .SLIPSTREAM_POOL_ATTRS.Attr("Tindices: {int32, int64}")
    .Attr("table_names: list(string)")
    .Attr("num_rows: list(int)")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      int num_tables, num_policies;
      TF_RETURN_IF_ERROR(c->GetAttr("N", &num_tables));
      TF_RETURN_IF_ERROR(c->GetAttr("num_policies", &num_policies));
      for (int t = 0; t < num_tables; ++t) {
        tensorflow::shape_inference::ShapeHandle grads;
        TF_RETURN_IF_ERROR(c->WithRank(c->input(4 * num_policies + num_tables + t), 2, &grads));
        c->set_output(t, c->Vector(c->UnknownDim()));
        c->set_output(num_tables + t, c->Matrix(c->UnknownDim(), c->Dim(grads, 1)));
      }
      return absl::OkStatus();
    })
    .Doc(R"doc(
Distinct ids of each table whose gradient counts, in order of first appearance, and the sums of their gradient rows.

Rows that are asleep and skipped are left out; those that are deferred are not.
row_states, pool_ints, pool_floats, policy_states: Of each table with a policy, see docs/reference/sleeping_rows.md.
policy_tables, policies: As ApplyRows has them.
step: The number of this step, 1 in the first.
)doc");

template <typename Index>
class LiveSlicesOp : public OpKernel {
 public:
  explicit LiveSlicesOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("table_names", &table_names_));
    OP_REQUIRES_OK(context, context->GetAttr("num_rows", &num_rows_));
    int num_tables;
    OP_REQUIRES_OK(context, context->GetAttr("N", &num_tables));
    OP_REQUIRES_OK(context, pools_.Init(context, Memory::kHost, num_tables));
    const size_t expected = num_tables;
    OP_REQUIRES(context, table_names_.size() == expected && num_rows_.size() == expected,
                InvalidArgument("expected ", num_tables, " table_names and num_rows, got ",
                                table_names_.size(), " and ", num_rows_.size()));
  }

  void Compute(OpKernelContext* context) override {
    const int64_t num_tables = num_rows_.size();
    TableVariables variables;
    OP_REQUIRES_OK(context, pools_.AddVariables(context, &variables));
    variables.LockForReading();
    std::vector<RowStates> states(num_tables);
    std::vector<int64_t> dims(num_tables);
    tensorflow::OpInputList grads;
    OP_REQUIRES_OK(context, context->input_list("grads", &grads));
    for (int64_t t = 0; t < num_tables; ++t) {
      dims[t] = grads[t].dims() == 2 ? grads[t].dim_size(1) : 0;
    }
    std::vector<Staleness> staleness;
    OP_REQUIRES_OK(context, pools_.Read(&variables, 0, num_rows_, dims, table_names_, &staleness));
    for (size_t p = 0; p < staleness.size(); ++p) {
      const Staleness& one = staleness[p];
      states[pools_.tables()[p]] = {one.row_states, one.entries,
                                    static_cast<int64_t>(one.state->num_entries),
                                    static_cast<int64_t>(one.state->woken_at)};
    }
    std::vector<Lookups<Index>> lookups;
    OP_REQUIRES_OK(context, ReadLookups(context, table_names_, num_rows_, dims, states, &lookups));
    const Tensor* step;
    OP_REQUIRES_OK(context, context->input("step", &step));
    OP_REQUIRES(context, step->NumElements() == 1,
                InvalidArgument("step must be a scalar, got ", step->shape().DebugString()));

    ThreadTeam team = IntraOpTeam(context);
    const ParallelFor parallel_for = team.parallel_for();
    std::unique_ptr<LiveRows> live_rows = pool_.Take();
    const BadLookup bad = live_rows->Find(lookups, step->flat<int64_t>()(0), parallel_for);
    OP_REQUIRES(context, bad.kind == BadLookup::kNone,
                BadLookupError(bad, table_names_[bad.table], num_rows_[bad.table]));

    OpOutputList live_indices, live_grads;
    OP_REQUIRES_OK(context, context->output_list("live_indices", &live_indices));
    OP_REQUIRES_OK(context, context->output_list("live_grads", &live_grads));
    int64_t num_lookups = 0;
    for (int64_t t = 0; t < num_tables; ++t) {
      const int64_t num_read = live_rows->num_read(t);
      Tensor *ids, *rows;
      OP_REQUIRES_OK(context, live_indices.allocate(t, TensorShape({num_read}), &ids));
      OP_REQUIRES_OK(context, live_grads.allocate(t, TensorShape({num_read, dims[t]}), &rows));
      live_rows->CopyInBatchOrder(t, lookups[t].num_lookups, dims[t], ids->flat<Index>().data(),
                                  rows->flat<float>().data(), parallel_for);
      num_lookups += lookups[t].num_lookups;
    }
    pool_.Return(std::move(live_rows), num_lookups);
  }

 private:
  std::vector<std::string> table_names_;
  std::vector<int64_t> num_rows_;
  PoolArgs pools_;
  LiveRowsPool pool_;
};

REGISTER_KERNEL_BUILDER(Name("Slipstream>LiveSlices")
                            .Device(tensorflow::DEVICE_CPU)
                            .TypeConstraint<int32_t>("Tindices"),
                        LiveSlicesOp<int32_t>);
REGISTER_KERNEL_BUILDER(Name("Slipstream>LiveSlices")
                            .Device(tensorflow::DEVICE_CPU)
                            .TypeConstraint<int64_t>("Tindices"),
                        LiveSlicesOp<int64_t>);

}  // namespace slipstream
