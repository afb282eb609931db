#ifndef SLIPSTREAM_TF_TABLE_ARGS_H_
#define SLIPSTREAM_TF_TABLE_ARGS_H_

// The tables of an op: one way to declare, check and read them, for all ops, on a CPU and on a GPU.

#include <string>
#include <vector>

#include "../kernels/staleness.h"
#include "../kernels/update_rows.h"
#include "absl/strings/str_cat.h"
#include "table_variables.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace slipstream {

// The row states and pools of tables, in an op's declaration. Numbers are lists of short strings:
// no attribute has float64, and of a string of 80 characters or more TensorFlow's cache of eager
// kernels compares only the first and last 10.
#define SLIPSTREAM_POOL_INPUTS                       \
  Input("row_states: num_policies * resource")       \
      .Input("pool_ints: num_policies * resource")   \
      .Input("pool_floats: num_policies * resource") \
      .Input("policy_states: num_policies * resource")
#define SLIPSTREAM_POOL_ATTRS \
  Attr("num_policies: int >= 0").Attr("policy_tables: list(int)").Attr("policies: list(string)")
// Tables with all that goes with them, and what a step applies to them.
#define SLIPSTREAM_TABLE_INPUTS                       \
  Input("tables: N * resource")                       \
      .Input("slots: num_slots * resource")           \
      .Input("last_steps: num_last_steps * resource") \
      .Input("changed_rows: N * resource")            \
      .Input("counters: N * resource")                \
      .SLIPSTREAM_POOL_INPUTS.Input("step: int64")    \
      .Input("learning_rate: float")                  \
      .Input("tail_rates: float")                     \
      .Input("tails: float")
#define SLIPSTREAM_TABLE_ATTRS                    \
  Attr("N: int >= 1")                             \
      .Attr("num_slots: int >= 0")                \
      .Attr("num_last_steps: int >= 0")           \
      .SLIPSTREAM_POOL_ATTRS.Attr("rule: string") \
      .Attr("hyperparameters: list(string)")      \
      .Attr("weight_decays: list(float)")         \
      .Attr("table_names: list(string)")          \
      .Attr("rounding_seeds: list(int)")
inline constexpr char kTableDoc[] = R"doc(
slots: Those of the first table in the rule's order, then the second's, and so on.
last_steps: int32 [num_rows] per table, see row_clock.h; none for a rule without moments and weight
  decay.
changed_rows: int32 [ceil(num_rows / 32)] per table; bit r % 32 of word r / 32 is set when row r is
  written.
counters: int64 [num_counters] per table, and of a collection 7 for each field, see schema.h.
row_states, pool_ints, pool_floats, policy_states: Of each table with a policy, see docs/reference/sleeping_rows.md.
step: The number of this step, 1 in the first.
tail_rates: [2], the learning rates that the momentum of the step before and of this one will meet.
tails: [num_tails] of Adam, see update_rules.h; empty for others.
policy_tables: The tables that have a policy.
policies: Of each of these, as many "NAME=NUMBER", see schema.h.
rule: "sgd", "momentum", "adagrad", "row_wise_adagrad", "adam", "rmsprop" or "ftrl".
hyperparameters: Numbers as text, in the rule's order.
weight_decays: Of each table: row -= row * weight_decay * learning_rate in every step.
rounding_seeds: Of each table; for the stochastic rounding of those in bfloat16.
)doc";

// Where the tables are. TensorFlow keeps no int32 variable on a GPU: there last_steps, changed_rows
// and row_states are uint32 with the same bits.
enum class Memory { kHost, kDevice };

// Row states and pools, of some of an op's tables.
class PoolArgs {
 public:
  absl::Status Init(tensorflow::OpKernelConstruction* context, Memory memory, int64_t num_tables);
  absl::Status AddVariables(tensorflow::OpKernelContext* context, TableVariables* variables);
  // While locked: one Staleness for each table that has a policy, checked; `first` is the first
  // variable that AddVariables() added.
  absl::Status Read(TableVariables* variables, int64_t first, const std::vector<int64_t>& num_rows,
                    const std::vector<int64_t>& dims, const std::vector<std::string>& table_names,
                    std::vector<Staleness>* staleness) const;
  const std::vector<int64_t>& tables() const { return tables_; }
  int64_t num_variables() const { return 4 * static_cast<int64_t>(tables_.size()); }

 private:
  Memory memory_ = Memory::kHost;
  std::vector<int64_t> tables_;
  std::vector<PolicySettings> policies_;
};

// An op's tables, while their variables are locked.
struct TableList {
  std::vector<Table> tables;
  std::vector<int64_t> num_rows, dims;
  std::vector<int64_t*> counters;    // [kNumCounters + num_fields * kCountersPerField] each
  std::vector<int64_t> num_fields;   // 0 of a table that is no collection's
  std::vector<Staleness> staleness;  // of tables with a policy, to which these point
};

class TableArgs {
 public:
  absl::Status Init(tensorflow::OpKernelConstruction* context, Memory memory);
  absl::Status AddVariables(tensorflow::OpKernelContext* context, TableVariables* variables);
  // Checks every shape.
  absl::Status Read(TableVariables* variables, TableList* list) const;
  // The step's settings for each table, read in host memory. Null `grad_scales`: all 1.
  absl::Status ReadSettings(tensorflow::OpKernelContext* context, const char* grad_scales,
                            float clip_value, std::vector<StepSettings>* settings) const;
  // Whether step, learning_rate and tail_rates have the right sizes.
  absl::Status CheckSettings(tensorflow::OpKernelContext* context) const;

  const RuleInfo& rule() const { return *rule_; }
  const std::vector<double>& hyperparameters() const { return hyperparameters_; }
  int64_t num_tables() const { return num_tables_; }
  const std::vector<std::string>& names() const { return names_; }
  float weight_decay(int64_t t) const { return weight_decays_[t]; }
  const PoolArgs& pools() const { return pools_; }
  int64_t num_variables() const {
    return num_tables_ * (3 + num_slots_) + num_last_steps_ + pools_.num_variables();
  }

 private:
  absl::Status CheckCounters(int64_t t, const int64_t* counters, int64_t num_fields,
                             int64_t num_rows) const;
  absl::Status CheckSize(int64_t t, const char* what, const tensorflow::Tensor& tensor,
                         int64_t num_elements) const;

  Memory memory_ = Memory::kHost;
  const RuleInfo* rule_ = nullptr;
  std::vector<double> hyperparameters_;
  int64_t num_tables_ = 0, num_slots_ = 0, num_last_steps_ = 0;  // num_slots_: of each table
  std::vector<float> weight_decays_;
  std::vector<std::string> names_;
  std::vector<int64_t> rounding_seeds_;
  PoolArgs pools_;
};

}  // namespace slipstream

#endif  // SLIPSTREAM_TF_TABLE_ARGS_H_
