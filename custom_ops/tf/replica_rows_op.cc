// ReplicaRows: what one of several replicas sends of its step, and what it holds back.
#include <algorithm>
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

REGISTER_OP("Slipstream>ReplicaRows")
    .SLIPSTREAM_POOL_INPUTS.Input("local_held: num_holding * resource")
    .Input("woken_at: num_policies * int64")
    .Input("indices: N * Tindices")
    .Input("grads: N * float")
    .Input("step: int64")
    .Output("sent_indices: N * Tindices")
    .Output("sent_grads: N * float")
    .Output("stale_indices: N * Tindices")
    .Output("deferred_entries: N * int32")
    .Output("deferred_grads: N * float")
    .Output("released: N * int32")
    .Output("num_lookups: N * int64")
    .Attr("N: int >= 1")
    .Attr("num_holding: int >= 0")
    .SLIPSTREAM_POOL_ATTRS.Attr("holding_tables: list(int)")
    .Attr("Tindices: {int32, int64}")
    .Attr("table_names: list(string)")
    .Attr("num_rows: list(int)")
    .Attr("num_fields: list(int)")
    .Attr("row_ends: list(int)")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      int n, num_policies, num_holding;
      TF_RETURN_IF_ERROR(c->GetAttr("N", &n));
      TF_RETURN_IF_ERROR(c->GetAttr("num_policies", &num_policies));
      TF_RETURN_IF_ERROR(c->GetAttr("num_holding", &num_holding));
      for (int t = 0; t < n; ++t) {
        tensorflow::shape_inference::ShapeHandle grads;
        TF_RETURN_IF_ERROR(
            c->WithRank(c->input(5 * num_policies + num_holding + n + t), 2, &grads));
        const auto rows = c->Matrix(c->UnknownDim(), c->Dim(grads, 1));
        for (const int output : {0, 2, 3, 5}) {
          c->set_output(output * n + t, c->Vector(c->UnknownDim()));
        }
        c->set_output(n + t, rows);
        c->set_output(4 * n + t, c->Matrix(c->UnknownDim(), c->Dim(grads, 1)));
        c->set_output(6 * n + t, c->Vector(c->UnknownDim()));
      }
      return absl::OkStatus();
    })
    .Doc(R"doc(
Sums repeated ids of each table, and tells rows that travel from those that sleep. Writes nothing.

row_states, pool_ints, pool_floats, policy_states: Of each table with a policy, see docs/reference/sleeping_rows.md.
local_held: float [capacity, dim] of each table in holding_tables, what this replica holds; deferred
  rows of other tables travel.
woken_at: Of each table with a policy, int64 scalars, that of this step.
policy_tables, policies: As ApplyRows has them.
holding_tables: Those of them that hold.
step: The number of this step, 1 in the first.
sent_indices, sent_grads: Distinct ids that travel in order of first appearance, and their summed
  gradient rows, with what was held of them here.
stale_indices: Distinct ids of all other rows.
deferred_entries, deferred_grads: Entries of the pool, and gradients to be held.
released: Entries whose held gradients are in sent_grads.
num_fields: Of each table, how many fields its lookups are counted by; 0: by none.
row_ends: Of each field of each table the row behind its last.
num_lookups: int64 [3 * (1 + num_fields)]: of the table, then of each field, in all, of skipped rows,
  of deferred rows.
)doc");

template <typename Index>
class ReplicaRowsOp : public OpKernel {
 public:
  explicit ReplicaRowsOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("table_names", &table_names_));
    OP_REQUIRES_OK(context, context->GetAttr("num_rows", &num_rows_));
    OP_REQUIRES_OK(context, context->GetAttr("holding_tables", &holding_tables_));
    std::vector<int64_t> num_fields, row_ends;
    OP_REQUIRES_OK(context, context->GetAttr("num_fields", &num_fields));
    OP_REQUIRES_OK(context, context->GetAttr("row_ends", &row_ends));
    int num_tables, num_holding;
    OP_REQUIRES_OK(context, context->GetAttr("N", &num_tables));
    OP_REQUIRES_OK(context, pools_.Init(context, Memory::kHost, num_tables));
    OP_REQUIRES_OK(context, context->GetAttr("num_holding", &num_holding));
    const auto is_as_long = [](const auto& list, int num) {
      return static_cast<int>(list.size()) == num;
    };
    OP_REQUIRES(context,
                is_as_long(table_names_, num_tables) && is_as_long(num_rows_, num_tables) &&
                    is_as_long(num_fields, num_tables) && is_as_long(holding_tables_, num_holding),
                InvalidArgument("expected ", num_tables, " table_names, num_rows and num_fields ",
                                "and ", num_holding, " holding_tables"));
    int64_t num_ends = 0;
    for (const int64_t num : num_fields) {
      OP_REQUIRES(context, 0 <= num && num <= static_cast<int64_t>(row_ends.size()) - num_ends,
                  InvalidArgument("expected as many row_ends as num_fields say"));
      fields_.emplace_back(num * kCountersPerField);
      for (int64_t f = 0; f < num; ++f)
        fields_.back()[f * kCountersPerField] = row_ends[num_ends++];
    }
    for (const int64_t t : holding_tables_) {
      OP_REQUIRES(context, 0 <= t && t < num_tables, InvalidArgument("there is no table ", t));
    }
  }

  void Compute(OpKernelContext* context) override {
    const int64_t num_tables = num_rows_.size();
    TableVariables variables;
    OP_REQUIRES_OK(context, pools_.AddVariables(context, &variables));
    OP_REQUIRES_OK(context, variables.Add(context, "local_held", tensorflow::DT_FLOAT));
    variables.LockForReading();
    tensorflow::OpInputList grads;
    OP_REQUIRES_OK(context, context->input_list("grads", &grads));
    std::vector<int64_t> dims(num_tables);
    for (int64_t t = 0; t < num_tables; ++t) {
      dims[t] = grads[t].dims() == 2 ? grads[t].dim_size(1) : 0;
    }
    std::vector<RowStates> states(num_tables);
    std::vector<const float*> held(num_tables, nullptr);
    OP_REQUIRES_OK(context, ReadStates(context, &variables, dims, &states, &held));
    std::vector<Lookups<Index>> lookups;
    OP_REQUIRES_OK(context, ReadLookups(context, table_names_, num_rows_, dims, states, &lookups));
    const Tensor* step;
    OP_REQUIRES_OK(context, context->input("step", &step));
    OP_REQUIRES(context, step->NumElements() == 1,
                InvalidArgument("step must be a scalar, got ", step->shape().DebugString()));

    for (int64_t t = 0; t < num_tables; ++t) {
      lookups[t].fields = fields_[t].data();
      lookups[t].num_fields = fields_[t].size() / kCountersPerField;
    }

    ThreadTeam team = IntraOpTeam(context);
    const ParallelFor parallel_for = team.parallel_for();
    std::unique_ptr<LiveRows> live_rows = pool_.Take();
    const BadLookup bad = live_rows->Find(lookups, step->flat<int64_t>()(0), parallel_for);
    OP_REQUIRES(context, bad.kind == BadLookup::kNone,
                BadLookupError(bad, table_names_[bad.table], num_rows_[bad.table]));
    int64_t num_lookups = 0;
    for (int64_t t = 0; t < num_tables; ++t) {
      OP_REQUIRES_OK(context, Output(context, *live_rows, t, lookups[t], held[t], parallel_for));
      num_lookups += lookups[t].num_lookups;
    }
    pool_.Return(std::move(live_rows), num_lookups);
  }

 private:
  // What is asleep in each table, and what this replica holds of it: null for tables that do not.
  absl::Status ReadStates(OpKernelContext* context, TableVariables* variables,
                          const std::vector<int64_t>& dims, std::vector<RowStates>* states,
                          std::vector<const float*>* held) const {
    tensorflow::OpInputList woken_at;
    TF_RETURN_IF_ERROR(context->input_list("woken_at", &woken_at));
    std::vector<int64_t> capacities(states->size(), -1);
    std::vector<Staleness> staleness;
    TF_RETURN_IF_ERROR(pools_.Read(variables, 0, num_rows_, dims, table_names_, &staleness));
    for (size_t p = 0; p < staleness.size(); ++p) {
      const int64_t t = pools_.tables()[p];
      const Staleness& one = staleness[p];
      if (woken_at[p].NumElements() != 1) {
        return InvalidArgument("woken_at must be scalars, got ", woken_at[p].shape().DebugString());
      }
      (*states)[t] = {one.row_states, one.entries, static_cast<int64_t>(one.state->num_entries),
                      woken_at[p].flat<int64_t>()(0)};
      capacities[t] = one.capacity;
    }
    for (size_t h = 0; h < holding_tables_.size(); ++h) {
      const int64_t t = holding_tables_[h];
      const Tensor* variable = variables->tensor(pools_.num_variables() + h);
      if (capacities[t] < 0 || variable->NumElements() != capacities[t] * dims[t]) {
        return InvalidArgument("table '", table_names_[t], "': local_held has shape ",
                               variable->shape().DebugString(), ", and the pool ", capacities[t],
                               " entries of dim ", dims[t]);
      }
      (*held)[t] = variable->flat<float>().data();
    }
    return absl::OkStatus();
  }

  // Everything of table t.
  absl::Status Output(OpKernelContext* context, const LiveRows& live_rows, int64_t t,
                      const Lookups<Index>& lookups, const float* held,
                      const ParallelFor& parallel_for) const {
    const RowCounts& counts = live_rows.counts(t);
    const LiveRows::Found& found = live_rows.found();
    const int64_t dim = lookups.dim;
    const int64_t num_held_back = held == nullptr ? 0 : counts.num_deferred_row_updates;
    const int64_t num_sent = live_rows.num_read(t) - num_held_back;
    const int64_t num_stale = num_held_back + counts.num_skipped_row_updates;
    const auto allocate = [&](const char* list, const TensorShape& shape, Tensor** tensor) {
      OpOutputList outputs;
      TF_RETURN_IF_ERROR(context->output_list(list, &outputs));
      return outputs.allocate(t, shape, tensor);
    };
    Tensor *sent_ids, *sent_grads, *stale_ids, *entries, *deferred_grads, *released, *num_lookups;
    TF_RETURN_IF_ERROR(allocate("sent_indices", {num_sent}, &sent_ids));
    TF_RETURN_IF_ERROR(allocate("sent_grads", {num_sent, dim}, &sent_grads));
    TF_RETURN_IF_ERROR(allocate("stale_indices", {num_stale}, &stale_ids));
    TF_RETURN_IF_ERROR(allocate("deferred_entries", {num_held_back}, &entries));
    TF_RETURN_IF_ERROR(allocate("deferred_grads", {num_held_back, dim}, &deferred_grads));
    TF_RETURN_IF_ERROR(allocate("num_lookups", {3 * (1 + lookups.num_fields)}, &num_lookups));

    std::vector<const std::vector<LiveRows::Run>*> travels = {&found.runs};
    if (held == nullptr) travels.push_back(&found.deferred_runs);
    std::vector<int32_t> states(num_sent);
    float* sums = sent_grads->flat<float>().data();
    live_rows.CopyInBatchOrder(travels, t, lookups.num_lookups, dim, sent_ids->flat<Index>().data(),
                               states.data(), sums, parallel_for);
    if (held != nullptr) {
      int32_t* states_of_stale = entries->flat<int32_t>().data();
      live_rows.CopyInBatchOrder({&found.deferred_runs}, t, lookups.num_lookups, dim,
                                 stale_ids->flat<Index>().data(), states_of_stale,
                                 deferred_grads->flat<float>().data(), parallel_for);
      for (int64_t i = 0; i < num_held_back; ++i) states_of_stale[i] = -1 - states_of_stale[i];
    }
    live_rows.CopyInBatchOrder({&found.skipped_runs}, t, lookups.num_lookups, dim,
                               stale_ids->flat<Index>().data() + num_held_back, nullptr, nullptr,
                               parallel_for);
    std::vector<int32_t> taken;
    for (int64_t i = 0; held != nullptr && i < num_sent; ++i) {
      const int64_t entry = -1 - static_cast<int64_t>(states[i]);
      if (entry < 0 || lookups.states.entries[entry].held_steps == 0) continue;
      taken.push_back(static_cast<int32_t>(entry));
      for (int64_t d = 0; d < dim; ++d) sums[i * dim + d] += held[entry * dim + d];
    }
    const int64_t num_taken = taken.size();
    TF_RETURN_IF_ERROR(allocate("released", {num_taken}, &released));
    std::copy(taken.begin(), taken.end(), released->flat<int32_t>().data());
    int64_t* counted = num_lookups->flat<int64_t>().data();
    const auto count = [&](const RowCounts& one) {
      *counted++ = one.num_lookups;
      *counted++ = one.num_skipped_lookups;
      *counted++ = one.num_deferred_lookups;
    };
    count(counts);
    for (const RowCounts& field : found.field_counts[t]) count(field);
    return absl::OkStatus();
  }

  std::vector<std::string> table_names_;
  std::vector<int64_t> num_rows_;
  PoolArgs pools_;
  std::vector<int64_t> holding_tables_;
  std::vector<std::vector<int64_t>> fields_;  // per table, as its counters would have them
  LiveRowsPool pool_;
};

REGISTER_KERNEL_BUILDER(Name("Slipstream>ReplicaRows")
                            .Device(tensorflow::DEVICE_CPU)
                            .TypeConstraint<int32_t>("Tindices"),
                        ReplicaRowsOp<int32_t>);
REGISTER_KERNEL_BUILDER(Name("Slipstream>ReplicaRows")
                            .Device(tensorflow::DEVICE_CPU)
                            .TypeConstraint<int64_t>("Tindices"),
                        ReplicaRowsOp<int64_t>);

}  // namespace slipstream
