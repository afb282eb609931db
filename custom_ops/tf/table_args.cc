#include "table_args.h"

#include <cmath>

#include "../kernels/huge_pages.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "kernel_context.h"

namespace slipstream {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

namespace {

// The memory of an integer variable, int32 or uint32.
template <typename To>
To* Bits(Tensor* tensor) {
  return reinterpret_cast<To*>(const_cast<char*>(tensor->tensor_data().data()));
}

tensorflow::DataType RowInt(Memory memory) {
  return memory == Memory::kHost ? tensorflow::DT_INT32 : tensorflow::DT_UINT32;
}

// Reads a number that Python wrote.
absl::Status ParseNumber(absl::string_view text, double* number) {
  if (absl::SimpleAtod(text, number)) return absl::OkStatus();
  return InvalidArgument("expected a number, got '", text, "'");
}

// Reads a policy from `num` fields.
absl::Status ParsePolicy(const std::string* fields, int num, PolicySettings* policy) {
  for (int i = 0; i < num; ++i) {
    const std::pair<std::string, std::string> field = absl::StrSplit(fields[i], '=');
    double number;
    TF_RETURN_IF_ERROR(ParseNumber(field.second, &number));
    if (!policy->Set(field.first, number)) {
      return InvalidArgument("a policy has no field '", field.first, "'");
    }
  }
  if (policy->updates_per_sleep < 1 || policy->max_age < 1 || policy->first_sleep < 1) {
    return InvalidArgument("a policy's updates_per_sleep, max_age and first_sleep must be at ",
                           "least 1");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PoolArgs::Init(OpKernelConstruction* context, Memory memory, int64_t num_tables) {
  memory_ = memory;
  int num_policies;
  std::vector<std::string> fields;
  TF_RETURN_IF_ERROR(context->GetAttr("num_policies", &num_policies));
  TF_RETURN_IF_ERROR(context->GetAttr("policy_tables", &tables_));
  TF_RETURN_IF_ERROR(context->GetAttr("policies", &fields));
  const int num_fields = num_policies == 0 ? 0 : static_cast<int>(fields.size()) / num_policies;
  if (static_cast<int>(tables_.size()) != num_policies ||
      static_cast<int>(fields.size()) != num_policies * num_fields) {
    return InvalidArgument("expected ", num_policies, " policy_tables and policies, got ",
                           tables_.size(), " and ", fields.size(), " fields");
  }
  for (const int64_t t : tables_) {
    if (t < 0 || t >= num_tables) return InvalidArgument("policy_tables: there is no table ", t);
  }
  for (int p = 0; p < num_policies; ++p) {
    policies_.emplace_back();
    TF_RETURN_IF_ERROR(ParsePolicy(fields.data() + p * num_fields, num_fields, &policies_.back()));
  }
  return absl::OkStatus();
}

absl::Status PoolArgs::AddVariables(OpKernelContext* context, TableVariables* variables) {
  TF_RETURN_IF_ERROR(variables->Add(context, "row_states", RowInt(memory_)));
  TF_RETURN_IF_ERROR(variables->Add(context, "pool_ints", tensorflow::DT_INT64));
  TF_RETURN_IF_ERROR(variables->Add(context, "pool_floats", tensorflow::DT_FLOAT));
  return variables->Add(context, "policy_states", tensorflow::DT_DOUBLE);
}

absl::Status PoolArgs::Read(TableVariables* variables, int64_t first,
                            const std::vector<int64_t>& num_rows, const std::vector<int64_t>& dims,
                            const std::vector<std::string>& table_names,
                            std::vector<Staleness>* staleness) const {
  const int64_t num = tables_.size();
  for (int64_t p = 0; p < num; ++p) {
    const int64_t t = tables_[p], dim = dims[t];
    Tensor* row_states = variables->tensor(first + p);
    Tensor* ints = variables->tensor(first + num + p);
    Tensor* floats = variables->tensor(first + 2 * num + p);
    Tensor* state = variables->tensor(first + 3 * num + p);
    const int64_t capacity = ints->dims() == 2 ? ints->dim_size(0) : -1;
    if (row_states->NumElements() != num_rows[t] || capacity < 0 ||
        ints->dim_size(1) != kNumPoolInts || floats->NumElements() != capacity * (2 * dim + 1) ||
        state->NumElements() != kNumPolicyStates) {
      return InvalidArgument("table '", table_names[t], "' [", num_rows[t], ", ", dim,
                             "]: its row states and pool have shapes ",
                             row_states->shape().DebugString(), ", ", ints->shape().DebugString(),
                             ", ", floats->shape().DebugString(), " and ",
                             state->shape().DebugString());
    }
    Staleness one;
    one.row_states = Bits<int32_t>(row_states);
    one.entries = Bits<PoolEntry>(ints);
    one.floats = floats->flat<float>().data();
    one.state = Bits<PolicyState>(state);
    one.capacity = capacity;
    one.dim = dim;
    one.policy = policies_[p];
    if (memory_ == Memory::kHost) {
      const double num_entries = one.state->num_entries;
      if (!(num_entries >= 0 && num_entries <= capacity)) {
        return InvalidArgument("table '", table_names[t], "': a pool of ", capacity,
                               " entries has ", num_entries, " in use; ", kNotRestoredWhole);
      }
      if (!IsWhole(*one.state, capacity)) {
        return InvalidArgument("table '", table_names[t], "': the optimizer's policy state makes ",
                               "no sense; ", kNotRestoredWhole);
      }
    }
    staleness->push_back(one);
  }
  return absl::OkStatus();
}

absl::Status TableArgs::Init(OpKernelConstruction* context, Memory memory) {
  memory_ = memory;
  std::string rule;
  std::vector<std::string> hyperparameters;
  int num_tables, num_slots, num_last_steps;
  TF_RETURN_IF_ERROR(context->GetAttr("N", &num_tables));
  TF_RETURN_IF_ERROR(context->GetAttr("num_slots", &num_slots));
  TF_RETURN_IF_ERROR(context->GetAttr("num_last_steps", &num_last_steps));
  TF_RETURN_IF_ERROR(context->GetAttr("rule", &rule));
  TF_RETURN_IF_ERROR(context->GetAttr("hyperparameters", &hyperparameters));
  TF_RETURN_IF_ERROR(context->GetAttr("weight_decays", &weight_decays_));
  TF_RETURN_IF_ERROR(context->GetAttr("table_names", &names_));
  TF_RETURN_IF_ERROR(context->GetAttr("rounding_seeds", &rounding_seeds_));
  rule_ = FindRule(rule);
  if (rule_ == nullptr) return InvalidArgument("there is no update rule '", rule, "'");
  for (const std::string& text : hyperparameters) {
    hyperparameters_.emplace_back();
    TF_RETURN_IF_ERROR(ParseNumber(text, &hyperparameters_.back()));
  }
  if (static_cast<int>(hyperparameters_.size()) != rule_->num_hyperparameters) {
    return InvalidArgument("rule '", rule, "' has ", rule_->num_hyperparameters,
                           " hyperparameters, got ", hyperparameters_.size());
  }
  num_tables_ = num_tables;
  num_slots_ = rule_->num_slots(hyperparameters_.data());
  num_last_steps_ = num_last_steps;
  if (num_slots != num_slots_ * num_tables) {
    return InvalidArgument("rule '", rule, "' has ", num_slots_, " slots a table, got ", num_slots,
                           " for ", num_tables, " tables");
  }
  bool decays = false;
  for (const float decay : weight_decays_) decays |= decay != 0;
  if (num_last_steps != num_tables && (num_last_steps != 0 || rule_->has_moments || decays)) {
    return InvalidArgument("rule '", rule, "' with ", num_tables,
                           " tables: wrong number of last_steps, ", num_last_steps);
  }
  const auto is_as_long = [&](const auto& list) {
    return static_cast<int>(list.size()) == num_tables;
  };
  if (!is_as_long(names_) || !is_as_long(weight_decays_) || !is_as_long(rounding_seeds_)) {
    return InvalidArgument("expected ", num_tables,
                           " table_names, weight_decays and rounding_seeds, got ", names_.size(),
                           ", ", weight_decays_.size(), " and ", rounding_seeds_.size());
  }
  return pools_.Init(context, memory, num_tables);
}

absl::Status TableArgs::AddVariables(OpKernelContext* context, TableVariables* variables) {
  TF_RETURN_IF_ERROR(
      variables->Add(context, "tables", tensorflow::DT_FLOAT, tensorflow::DT_BFLOAT16));
  TF_RETURN_IF_ERROR(variables->Add(context, "slots", tensorflow::DT_FLOAT));
  TF_RETURN_IF_ERROR(variables->Add(context, "last_steps", RowInt(memory_)));
  TF_RETURN_IF_ERROR(variables->Add(context, "changed_rows", RowInt(memory_)));
  TF_RETURN_IF_ERROR(variables->Add(context, "counters", tensorflow::DT_INT64));
  return pools_.AddVariables(context, variables);
}

absl::Status TableArgs::Read(TableVariables* variables, TableList* list) const {
  const int64_t first_clock = num_tables_ * (1 + num_slots_);
  const int64_t first_changed = first_clock + num_last_steps_;
  for (int64_t t = 0; t < num_tables_; ++t) {
    Tensor* rows = variables->tensor(t);
    if (rows->dims() != 2) {
      return InvalidArgument("table '", names_[t], "': expected [num_rows, dim], got ",
                             rows->shape().DebugString());
    }
    const int64_t num_rows = rows->dim_size(0);
    Table table = {};
    table.num_rows = num_rows;
    if (rows->dtype() == tensorflow::DT_BFLOAT16) {
      table.bfloat16_table = Bits<uint16_t>(rows);
    } else {
      table.table = rows->flat<float>().data();
    }
    table.rounding_seed = static_cast<uint32_t>(rounding_seeds_[t]);
    table.dim = rows->dim_size(1);
    table.slot_dim = rule_->slots_per_row ? 1 : table.dim;
    table.num_slots = static_cast<int>(num_slots_);
    std::vector<Tensor*> large = {rows};
    for (int s = 0; s < table.num_slots; ++s) {
      Tensor* slot = variables->tensor(num_tables_ + t * num_slots_ + s);
      TF_RETURN_IF_ERROR(CheckSize(t, "slot", *slot, num_rows * table.slot_dim));
      table.slots[s] = slot->flat<float>().data();
      large.push_back(slot);
    }
    if (num_last_steps_ > 0) {
      Tensor* last_steps = variables->tensor(first_clock + t);
      TF_RETURN_IF_ERROR(CheckSize(t, "last_steps", *last_steps, num_rows));
      table.last_steps = Bits<int32_t>(last_steps);
    }
    Tensor* changed_rows = variables->tensor(first_changed + t);
    TF_RETURN_IF_ERROR(CheckSize(t, "changed_rows", *changed_rows, (num_rows + 31) / 32));
    table.changed_rows = Bits<uint32_t>(changed_rows);
    Tensor* counters = variables->tensor(first_changed + num_tables_ + t);
    const int64_t num_fields =
        std::max<int64_t>(0, counters->NumElements() - kNumCounters) / kCountersPerField;
    TF_RETURN_IF_ERROR(
        CheckSize(t, "counters", *counters, kNumCounters + num_fields * kCountersPerField));
    if (memory_ == Memory::kHost) {
      TF_RETURN_IF_ERROR(CheckCounters(t, counters->flat<int64_t>().data(), num_fields, num_rows));
    }
    for (Tensor* tensor : large) {
      if (memory_ == Memory::kDevice) break;
      UseHugePages(const_cast<char*>(tensor->tensor_data().data()), tensor->TotalBytes());
    }
    list->tables.push_back(table);
    list->num_rows.push_back(num_rows);
    list->dims.push_back(table.dim);
    list->counters.push_back(counters->flat<int64_t>().data());
    list->num_fields.push_back(num_fields);
  }
  TF_RETURN_IF_ERROR(pools_.Read(variables, first_changed + 2 * num_tables_, list->num_rows,
                                 list->dims, names_, &list->staleness));
  for (size_t p = 0; p < list->staleness.size(); ++p) {
    list->tables[pools_.tables()[p]].staleness = &list->staleness[p];
  }
  return absl::OkStatus();
}

absl::Status TableArgs::CheckSettings(OpKernelContext* context) const {
  const Tensor *step, *learning_rate, *tail_rates, *tails;
  TF_RETURN_IF_ERROR(context->input("step", &step));
  TF_RETURN_IF_ERROR(context->input("learning_rate", &learning_rate));
  TF_RETURN_IF_ERROR(context->input("tail_rates", &tail_rates));
  TF_RETURN_IF_ERROR(context->input("tails", &tails));
  if (step->NumElements() == 1 && learning_rate->NumElements() == 1 &&
      tail_rates->NumElements() == 2 && tails->dims() == 1) {
    return absl::OkStatus();
  }
  return InvalidArgument("step and learning_rate must be scalars, tail_rates [2] and tails ",
                         "[num_tails], got ", step->shape().DebugString(), ", ",
                         learning_rate->shape().DebugString(), ", ",
                         tail_rates->shape().DebugString(), " and ", tails->shape().DebugString());
}

absl::Status TableArgs::ReadSettings(OpKernelContext* context, const char* grad_scales,
                                     float clip_value, std::vector<StepSettings>* settings) const {
  TF_RETURN_IF_ERROR(CheckSettings(context));
  const Tensor *step, *learning_rate, *tail_rates, *tails;
  TF_RETURN_IF_ERROR(context->input("step", &step));
  TF_RETURN_IF_ERROR(context->input("learning_rate", &learning_rate));
  TF_RETURN_IF_ERROR(context->input("tail_rates", &tail_rates));
  TF_RETURN_IF_ERROR(context->input("tails", &tails));
  tensorflow::OpInputList scales;
  if (grad_scales != nullptr) TF_RETURN_IF_ERROR(context->input_list(grad_scales, &scales));
  StepSettings one;
  one.step = step->flat<int64_t>()(0);
  if (one.step < 1) {
    return InvalidArgument("the number of a step must be at least 1, got ", one.step,
                           ": the optimizer's `iterations` is negative");
  }
  if (one.step > kMostSteps) {
    return InvalidArgument("the number of a step must be at most 2^61, got ", one.step,
                           ": the optimizer's `iterations` makes no sense. No row was changed.");
  }
  one.learning_rate = learning_rate->flat<float>()(0);
  if (!std::isfinite(one.learning_rate)) {
    return InvalidArgument("the learning rate is ", one.learning_rate,
                           ": set a finite one. No row was changed.");
  }
  one.tail_rates[0] = tail_rates->flat<float>()(0);
  one.tail_rates[1] = tail_rates->flat<float>()(1);
  one.tails = tails->flat<float>().data();
  one.num_tails = tails->NumElements();
  one.clip_value = clip_value;
  one.hyperparameters = hyperparameters_.data();
  for (int64_t t = 0; t < num_tables_; ++t) {
    if (grad_scales != nullptr) {
      if (scales[t].NumElements() != 1) {
        return InvalidArgument("grad_scales must be scalars, got ",
                               scales[t].shape().DebugString());
      }
      one.grad_scale = scales[t].flat<float>()(0);
    }
    one.weight_decay = weight_decays_[t];
    settings->push_back(one);
  }
  return absl::OkStatus();
}

// Checks those of a table's counters that decide something.
absl::Status TableArgs::CheckCounters(int64_t t, const int64_t* counters, int64_t num_fields,
                                      int64_t num_rows) const {
  bool is_whole = 0 <= counters[kPushStep] && counters[kPushStep] <= kMostSteps;
  const int64_t* ends = counters + kNumCounters;
  for (int64_t f = 0, begin = 0; f < num_fields; ++f) {
    const int64_t end = ends[f * kCountersPerField];
    is_whole &= begin <= end && end <= num_rows && (f + 1 < num_fields || end == num_rows);
    begin = end;
  }
  if (is_whole) return absl::OkStatus();
  return InvalidArgument("table '", names_[t], "': the optimizer's counters make no sense; ",
                         kNotRestoredWhole);
}

absl::Status TableArgs::CheckSize(int64_t t, const char* what, const Tensor& tensor,
                                  int64_t num_elements) const {
  if (tensor.NumElements() == num_elements) return absl::OkStatus();
  return InvalidArgument("table '", names_[t], "': ", what, " of the optimizer should have ",
                         num_elements, " elements, and has shape ", tensor.shape().DebugString());
}

}  // namespace slipstream
