// ResetRows: makes rows of a table as if they had never been trained.
#include <algorithm>
#include <cstring>

#include "kernel_context.h"
#include "table_args.h"
#include "table_variables.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace slipstream {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

REGISTER_OP("Slipstream>ResetRows")
    .Input("table: resource")
    .Input("slots: num_slots * resource")
    .Input("last_steps: num_last_steps * resource")
    .Input("changed_rows: resource")
    .SLIPSTREAM_POOL_INPUTS.Input("local_held: num_local_held * resource")
    .Input("rows: int64")
    .Input("values: T")
    .Attr("T: {float, bfloat16}")
    .Attr("num_slots: int >= 0")
    .Attr("num_last_steps: int >= 0")
    .Attr("num_local_held: int >= 0")
    .SLIPSTREAM_POOL_ATTRS.Attr("slot_values: list(float)")
    .Attr("table_name: string")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext*) { return absl::OkStatus(); })
    .Doc(R"doc(
Gives rows new values, and the state of rows that were never trained; they are marked as changed.

Rows that are popular are so no more, and what is held of them is gone.

rows: [num], in [0, num_rows); may repeat: the last of each counts.
values: [num, dim].
slot_values: [num_slots], what every element of a slot has at first.
)doc");

class ResetRowsOp : public OpKernel {
 public:
  explicit ResetRowsOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("num_slots", &num_slots_));
    OP_REQUIRES_OK(context, context->GetAttr("num_last_steps", &num_last_steps_));
    OP_REQUIRES_OK(context, context->GetAttr("num_local_held", &num_local_held_));
    OP_REQUIRES_OK(context, context->GetAttr("slot_values", &slot_values_));
    OP_REQUIRES_OK(context, context->GetAttr("table_name", &name_));
    OP_REQUIRES_OK(context, pools_.Init(context, Memory::kHost, 1));
    OP_REQUIRES(context,
                static_cast<int>(slot_values_.size()) == num_slots_ && num_last_steps_ <= 1 &&
                    num_local_held_ <= 1 && pools_.tables().size() <= 1,
                InvalidArgument("table '", name_, "': ResetRows is about one table"));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor *rows, *values;
    OP_REQUIRES_OK(context, context->input("rows", &rows));
    OP_REQUIRES_OK(context, context->input("values", &values));
    TableVariables variables;
    OP_REQUIRES_OK(
        context, variables.Add(context, tensorflow::HandleFromInput(context, 0), values->dtype()));
    OP_REQUIRES_OK(context, variables.Add(context, "slots", tensorflow::DT_FLOAT));
    OP_REQUIRES_OK(context, variables.Add(context, "last_steps", tensorflow::DT_INT32));
    OP_REQUIRES_OK(context, variables.Add(context,
                                          tensorflow::HandleFromInput(
                                              context, 1 + num_slots_ + num_last_steps_),
                                          tensorflow::DT_INT32));
    OP_REQUIRES_OK(context, pools_.AddVariables(context, &variables));
    OP_REQUIRES_OK(context, variables.Add(context, "local_held", tensorflow::DT_FLOAT));
    OP_REQUIRES_OK(context, variables.LockForWriting(context));

    Tensor* table = variables.tensor(0);
    const int64_t num = rows->NumElements();
    OP_REQUIRES(context,
                table->dims() == 2 && rows->dims() == 1 && values->dims() == 2 &&
                    values->dim_size(0) == num && values->dim_size(1) == table->dim_size(1),
                InvalidArgument("table '", name_, "' ", table->shape().DebugString(), ": got ",
                                rows->shape().DebugString(), " rows and values ",
                                values->shape().DebugString()));
    const int64_t num_rows = table->dim_size(0), dim = table->dim_size(1);
    const int64_t* first = rows->flat<int64_t>().data();
    for (int64_t i = 0; i < num; ++i) {
      OP_REQUIRES(context, 0 <= first[i] && first[i] < num_rows,
                  InvalidArgument("table '", name_, "': row ", first[i], " is not in [0, ",
                                  num_rows, "). No row was changed."));
    }
    std::vector<Staleness> staleness;
    const int64_t pool = 2 + num_slots_ + num_last_steps_;
    OP_REQUIRES_OK(context, pools_.Read(&variables, pool, {num_rows}, {dim}, {name_}, &staleness));
    for (const Staleness& one : staleness) {
      const int64_t bad_entry = CheckPool(one, num_rows);
      OP_REQUIRES(context, bad_entry < 0, BadEntryError(bad_entry, name_));
    }
    float* local_held = nullptr;
    if (num_local_held_ > 0) {
      Tensor* held = variables.tensor(pool + pools_.num_variables());
      OP_REQUIRES(context, !staleness.empty() && held->NumElements() == staleness[0].capacity * dim,
                  InvalidArgument("table '", name_, "': what is held has shape ",
                                  held->shape().DebugString()));
      local_held = held->flat<float>().data();
    }
    for (int s = 0; s < num_slots_; ++s) {
      const int64_t size = variables.tensor(1 + s)->NumElements();
      OP_REQUIRES_OK(context, CheckSize(*variables.tensor(1 + s),
                                        size == num_rows ? num_rows : num_rows * dim));
    }
    Tensor* changed_rows = variables.tensor(1 + num_slots_ + num_last_steps_);
    OP_REQUIRES_OK(context, CheckSize(*changed_rows, (num_rows + 31) / 32));
    if (num_last_steps_ > 0) {
      OP_REQUIRES_OK(context, CheckSize(*variables.tensor(1 + num_slots_), num_rows));
    }
    // Nothing fails from here on.
    const int64_t row_bytes = table->TotalBytes() / std::max<int64_t>(1, num_rows);
    char* to = Data<char>(table);
    for (int64_t i = 0; i < num; ++i) {
      std::memcpy(to + first[i] * row_bytes, values->tensor_data().data() + i * row_bytes,
                  row_bytes);
    }
    for (int s = 0; s < num_slots_; ++s) {
      Tensor* slot = variables.tensor(1 + s);
      const int64_t slot_dim = slot->NumElements() / std::max<int64_t>(1, num_rows);
      float* elements = slot->flat<float>().data();
      for (int64_t i = 0; i < num; ++i) {
        std::fill_n(elements + first[i] * slot_dim, slot_dim, slot_values_[s]);
      }
    }
    if (num_last_steps_ > 0) {
      Tensor* last_steps = variables.tensor(1 + num_slots_);
      for (int64_t i = 0; i < num; ++i) last_steps->flat<int32_t>()(first[i]) = 0;
    }
    uint32_t* bits = Data<uint32_t>(changed_rows);
    for (int64_t i = 0; i < num; ++i) bits[first[i] / 32] |= 1u << (first[i] % 32);
    for (const Staleness& one : staleness) {
      for (int64_t i = 0; i < num; ++i) LeavePool(one, first[i], local_held);
    }
  }

 private:
  template <typename T>
  static T* Data(Tensor* tensor) {
    return reinterpret_cast<T*>(const_cast<char*>(tensor->tensor_data().data()));
  }
  absl::Status CheckSize(const Tensor& tensor, int64_t num_elements) const {
    if (tensor.NumElements() == num_elements) return absl::OkStatus();
    return InvalidArgument("table '", name_, "': a variable of the optimizer should have ",
                           num_elements, " elements, and has shape ", tensor.shape().DebugString());
  }

  int num_slots_ = 0, num_last_steps_ = 0, num_local_held_ = 0;
  std::vector<float> slot_values_;
  std::string name_;
  PoolArgs pools_;
};

REGISTER_KERNEL_BUILDER(Name("Slipstream>ResetRows").Device(tensorflow::DEVICE_CPU), ResetRowsOp);

}  // namespace slipstream
