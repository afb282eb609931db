// PullRows: rows of a table on a parameter server, and for how long they sleep.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "../kernels/gather_rows.h"
#include "../kernels/rounding.h"
#include "../kernels/row_cache.h"
#include "kernel_context.h"
#include "table_args.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace slipstream {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

REGISTER_OP("Slipstream>PullRows")
    .Input("table: resource")
    .SLIPSTREAM_POOL_INPUTS.Input("ids: int32")
    .Input("hashes: int64")
    .Input("step: int64")
    .Output("rows: float")
    .Output("sleeps: int32")
    .SLIPSTREAM_POOL_ATTRS.Attr("num_rows: int >= 1")
    .Attr("dim: int >= 1")
    .Attr("to_bfloat16: bool = false")
    .Attr("table_name: string")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      int dim;
      TF_RETURN_IF_ERROR(c->GetAttr("dim", &dim));
      c->set_output(0, c->Matrix(c->UnknownDim(), dim));
      c->set_output(1, c->Vector(c->UnknownDim()));
      return absl::OkStatus();
    })
    .Doc(R"doc(
Rows of a table, and how long each sleeps.

num_policies: 1 where the table has a policy, else 0.
num_rows, dim: The table's shape.
to_bfloat16: Whether rows are rounded to values that bfloat16 has.
ids: [num] in [0, num_rows).
hashes: [num_known], of the worker's values of the last of these rows; only with a policy.
step: The number of this step.
rows: [num - num_same, dim]: without those that are what the worker has.
sleeps: [num]. The low 20 bits: steps from this one until the row may change, 0 where it is live; 11
  more: the batches whose gradients a worker may hold until then, 0 where they are skipped; the
  highest: whether the row is what the worker has. Empty without a policy.
)doc");

class PullRowsOp : public OpKernel {
 public:
  explicit PullRowsOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("table_name", &table_name_));
    OP_REQUIRES_OK(context, context->GetAttr("to_bfloat16", &to_bfloat16_));
    OP_REQUIRES_OK(context, pools_.Init(context, Memory::kHost, 1));
  }

  void Compute(OpKernelContext* context) override {
    TableVariables variables;
    OP_REQUIRES_OK(context, variables.Add(context, tensorflow::HandleFromInput(context, 0),
                                          tensorflow::DT_FLOAT));
    OP_REQUIRES_OK(context, pools_.AddVariables(context, &variables));
    variables.LockForReading();
    const Tensor& table = *variables.tensor(0);
    const Tensor *ids_tensor, *hashes, *step_tensor;
    OP_REQUIRES_OK(context, context->input("ids", &ids_tensor));
    OP_REQUIRES_OK(context, context->input("hashes", &hashes));
    OP_REQUIRES_OK(context, context->input("step", &step_tensor));
    OP_REQUIRES(
        context, table.dims() == 2 && ids_tensor->dims() == 1 && step_tensor->NumElements() == 1,
        InvalidArgument("table '", table_name_, "': expected a table [num_rows, dim], ids [num] ",
                        "and a scalar step, got ", table.shape().DebugString(), ", ",
                        ids_tensor->shape().DebugString(), " and ",
                        step_tensor->shape().DebugString()));
    const int64_t num_rows = table.dim_size(0), dim = table.dim_size(1);
    const int64_t num = ids_tensor->NumElements(), step = step_tensor->flat<int64_t>()(0);
    const int32_t* ids = ids_tensor->flat<int32_t>().data();
    const int64_t num_policies = pools_.tables().size(), num_known = hashes->NumElements();
    OP_REQUIRES(context, num_known <= num * num_policies,
                InvalidArgument("table '", table_name_, "': ", num_known, " of ", num,
                                " rows are known", num_policies == 0 ? ", without a policy" : ""));
    std::vector<Staleness> read;
    if (num_policies > 0) {
      OP_REQUIRES_OK(context, pools_.Read(&variables, 1, {num_rows}, {dim}, {table_name_}, &read));
    }
    Tensor* sleeps;
    OP_REQUIRES_OK(context,
                   context->allocate_output(1, TensorShape({num_policies * num}), &sleeps));
    for (int64_t i = 0; i < num; ++i) {
      OP_REQUIRES(context, 0 <= ids[i] && ids[i] < num_rows,
                  InvalidArgument("table '", table_name_, "': id ", ids[i], " at position ", i,
                                  " is not in [0, ", num_rows, ")"));
      if (num_policies == 0) continue;
      sleeps->flat<int32_t>()(i) = SleepOf(read[0], ids[i], step).Packed();
    }
    // Of the known rows only those that are not what the worker has.
    const float* table_rows = table.flat<float>().data();
    std::vector<int32_t> changed;
    std::vector<float> rounded(dim);
    for (int64_t i = num - num_known; i < num; ++i) {
      const float* row = table_rows + ids[i] * dim;
      if (to_bfloat16_) {
        Round(row, dim, rounded.data());
        row = rounded.data();
      }
      if (RowHash(row, dim) == hashes->flat<int64_t>()(i - (num - num_known))) {
        sleeps->flat<int32_t>()(i) |= Sleep::kSameBit;
      } else {
        changed.push_back(ids[i]);
      }
    }
    const int64_t num_unknown = num - num_known, num_changed = changed.size();
    Tensor* rows;
    OP_REQUIRES_OK(
        context, context->allocate_output(0, TensorShape({num_unknown + num_changed, dim}), &rows));
    float* to = rows->flat<float>().data();
    ThreadTeam team = IntraOpTeam(context);
    const auto gather = [&](const int32_t* of, int64_t num_of, float* first) {
      GatherRows(table.tensor_data().data(), num_rows, dim * sizeof(float), of, num_of,
                 reinterpret_cast<char*>(first), team.parallel_for());
    };
    gather(ids, num_unknown, to);
    gather(changed.data(), num_changed, to + num_unknown * dim);
    if (to_bfloat16_) Round(to, rows->NumElements(), to);
  }

 private:
  // To the nearest of the values that bfloat16 has, to the even one of two.
  static void Round(const float* from, int64_t num, float* to) {
    for (int64_t i = 0; i < num; ++i) {
      uint32_t bits;
      std::memcpy(&bits, from + i, sizeof(bits));
      to[i] = FromBfloat16(ToBfloat16(from[i], 0x7fffu + (bits >> 16 & 1)));
    }
  }

  Sleep SleepOf(const Staleness& staleness, int64_t row, int64_t step) const {
    const int32_t row_state = staleness.row_states[row];
    const int64_t index = -1 - static_cast<int64_t>(row_state);
    if (row_state >= 0 || index >= staleness.state->num_entries) return {};
    const PoolEntry& entry = staleness.entries[index];
    if (!IsOf(entry, row)) return {};  // a push is refused, with the reason
    const RowKind kind = KindOf(entry, step, static_cast<int64_t>(staleness.state->woken_at));
    if (kind == RowKind::kLive) return {};
    int64_t wake_step = entry.wake_step;
    // In a refresh every row is live.
    if (const int64_t every = staleness.policy.refresh_every; every > 0) {
      if (step % every == 0) return {};
      wake_step = std::min(wake_step, (step / every + 1) * every);
    }
    return {wake_step - step, kind == RowKind::kSkipped ? 0 : entry.period - 1};
  }

  std::string table_name_;
  bool to_bfloat16_ = false;
  PoolArgs pools_;
};

REGISTER_KERNEL_BUILDER(Name("Slipstream>PullRows").Device(tensorflow::DEVICE_CPU), PullRowsOp);

}  // namespace slipstream
