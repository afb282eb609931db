// ApplyRows: one training step of all tables that share an update rule, in place.
#include <algorithm>
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
    .Input("changed_rows: N * resource")
    .Input("counters: N * resource")
    .Input("row_states: num_policies * resource")
    .Input("pool_ints: num_policies * resource")
    .Input("pool_floats: num_policies * resource")
    .Input("policy_states: num_policies * resource")
    .Input("indices: N * Tindices")
    .Input("grads: N * float")
    .Input("grad_scales: N * float")
    .Input("step: int64")
    .Input("learning_rate: float")
    .Input("hyperparameters: double")
    .Input("policies: double")
    .Input("wake_all: bool")
    .Input("num_lookups: num_counted * int64")
    .Input("worker_counters: num_pushes * resource")
    .Input("batches: num_pushes * int32")
    .Input("push_counts: num_pushes * int64")
    .Attr("N: int >= 1")
    .Attr("num_pushes: int >= 0")
    .Attr("num_slots: int >= 0")
    .Attr("num_last_steps: int >= 0")
    .Attr("num_policies: int >= 0")
    .Attr("num_counted: int >= 0")
    .Attr("policy_tables: list(int)")
    .Attr("Tindices: {int32, int64}")
    .Attr("rule: string")
    .Attr("weight_decays: list(float)")
    .Attr("clip_value: float = 0")
    .Attr("table_names: list(string)")
    .Attr("rounding_seeds: list(int)")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext*) { return absl::OkStatus(); })
    .Doc(R"doc(
Updates, in each table, the live rows that a step looked up; all tables, or none if anything is wrong.

Repeated ids count once, with the sum of their gradient rows in batch order. Rows not looked up, and
stale rows, keep their values and slots to the bit.

slots: Those of the first table in the rule's order, then the second's, and so on.
last_steps: int32 [num_rows] per table, for rules with moments; none for others.
changed_rows: int32 [ceil(num_rows / 32)] per table; bit r % 32 of word r / 32 is set when row r is
  written.
counters: int64 [9] per table; lookups, skipped and deferred lookups, row updates, skipped and deferred
  row updates are added to the first six.
row_states, pool_ints, pool_floats, policy_states: Of each table with a policy, see docs/policy.md.
indices: [num_lookups] ids in [0, num_rows).
grads: [num_lookups, dim].
grad_scales: Scalars; each multiplies its table's summed gradients.
step: The number of this step, 1 in the first.
hyperparameters: [num_hyperparameters], in the rule's order.
policies: [num_policies, 15], see PolicySettings.
wake_all: Whether to apply all that is held, and wake every row.
num_lookups: int64 [3] per table: how many lookups to count, in all, skipped and deferred. None: those
  that there are.
worker_counters, batches, push_counts: Of every table where a worker sends what RowCachePush gave out, else none.
  A push's ids are distinct. Pushes may come in another order than their steps: a table's step never goes back.
worker_counters: int64 [num_workers, 5]: pulled rows, cached rows, batches held now, batches lost with a worker
  that was replaced, and which worker it is.
policy_tables: The tables that have a policy.
rule: "sgd", "momentum", "adagrad", "row_wise_adagrad", "adam", "rmsprop" or "ftrl".
clip_value: Bound on each element of a summed gradient, 0 for none.
rounding_seeds: Of each table; for the stochastic rounding of those in bfloat16.
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
    OP_REQUIRES_OK(context, context->GetAttr("rounding_seeds", &rounding_seeds_));
    rule_ = FindRule(rule);
    OP_REQUIRES(context, rule_ != nullptr, InvalidArgument("there is no update rule '", rule, "'"));
    int num_tables, num_slots, num_last_steps;
    OP_REQUIRES_OK(context, context->GetAttr("N", &num_tables));
    OP_REQUIRES_OK(context, context->GetAttr("num_slots", &num_slots));
    OP_REQUIRES_OK(context, context->GetAttr("num_last_steps", &num_last_steps));
    int num_policies;
    OP_REQUIRES_OK(context, context->GetAttr("num_policies", &num_policies));
    OP_REQUIRES_OK(context, context->GetAttr("policy_tables", &policy_tables_));
    OP_REQUIRES(
        context, static_cast<int>(policy_tables_.size()) == num_policies,
        InvalidArgument("expected ", num_policies, " policy_tables, got ", policy_tables_.size()));
    for (const int64_t t : policy_tables_) {
      OP_REQUIRES(context, 0 <= t && t < num_tables,
                  InvalidArgument("policy_tables: there is no table ", t));
    }
    num_tables_ = num_tables;
    num_slots_ = num_slots;
    int num_pushes;
    OP_REQUIRES_OK(context, context->GetAttr("num_pushes", &num_pushes));
    OP_REQUIRES(context, num_pushes == 0 || num_pushes == num_tables,
                InvalidArgument("expected pushes for no table or each of ", num_tables, ", got ",
                                num_pushes));
    has_pushes_ = num_pushes > 0;
    OP_REQUIRES(context, num_last_steps == (rule_->has_moments ? num_tables : 0),
                InvalidArgument("rule '", rule, "' with ", num_tables,
                                " tables: wrong number of last_steps, ", num_last_steps));
    OP_REQUIRES(
        context,
        static_cast<int64_t>(table_names_.size()) == num_tables_ &&
            static_cast<int64_t>(weight_decays_.size()) == num_tables_ &&
            static_cast<int64_t>(rounding_seeds_.size()) == num_tables_,
        InvalidArgument("expected ", num_tables_,
                        " table_names, weight_decays and rounding_seeds, got ", table_names_.size(),
                        ", ", weight_decays_.size(), " and ", rounding_seeds_.size()));
  }

  void Compute(OpKernelContext* context) override {
    std::vector<StepSettings> settings;
    OP_REQUIRES_OK(context, ReadSettings(context, &settings));
    TableVariables variables;
    OP_REQUIRES_OK(context, AddVariables(context, &variables));
    OP_REQUIRES_OK(context, variables.LockForWriting(context));

    std::vector<Table> tables;
    std::vector<int64_t> num_rows, dims;
    for (int64_t t = 0; t < num_tables_; ++t) {
      Table table;
      OP_REQUIRES_OK(context, ReadTable(&variables, t, settings[t].hyperparameters, &table));
      tables.push_back(table);
      dims.push_back(table.dim);
      num_rows.push_back(variables.tensor(t)->dim_size(0));
    }
    std::vector<Push> pushes;
    if (has_pushes_) OP_REQUIRES_OK(context, ReadPushes(context, &variables, &pushes));
    int64_t step = settings[0].step;
    for (size_t t = 0; t < pushes.size(); ++t) {
      tables[t].batches = pushes[t].batches;
      step = std::max(step, Counters(&variables, t)[kClock]);
    }
    for (StepSettings& one : settings) one.step = step;
    std::vector<Staleness> staleness;
    OP_REQUIRES_OK(context, ReadPolicies(context, &variables, num_rows, dims, &staleness));
    const Tensor* wake_all;
    OP_REQUIRES_OK(context, context->input("wake_all", &wake_all));
    std::vector<RowStates> states(num_tables_);
    std::vector<bool> is_refresh(num_tables_, false);
    std::vector<PolicyState> states_before;
    for (size_t p = 0; p < policy_tables_.size(); ++p) {
      const int64_t t = policy_tables_[p];
      const Staleness& one = staleness[p];
      tables[t].staleness = &one;
      states_before.push_back(*one.state);
      is_refresh[t] = BeginStep(one.policy, settings[t].step, settings[t].learning_rate,
                                wake_all->scalar<bool>()(), one.state);
      states[t] = {one.row_states, one.entries, static_cast<int64_t>(one.state->num_entries),
                   static_cast<int64_t>(one.state->woken_at), tables[t].batches};
    }
    std::vector<Lookups<Index>> lookups;
    OP_REQUIRES_OK(context, ReadLookups(context, table_names_, num_rows, dims, states, &lookups));

    tensorflow::OpInputList num_lookups;
    OP_REQUIRES_OK(context, context->input_list("num_lookups", &num_lookups));
    for (const Tensor& counted : num_lookups) {
      OP_REQUIRES(context, num_lookups.size() == num_tables_ && counted.NumElements() == 3,
                  InvalidArgument("num_lookups must be [3] for each of ", num_tables_,
                                  " tables or for none, got ", num_lookups.size(), ", one of ",
                                  counted.shape().DebugString()));
    }

    ThreadTeam team = IntraOpTeam(context);
    const ParallelFor parallel_for = team.parallel_for();
    std::unique_ptr<LiveRows> live_rows = pool_.Take();
    const BadLookup bad = live_rows->Find(lookups, settings[0].step, parallel_for);
    absl::Status distinct = absl::OkStatus();
    for (size_t t = 0; t < pushes.size() && bad.kind == BadLookup::kNone; ++t) {
      if (live_rows->counts(t).num_row_updates != lookups[t].num_lookups) {
        distinct = InvalidArgument("table '", table_names_[t], "': the ids of a push repeat");
      }
    }
    if (bad.kind != BadLookup::kNone || !distinct.ok()) {
      for (size_t p = 0; p < staleness.size(); ++p) *staleness[p].state = states_before[p];
    }
    OP_REQUIRES(context, bad.kind == BadLookup::kNone,
                BadLookupError(bad, table_names_[bad.table], num_rows[bad.table]));
    for (int64_t t = 0; t < num_lookups.size(); ++t) {
      const int64_t* counted = num_lookups[t].flat<int64_t>().data();
      live_rows->SetNumLookups(t, counted[0], counted[1], counted[2]);
    }
    OP_REQUIRES_OK(context, distinct);
    // Before UpdateRows, which knows no other counts than those of the lookups that it got.
    std::vector<RowCounts> counts_of_pushes;
    for (size_t t = 0; t < pushes.size(); ++t) {
      counts_of_pushes.push_back(CountPush(pushes[t], live_rows->found(), t));
    }
    if (has_pushes_) live_rows->SetCounts(counts_of_pushes);
    UpdateRows(*rule_, tables, settings, is_refresh, live_rows->found(), parallel_for);

    int64_t num_indices = 0;
    for (int64_t t = 0; t < num_tables_; ++t) {
      const RowCounts& counts = live_rows->counts(t);
      int64_t* counters = Counters(&variables, t);
      if (has_pushes_) {
        counters[kClock] = settings[t].step;
        pushes[t].CountWorker();
      }
      counters[0] += counts.num_lookups;
      counters[1] += counts.num_skipped_lookups;
      counters[2] += counts.num_deferred_lookups;
      counters[3] += counts.num_row_updates;
      counters[4] += counts.num_skipped_row_updates;
      counters[5] += counts.num_deferred_row_updates;
      num_indices += lookups[t].num_lookups;
    }
    pool_.Return(std::move(live_rows), num_indices);
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

  // What a worker sent with the gradients of a table.
  //   batches [num_ids, 2]: batches that a row's gradient is of, and lookups in this batch
  //   counts  [11]: six of RowCounts; pulled rows, cached rows, batches held now, which worker it
  //           is, its number
  //   worker  [5]: its row of worker_counters
  struct Push {
    const int32_t* batches;
    int64_t num_ids;
    const int64_t* counts;
    int64_t* worker;

    void CountWorker() const {
      worker[0] += counts[6];
      worker[1] += counts[7];
      // Another process has taken its place: what it held went with it.
      if (worker[4] != counts[9]) worker[3] += worker[2];
      worker[2] = counts[8];
      worker[4] = counts[9];
    }
  };
  static constexpr int64_t kPushCounts = 11;
  static constexpr int64_t kWorkerCounters = 5;

  absl::Status ReadPushes(OpKernelContext* context, TableVariables* variables,
                          std::vector<Push>* pushes) const {
    tensorflow::OpInputList batches, counts, indices;
    TF_RETURN_IF_ERROR(context->input_list("batches", &batches));
    TF_RETURN_IF_ERROR(context->input_list("push_counts", &counts));
    TF_RETURN_IF_ERROR(context->input_list("indices", &indices));
    for (int64_t t = 0; t < num_tables_; ++t) {
      Tensor* workers = variables->tensor(FirstWorkerCounters() + t);
      if (batches[t].NumElements() != 2 * indices[t].NumElements() ||
          counts[t].NumElements() != kPushCounts || workers->dims() != 2 ||
          workers->dim_size(1) != kWorkerCounters) {
        return InvalidArgument("table '", table_names_[t], "': a push of ",
                               indices[t].NumElements(), " rows has batches ",
                               batches[t].shape().DebugString(), ", counts ",
                               counts[t].shape().DebugString(), " and worker_counters ",
                               workers->shape().DebugString());
      }
      const int64_t* one = counts[t].flat<int64_t>().data();
      if (one[10] < 0 || one[10] >= workers->dim_size(0)) {
        return InvalidArgument("table '", table_names_[t], "': a push of worker ", one[10],
                               ", where there are ", workers->dim_size(0));
      }
      pushes->push_back({batches[t].flat<int32_t>().data(), indices[t].NumElements(), one,
                         workers->flat<int64_t>().data() + one[10] * kWorkerCounters});
    }
    return absl::OkStatus();
  }

  // Adds what became of the pushed rows here to what the worker counted.
  static RowCounts CountPush(const Push& push, const LiveRows::Found& found, int64_t t) {
    RowCounts counts;
    counts.num_lookups = push.counts[0];
    counts.num_skipped_lookups = push.counts[1];
    counts.num_deferred_lookups = push.counts[2];
    counts.num_row_updates = push.counts[3];
    counts.num_skipped_row_updates = push.counts[4] + found.counts[t].num_skipped_row_updates;
    counts.num_deferred_row_updates = push.counts[5];
    int64_t others = 0;
    for (int64_t i = 0; i < push.num_ids; ++i) others += push.batches[2 * i + 1];
    for (const auto* runs : {&found.runs, &found.deferred_runs}) {
      for (const LiveRows::Run& run : *runs) {
        if (run.table != t) continue;
        for (int64_t i = 0; i < run.num_rows; ++i) {
          const int32_t num_lookups = push.batches[2 * run.rows[i].first_lookup + 1];
          others -= num_lookups;
          if (runs != &found.deferred_runs || num_lookups == 0) continue;
          counts.num_deferred_lookups += num_lookups;
          ++counts.num_deferred_row_updates;
        }
      }
    }
    counts.num_skipped_lookups += others;
    return counts;
  }

  // In the order tables, slots, last_steps, changed_rows, counters, row_states, pool_ints,
  // pool_floats, policy_states, worker_counters.
  absl::Status AddVariables(OpKernelContext* context, TableVariables* variables) {
    TF_RETURN_IF_ERROR(
        variables->Add(context, "tables", tensorflow::DT_FLOAT, tensorflow::DT_BFLOAT16));
    TF_RETURN_IF_ERROR(variables->Add(context, "slots", tensorflow::DT_FLOAT));
    TF_RETURN_IF_ERROR(variables->Add(context, "last_steps", tensorflow::DT_INT32));
    TF_RETURN_IF_ERROR(variables->Add(context, "changed_rows", tensorflow::DT_INT32));
    TF_RETURN_IF_ERROR(variables->Add(context, "counters", tensorflow::DT_INT64));
    TF_RETURN_IF_ERROR(variables->Add(context, "row_states", tensorflow::DT_INT32));
    TF_RETURN_IF_ERROR(variables->Add(context, "pool_ints", tensorflow::DT_INT64));
    TF_RETURN_IF_ERROR(variables->Add(context, "pool_floats", tensorflow::DT_FLOAT));
    TF_RETURN_IF_ERROR(variables->Add(context, "policy_states", tensorflow::DT_DOUBLE));
    return variables->Add(context, "worker_counters", tensorflow::DT_INT64);
  }
  int64_t FirstLastSteps() const { return num_tables_ + num_slots_; }
  int64_t FirstChangedRows() const {
    return FirstLastSteps() + (rule_->has_moments ? num_tables_ : 0);
  }
  int64_t FirstCounters() const { return FirstChangedRows() + num_tables_; }
  int64_t FirstRowStates() const { return FirstCounters() + num_tables_; }
  int64_t FirstWorkerCounters() const { return FirstRowStates() + 4 * policy_tables_.size(); }
  int64_t* Counters(TableVariables* variables, int64_t t) const {
    Tensor* counters = variables->tensor(FirstCounters() + t);
    return counters->flat<int64_t>().data();
  }

  // Checks the shapes of table t and of what goes with it.
  absl::Status ReadTable(TableVariables* variables, int64_t t, const double* hyperparameters,
                         Table* table) const {
    Tensor* rows = variables->tensor(t);
    if (rows->dims() != 2) {
      return InvalidArgument("table '", table_names_[t], "': expected [num_rows, dim], got ",
                             rows->shape().DebugString());
    }
    TableVariables::SetMemory(rows, table);
    table->rounding_seed = static_cast<uint32_t>(rounding_seeds_[t]);
    table->dim = rows->dim_size(1);
    table->slot_dim = rule_->slots_per_row ? 1 : table->dim;
    table->num_slots = rule_->num_slots(hyperparameters);
    if (table->num_slots * num_tables_ != num_slots_) {
      return InvalidArgument("rule '", rule_->name, "' has ", table->num_slots,
                             " slots a table, got ", num_slots_, " for ", num_tables_, " tables");
    }
    UseHugePages(const_cast<char*>(rows->tensor_data().data()), rows->TotalBytes());
    for (int s = 0; s < table->num_slots; ++s) {
      Tensor* slot = variables->tensor(num_tables_ + t * table->num_slots + s);
      TF_RETURN_IF_ERROR(CheckSize(t, *slot, rows->dim_size(0) * table->slot_dim));
      table->slots[s] = slot->flat<float>().data();
      UseHugePages(table->slots[s], slot->TotalBytes());
    }
    table->last_steps = nullptr;
    table->staleness = nullptr;
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

  // One Staleness per table with a policy. Checks that `wake_all` and `policies` fit.
  absl::Status ReadPolicies(OpKernelContext* context, TableVariables* variables,
                            const std::vector<int64_t>& num_rows, const std::vector<int64_t>& dims,
                            std::vector<Staleness>* staleness) const {
    const Tensor *policies, *wake_all;
    TF_RETURN_IF_ERROR(context->input("policies", &policies));
    TF_RETURN_IF_ERROR(context->input("wake_all", &wake_all));
    const int64_t num = policy_tables_.size();
    if (policies->NumElements() != num * PolicySettings::kNumFields || wake_all->dims() != 0) {
      return InvalidArgument("expected policies [", num, ", ", PolicySettings::kNumFields,
                             "] and a scalar wake_all, got ", policies->shape().DebugString(),
                             " and ", wake_all->shape().DebugString());
    }
    for (int64_t p = 0; p < num; ++p) {
      const int64_t t = policy_tables_[p], first = FirstRowStates() + p;
      const double* policy = policies->flat<double>().data() + p * PolicySettings::kNumFields;
      staleness->push_back({nullptr, nullptr, nullptr, nullptr, 0, 0, PolicySettings(policy)});
      TF_RETURN_IF_ERROR(
          variables->ReadStaleness({first, first + num, first + 2 * num, first + 3 * num}, policy,
                                   num_rows[t], dims[t], &staleness->back()));
    }
    return absl::OkStatus();
  }

  absl::Status CheckSize(int64_t t, const Tensor& tensor, int64_t num_elements) const {
    if (tensor.NumElements() == num_elements) return absl::OkStatus();
    return InvalidArgument("table '", table_names_[t], "': a variable of the optimizer ",
                           "should have ", num_elements, " elements, and has shape ",
                           tensor.shape().DebugString());
  }

  static constexpr int64_t kNumCounters = 9;
  static constexpr int kClock = 8;  // in the counters: the last step of a push
  bool has_pushes_ = false;
  const RuleInfo* rule_ = nullptr;
  int64_t num_tables_ = 0;
  int64_t num_slots_ = 0;
  std::vector<float> weight_decays_;
  float clip_value_ = 0;
  std::vector<std::string> table_names_;
  std::vector<int64_t> rounding_seeds_;
  std::vector<int64_t> policy_tables_;
  LiveRowsPool pool_;
};

REGISTER_KERNEL_BUILDER(
    Name("Slipstream>ApplyRows").Device(tensorflow::DEVICE_CPU).TypeConstraint<int32_t>("Tindices"),
    ApplyRowsOp<int32_t>);
REGISTER_KERNEL_BUILDER(
    Name("Slipstream>ApplyRows").Device(tensorflow::DEVICE_CPU).TypeConstraint<int64_t>("Tindices"),
    ApplyRowsOp<int64_t>);

}  // namespace slipstream
