// ApplyRows on a GPU. Every input lies in the device's memory, so that a step waits for nothing;
// what is bad in a batch is therefore known, and told, when a later step begins.
//
// TensorFlow keeps no int32 variable on a GPU: last_steps, changed_rows and row_states are uint32
// with the same bits.
#include <string>
#include <vector>

#include "../kernels/gpu_step.h"
#include "../kernels/update_rows.h"
#include "gpu_context.h"
#include "kernel_context.h"
#include "table_variables.h"

namespace slipstream {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

template <typename Index>
class ApplyRowsGpuOp : public OpKernel {
 public:
  explicit ApplyRowsGpuOp(OpKernelConstruction* context) : OpKernel(context) {
    std::string rule;
    int num_tables, num_slots, num_last_steps, num_policies;
    OP_REQUIRES_OK(context, context->GetAttr("rule", &rule));
    OP_REQUIRES_OK(context, context->GetAttr("weight_decays", &weight_decays_));
    OP_REQUIRES_OK(context, context->GetAttr("clip_value", &clip_value_));
    OP_REQUIRES_OK(context, context->GetAttr("table_names", &table_names_));
    OP_REQUIRES_OK(context, context->GetAttr("rounding_seeds", &rounding_seeds_));
    OP_REQUIRES_OK(context, context->GetAttr("policy_tables", &policy_tables_));
    OP_REQUIRES_OK(context, context->GetAttr("N", &num_tables));
    OP_REQUIRES_OK(context, context->GetAttr("num_slots", &num_slots));
    OP_REQUIRES_OK(context, context->GetAttr("num_last_steps", &num_last_steps));
    OP_REQUIRES_OK(context, context->GetAttr("num_policies", &num_policies));
    rule_ = FindRule(rule);
    OP_REQUIRES(context, rule_ != nullptr, InvalidArgument("there is no update rule '", rule, "'"));
    num_tables_ = num_tables;
    num_slots_ = num_slots / num_tables;
    const bool fits = num_slots % num_tables == 0 && num_slots_ <= kMaxSlots &&
                      num_last_steps == (rule_->has_moments ? num_tables : 0) &&
                      static_cast<int>(policy_tables_.size()) == num_policies &&
                      static_cast<int>(table_names_.size()) == num_tables &&
                      static_cast<int>(weight_decays_.size()) == num_tables &&
                      static_cast<int>(rounding_seeds_.size()) == num_tables;
    OP_REQUIRES(context, fits,
                InvalidArgument("rule '", rule, "' with ", num_tables, " tables: the numbers of ",
                                "slots, last_steps, policy_tables, table_names, weight_decays or ",
                                "rounding_seeds are wrong"));
    for (const int64_t t : policy_tables_) {
      OP_REQUIRES(context, 0 <= t && t < num_tables,
                  InvalidArgument("policy_tables: there is no table ", t));
    }
  }

  void Compute(OpKernelContext* context) override {
    gpu::Report* report;
    OP_REQUIRES_OK(context, FindReport(context, table_names_, &report));
    CUstream_st* stream = StreamOf(context);
    gpu::StepInputs inputs;
    OP_REQUIRES_OK(context, ReadInputs(context, &inputs));
    TableVariables variables;
    OP_REQUIRES_OK(context, AddVariables(context, &variables));
    const auto copy = [stream](const Tensor& from, Tensor* to) {
      return GpuStatus(gpu::CopyBytes(const_cast<char*>(to->tensor_data().data()),
                                      from.tensor_data().data(), from.TotalBytes(), stream),
                       "copying a variable");
    };
    OP_REQUIRES_OK(context, variables.LockForWriting(context, copy));
    std::vector<gpu::TableStep<Index>> tables;
    OP_REQUIRES_OK(context, ReadTables(context, &variables, &tables));

    const BadLookup bad = gpu::TakeReport(report);
    OP_REQUIRES(context, bad.kind == BadLookup::kNone, EarlierError(bad, tables));
    size_t num_bytes;
    OP_REQUIRES_OK(context,
                   GpuStatus(gpu::WorkspaceBytes(tables, &num_bytes), "the workspace's size"));
    Tensor workspace;
    OP_REQUIRES_OK(context, AllocateWorkspace(context, num_bytes, &workspace));
    OP_REQUIRES_OK(
        context, GpuStatus(gpu::ApplyStep(*rule_, tables, inputs, workspace.flat<uint8_t>().data(),
                                          report, stream),
                           "ApplyRows"));
  }

 private:
  // The error of a step before this one, which did nothing; nor does this one.
  absl::Status EarlierError(const BadLookup& bad,
                            const std::vector<gpu::TableStep<Index>>& tables) const {
    const absl::Status error =
        BadLookupError(bad, table_names_[bad.table], tables[bad.table].num_rows);
    return InvalidArgument("In an earlier step, seen on the GPU: ", error.message());
  }

  absl::Status ReadInputs(OpKernelContext* context, gpu::StepInputs* inputs) const {
    const Tensor *step, *learning_rate, *hyperparameters, *wake_all;
    TF_RETURN_IF_ERROR(context->input("step", &step));
    TF_RETURN_IF_ERROR(context->input("learning_rate", &learning_rate));
    TF_RETURN_IF_ERROR(context->input("hyperparameters", &hyperparameters));
    TF_RETURN_IF_ERROR(context->input("wake_all", &wake_all));
    if (step->NumElements() != 1 || learning_rate->NumElements() != 1 ||
        wake_all->NumElements() != 1 ||
        hyperparameters->NumElements() != rule_->num_hyperparameters) {
      return InvalidArgument(
          "step, learning_rate and wake_all must be scalars, and rule '", rule_->name, "' has ",
          rule_->num_hyperparameters, " hyperparameters; got ", step->shape().DebugString(), ", ",
          learning_rate->shape().DebugString(), ", ", wake_all->shape().DebugString(), " and ",
          hyperparameters->shape().DebugString());
    }
    *inputs = {step->flat<int64_t>().data(), learning_rate->flat<float>().data(),
               hyperparameters->flat<double>().data(), wake_all->flat<bool>().data(), clip_value_};
    return absl::OkStatus();
  }

  // In the order of ApplyRowsOp.
  absl::Status AddVariables(OpKernelContext* context, TableVariables* variables) const {
    TF_RETURN_IF_ERROR(
        variables->Add(context, "tables", tensorflow::DT_FLOAT, tensorflow::DT_BFLOAT16));
    TF_RETURN_IF_ERROR(variables->Add(context, "slots", tensorflow::DT_FLOAT));
    TF_RETURN_IF_ERROR(variables->Add(context, "last_steps", tensorflow::DT_UINT32));
    TF_RETURN_IF_ERROR(variables->Add(context, "changed_rows", tensorflow::DT_UINT32));
    TF_RETURN_IF_ERROR(variables->Add(context, "counters", tensorflow::DT_INT64));
    TF_RETURN_IF_ERROR(variables->Add(context, "row_states", tensorflow::DT_UINT32));
    TF_RETURN_IF_ERROR(variables->Add(context, "pool_ints", tensorflow::DT_INT64));
    TF_RETURN_IF_ERROR(variables->Add(context, "pool_floats", tensorflow::DT_FLOAT));
    return variables->Add(context, "policy_states", tensorflow::DT_DOUBLE);
  }

  absl::Status ReadTables(OpKernelContext* context, TableVariables* variables,
                          std::vector<gpu::TableStep<Index>>* tables) const {
    tensorflow::OpInputList grad_scales, num_lookups;
    TF_RETURN_IF_ERROR(context->input_list("grad_scales", &grad_scales));
    TF_RETURN_IF_ERROR(context->input_list("num_lookups", &num_lookups));
    tensorflow::OpInputList pushes;
    TF_RETURN_IF_ERROR(context->input_list("push_counts", &pushes));
    if (pushes.size() > 0) {
      return InvalidArgument(
          "workers' pushes are applied on a CPU: place parameter servers' tables ", "there");
    }
    for (const Tensor& counted : num_lookups) {
      if (num_lookups.size() == num_tables_ && counted.NumElements() == 3) continue;
      return InvalidArgument("num_lookups must be [3] for each of ", num_tables_,
                             " tables or for none, got ", num_lookups.size(), ", one of ",
                             counted.shape().DebugString());
    }
    std::vector<int64_t> num_rows, dims;
    for (int64_t t = 0; t < num_tables_; ++t) {
      gpu::TableStep<Index> one = {};
      TF_RETURN_IF_ERROR(ReadTable(variables, t, &one));
      if (grad_scales[t].NumElements() != 1) {
        return InvalidArgument("grad_scales must be scalars, got ",
                               grad_scales[t].shape().DebugString());
      }
      one.grad_scale = grad_scales[t].flat<float>().data();
      one.weight_decay = weight_decays_[t];
      if (num_lookups.size() > 0) one.counted = num_lookups[t].flat<int64_t>().data();
      num_rows.push_back(one.num_rows);
      dims.push_back(one.table.dim);
      tables->push_back(one);
    }
    TF_RETURN_IF_ERROR(ReadPools(context, variables, tables));
    std::vector<Lookups<Index>> lookups;
    const std::vector<RowStates> no_states(num_tables_);
    TF_RETURN_IF_ERROR(ReadLookups(context, table_names_, num_rows, dims, no_states, &lookups));
    for (int64_t t = 0; t < num_tables_; ++t) {
      (*tables)[t].ids = lookups[t].ids;
      (*tables)[t].grads = lookups[t].grads;
      (*tables)[t].num_lookups = lookups[t].num_lookups;
    }
    return absl::OkStatus();
  }

  absl::Status ReadTable(TableVariables* variables, int64_t t, gpu::TableStep<Index>* one) const {
    Tensor* rows = variables->tensor(t);
    if (rows->dims() != 2) {
      return InvalidArgument("table '", table_names_[t], "': expected [num_rows, dim], got ",
                             rows->shape().DebugString());
    }
    Table& table = one->table;
    one->num_rows = rows->dim_size(0);
    TableVariables::SetMemory(rows, &table);
    table.rounding_seed = static_cast<uint32_t>(rounding_seeds_[t]);
    table.dim = rows->dim_size(1);
    table.slot_dim = rule_->slots_per_row ? 1 : table.dim;
    table.num_slots = static_cast<int>(num_slots_);
    int64_t next = num_tables_;
    for (int s = 0; s < table.num_slots; ++s) {
      Tensor* slot = variables->tensor(next + t * num_slots_ + s);
      TF_RETURN_IF_ERROR(CheckSize(t, *slot, one->num_rows * table.slot_dim));
      table.slots[s] = slot->flat<float>().data();
    }
    next += num_tables_ * num_slots_;
    if (rule_->has_moments) {
      Tensor* last_steps = variables->tensor(next + t);
      TF_RETURN_IF_ERROR(CheckSize(t, *last_steps, one->num_rows));
      table.last_steps = reinterpret_cast<int32_t*>(last_steps->flat<uint32_t>().data());
      next += num_tables_;
    }
    Tensor* changed_rows = variables->tensor(next + t);
    TF_RETURN_IF_ERROR(CheckSize(t, *changed_rows, (one->num_rows + 31) / 32));
    table.changed_rows = changed_rows->flat<uint32_t>().data();
    Tensor* counters = variables->tensor(next + num_tables_ + t);
    TF_RETURN_IF_ERROR(CheckSize(t, *counters, kNumCounters));
    one->counters = counters->flat<int64_t>().data();
    return absl::OkStatus();
  }

  absl::Status ReadPools(OpKernelContext* context, TableVariables* variables,
                         std::vector<gpu::TableStep<Index>>* tables) const {
    const Tensor* policies;
    TF_RETURN_IF_ERROR(context->input("policies", &policies));
    const int64_t num = policy_tables_.size();
    if (policies->NumElements() != num * PolicySettings::kNumFields) {
      return InvalidArgument("expected policies [", num, ", ", PolicySettings::kNumFields,
                             "], got ", policies->shape().DebugString());
    }
    const int64_t first = num_tables_ * (num_slots_ + 3 + static_cast<int64_t>(rule_->has_moments));
    for (int64_t p = 0; p < num; ++p) {
      gpu::TableStep<Index>& one = (*tables)[policy_tables_[p]];
      const auto variable = [&](int64_t i) -> const Tensor& {
        return *variables->tensor(first + i * num + p);
      };
      TF_RETURN_IF_ERROR(ReadPool(variable(0), variable(1), variable(2), variable(3), one.num_rows,
                                  one.table.dim, &one.pool));
      one.pool.policy = policies->flat<double>().data() + p * PolicySettings::kNumFields;
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
  const RuleInfo* rule_ = nullptr;
  int64_t num_tables_ = 0;
  int64_t num_slots_ = 0;  // of each table
  std::vector<float> weight_decays_;
  float clip_value_ = 0;
  std::vector<std::string> table_names_;
  std::vector<int64_t> rounding_seeds_;
  std::vector<int64_t> policy_tables_;
};

#define SLIPSTREAM_REGISTER(Index)                                    \
  REGISTER_KERNEL_BUILDER(Name("Slipstream>ApplyRows")                \
                              .SLIPSTREAM_ON_GPU.HostMemory("tables") \
                              .HostMemory("slots")                    \
                              .HostMemory("last_steps")               \
                              .HostMemory("changed_rows")             \
                              .HostMemory("counters")                 \
                              .HostMemory("row_states")               \
                              .HostMemory("pool_ints")                \
                              .HostMemory("pool_floats")              \
                              .HostMemory("policy_states")            \
                              .TypeConstraint<Index>("Tindices"),     \
                          ApplyRowsGpuOp<Index>)
SLIPSTREAM_REGISTER(int32_t);
SLIPSTREAM_REGISTER(int64_t);
#undef SLIPSTREAM_REGISTER

}  // namespace slipstream
