// ApplyRows: one training step of all tables that share an update rule, in place.
#include <string>
#include <vector>

#include "../kernels/huge_pages.h"
#include "../kernels/live_rows.h"
#include "../kernels/update_rows.h"
#include "kernel_context.h"
#include "table_variables.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace slipstream {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

REGISTER_OP("Slipstream>ApplyRows")
    .Input("tables: N * resource")
    .Input("slots: num_slots * resource")
    .Input("last_steps: num_last_steps * resource")
    .Input("wake_steps: N * resource")
    .Input("changed_rows: N * resource")
    .Input("counters: N * resource")
    .Input("indices: N * Tindices")
    .Input("grads: N * float")
    .Input("grad_scales: N * float")
    .Input("step: int64")
    .Input("learning_rate: float")
    .Input("hyperparameters: double")
    .Attr("N: int >= 1")
    .Attr("num_slots: int >= 0")
    .Attr("num_last_steps: int >= 0")
    .Attr("Tindices: {int32, int64}")
    .Attr("rule: string")
    .Attr("weight_decays: list(float)")
    .Attr("clip_value: float = 0")
    .Attr("table_names: list(string)")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext*) { return absl::OkStatus(); })
    .Doc(R"doc(
Updates, in each table, the live rows that a step looked up; all tables, or none if anything is wrong.

Repeated ids count once, with the sum of their gradient rows in batch order. Rows not looked up, and
stale rows, keep their values and slots to the bit.

slots: Those of the first table in the rule's order, then the second's, and so on.
last_steps: int32 [num_rows] per table, for rules with moments; none for others.
wake_steps: int32 [num_rows], or [0] where every row is live. A row is stale in each step below its own.
changed_rows: int32 [ceil(num_rows / 32)] per table; bit r % 32 of word r / 32 is set when row r is
  written.
counters: int64 [8] per table; lookups, skipped and deferred lookups, row updates, skipped and deferred
  row updates are added to the first six.
indices: [num_lookups] ids in [0, num_rows).
grads: [num_lookups, dim].
grad_scales: Scalars; each multiplies its table's summed gradients.
step: The number of this step, 1 in the first.
hyperparameters: [num_hyperparameters], in the rule's order.
rule: "sgd", "momentum", "adagrad", "row_wise_adagrad", "adam", "rmsprop" or "ftrl".
clip_value: Bound on each element of a summed gradient, 0 for none.
)doc");

template <typename Index>
class ApplyRowsOp : public OpKernel {
 public:
  explicit ApplyRowsOp(OpKernelConstruction* context) : OpKernel(context) {
    std::string rule;
    OP_REQUIRES_OK(context, context->GetAttr("rule", &rule));
    OP_REQUIRES_OK(context, context->GetAttr("weight_decays", &weight_decays_));
    OP_REQUIRES_OK(context, context->GetAttr("clip_value", &clip_value_));
    OP_REQUIRES_OK(context, context->GetAttr("table_names", &table_names_));
    rule_ = FindRule(rule);
    OP_REQUIRES(context, rule_ != nullptr, InvalidArgument("there is no update rule '", rule, "'"));
    int num_tables, num_slots, num_last_steps;
    OP_REQUIRES_OK(context, context->GetAttr("N", &num_tables));
    OP_REQUIRES_OK(context, context->GetAttr("num_slots", &num_slots));
    OP_REQUIRES_OK(context, context->GetAttr("num_last_steps", &num_last_steps));
    num_tables_ = num_tables;
    num_slots_ = num_slots;
    OP_REQUIRES(context, num_last_steps == (rule_->has_moments ? num_tables : 0),
                InvalidArgument("rule '", rule, "' with ", num_tables,
                                " tables: wrong number of last_steps, ", num_last_steps));
    OP_REQUIRES(context,
                static_cast<int64_t>(table_names_.size()) == num_tables_ &&
                    static_cast<int64_t>(weight_decays_.size()) == num_tables_,
                InvalidArgument("expected ", num_tables_, " table_names and weight_decays, got ",
                                table_names_.size(), " and ", weight_decays_.size()));
  }

  void Compute(OpKernelContext* context) override {
    std::vector<StepSettings> settings;
    OP_REQUIRES_OK(context, ReadSettings(context, &settings));
    TableVariables variables;
    OP_REQUIRES_OK(context, AddVariables(context, &variables));
    OP_REQUIRES_OK(context, variables.LockForWriting(context));

    std::vector<Table> tables;
    std::vector<int64_t> num_rows, dims;
    std::vector<const int32_t*> wake_steps;
    for (int64_t t = 0; t < num_tables_; ++t) {
      Table table;
      OP_REQUIRES_OK(context, ReadTable(&variables, t, settings[t].hyperparameters, &table));
      tables.push_back(table);
      dims.push_back(table.dim);
      num_rows.push_back(variables.tensor(t)->dim_size(0));
      wake_steps.push_back(nullptr);
      OP_REQUIRES_OK(context,
                     variables.WakeSteps(FirstWakeSteps() + t, num_rows[t], &wake_steps[t]));
    }
    std::vector<Lookups<Index>> lookups;
    OP_REQUIRES_OK(context,
                   ReadLookups(context, table_names_, num_rows, dims, wake_steps, &lookups));

    const ParallelFor parallel_for = IntraOpPool(context);
    std::unique_ptr<LiveRows> live_rows = pool_.Take();
    const BadLookup bad = live_rows->Find(lookups, settings[0].step, parallel_for);
    OP_REQUIRES(context, bad.kind == BadLookup::kNone,
                BadLookupError(bad, table_names_[bad.table], num_rows[bad.table]));
    UpdateRows(*rule_, tables, settings, live_rows->runs(), parallel_for);

    int64_t num_lookups = 0;
    for (int64_t t = 0; t < num_tables_; ++t) {
      const RowCounts& counts = live_rows->counts(t);
      Tensor* counters_variable = variables.tensor(FirstCounters() + t);
      int64_t* counters = counters_variable->flat<int64_t>().data();
      counters[0] += counts.num_lookups;
      counters[1] += counts.num_skipped_lookups;
      counters[3] += counts.num_row_updates;
      counters[4] += counts.num_skipped_row_updates;
      num_lookups += counts.num_lookups;
    }
    pool_.Return(std::move(live_rows), num_lookups);
  }

 private:
  absl::Status ReadSettings(OpKernelContext* context, std::vector<StepSettings>* settings) const {
    const Tensor *step, *learning_rate, *hyperparameters;
    tensorflow::OpInputList grad_scales;
    TF_RETURN_IF_ERROR(context->input("step", &step));
    TF_RETURN_IF_ERROR(context->input("learning_rate", &learning_rate));
    TF_RETURN_IF_ERROR(context->input("hyperparameters", &hyperparameters));
    TF_RETURN_IF_ERROR(context->input_list("grad_scales", &grad_scales));
    if (step->NumElements() != 1 || learning_rate->NumElements() != 1) {
      return InvalidArgument("step and learning_rate must be scalars, got ",
                             step->shape().DebugString(), " and ",
                             learning_rate->shape().DebugString());
    }
    if (hyperparameters->NumElements() != rule_->num_hyperparameters) {
      return InvalidArgument("rule '", rule_->name, "' has ", rule_->num_hyperparameters,
                             " hyperparameters, got ", hyperparameters->shape().DebugString());
    }
    for (int64_t t = 0; t < num_tables_; ++t) {
      if (grad_scales[t].NumElements() != 1) {
        return InvalidArgument("grad_scales must be scalars, got ",
                               grad_scales[t].shape().DebugString());
      }
      StepSettings one;
      one.step = step->flat<int64_t>()(0);
      one.learning_rate = learning_rate->flat<float>()(0);
      one.weight_decay = weight_decays_[t];
      one.clip_value = clip_value_;
      one.grad_scale = grad_scales[t].flat<float>()(0);
      one.hyperparameters = hyperparameters->flat<double>().data();
      settings->push_back(one);
    }
    return absl::OkStatus();
  }

  // In the order tables, slots, last_steps, wake_steps, changed_rows, counters.
  absl::Status AddVariables(OpKernelContext* context, TableVariables* variables) {
    TF_RETURN_IF_ERROR(variables->Add(context, "tables", tensorflow::DT_FLOAT));
    TF_RETURN_IF_ERROR(variables->Add(context, "slots", tensorflow::DT_FLOAT));
    TF_RETURN_IF_ERROR(variables->Add(context, "last_steps", tensorflow::DT_INT32));
    TF_RETURN_IF_ERROR(variables->Add(context, "wake_steps", tensorflow::DT_INT32));
    TF_RETURN_IF_ERROR(variables->Add(context, "changed_rows", tensorflow::DT_INT32));
    return variables->Add(context, "counters", tensorflow::DT_INT64);
  }
  int64_t FirstLastSteps() const { return num_tables_ + num_slots_; }
  int64_t FirstWakeSteps() const {
    return FirstLastSteps() + (rule_->has_moments ? num_tables_ : 0);
  }

  int64_t FirstChangedRows() const { return FirstWakeSteps() + num_tables_; }
  int64_t FirstCounters() const { return FirstChangedRows() + num_tables_; }

  // Checks the shapes of table t and of what goes with it.
  absl::Status ReadTable(TableVariables* variables, int64_t t, const double* hyperparameters,
                         Table* table) const {
    Tensor* rows = variables->tensor(t);
    if (rows->dims() != 2) {
      return InvalidArgument("table '", table_names_[t], "': expected [num_rows, dim], got ",
                             rows->shape().DebugString());
    }
    table->table = rows->flat<float>().data();
    table->dim = rows->dim_size(1);
    table->slot_dim = rule_->slots_per_row ? 1 : table->dim;
    table->num_slots = rule_->num_slots(hyperparameters);
    if (table->num_slots * num_tables_ != num_slots_) {
      return InvalidArgument("rule '", rule_->name, "' has ", table->num_slots,
                             " slots a table, got ", num_slots_, " for ", num_tables_, " tables");
    }
    UseHugePages(table->table, rows->TotalBytes());
    for (int s = 0; s < table->num_slots; ++s) {
      Tensor* slot = variables->tensor(num_tables_ + t * table->num_slots + s);
      TF_RETURN_IF_ERROR(CheckSize(t, *slot, rows->dim_size(0) * table->slot_dim));
      table->slots[s] = slot->flat<float>().data();
      UseHugePages(table->slots[s], slot->TotalBytes());
    }
    table->last_steps = nullptr;
    if (rule_->has_moments) {
      Tensor* last_steps = variables->tensor(FirstLastSteps() + t);
      TF_RETURN_IF_ERROR(CheckSize(t, *last_steps, rows->dim_size(0)));
      table->last_steps = last_steps->flat<int32_t>().data();
    }
    Tensor* changed_rows = variables->tensor(FirstChangedRows() + t);
    TF_RETURN_IF_ERROR(CheckSize(t, *changed_rows, (rows->dim_size(0) + 31) / 32));
    table->changed_rows = reinterpret_cast<uint32_t*>(changed_rows->flat<int32_t>().data());
    return CheckSize(t, *variables->tensor(FirstCounters() + t), kNumCounters);
  }

  absl::Status CheckSize(int64_t t, const Tensor& tensor, int64_t num_elements) const {
    if (tensor.NumElements() == num_elements) return absl::OkStatus();
    return InvalidArgument("table '", table_names_[t], "': a variable of the optimizer ",
                           "should have ", num_elements, " elements, and has shape ",
                           tensor.shape().DebugString());
  }

  static constexpr int64_t kNumCounters = 8;
  const RuleInfo* rule_ = nullptr;
  int64_t num_tables_ = 0;
  int64_t num_slots_ = 0;
  std::vector<float> weight_decays_;
  float clip_value_ = 0;
  std::vector<std::string> table_names_;
  LiveRowsPool pool_;
};

REGISTER_KERNEL_BUILDER(
    Name("Slipstream>ApplyRows").Device(tensorflow::DEVICE_CPU).TypeConstraint<int32_t>("Tindices"),
    ApplyRowsOp<int32_t>);
REGISTER_KERNEL_BUILDER(
    Name("Slipstream>ApplyRows").Device(tensorflow::DEVICE_CPU).TypeConstraint<int64_t>("Tindices"),
    ApplyRowsOp<int64_t>);

}  // namespace slipstream
