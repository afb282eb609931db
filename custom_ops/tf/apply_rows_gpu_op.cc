// ApplyRows on a GPU. Every input lies in the device's memory, so that a step waits for nothing;
// what is bad in a batch is therefore known, and told, when a later step begins.
#include <vector>

#include "../kernels/gpu_step.h"
#include "gpu_tables.h"

namespace slipstream {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

template <typename Index>
class ApplyRowsGpuOp : public OpKernel {
 public:
  explicit ApplyRowsGpuOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, args_.Init(context, Memory::kDevice));
    OP_REQUIRES_OK(context, context->GetAttr("clip_value", &clip_value_));
  }

  void Compute(OpKernelContext* context) override {
    GpuTables<Index> gpu_tables;
    OP_REQUIRES_OK(context, gpu_tables.Read(context, &args_, clip_value_));
    std::vector<gpu::TableStep<Index>>& tables = gpu_tables.tables;
    OP_REQUIRES_OK(context, ReadSteps(context, gpu_tables.list, &tables));
    Tensor workspace;
    OP_REQUIRES_OK(context, gpu_tables.AllocateWorkspace(context, &workspace));
    OP_REQUIRES_OK(context, GpuStatus(gpu::ApplyStep(args_.rule(), tables, gpu_tables.inputs,
                                                     workspace.flat<uint8_t>().data(),
                                                     gpu_tables.report, StreamOf(context)),
                                      "ApplyRows"));
  }

 private:
  // What is looked up in each table.
  absl::Status ReadSteps(OpKernelContext* context, const TableList& list,
                         std::vector<gpu::TableStep<Index>>* tables) const {
    tensorflow::OpInputList grad_scales, num_lookups;
    TF_RETURN_IF_ERROR(context->input_list("grad_scales", &grad_scales));
    TF_RETURN_IF_ERROR(context->input_list("num_lookups", &num_lookups));
    for (const Tensor& counted : num_lookups) {
      if (num_lookups.size() == args_.num_tables() && counted.NumElements() == 3) continue;
      return InvalidArgument("num_lookups must be [3] for each of ", args_.num_tables(),
                             " tables or for none, got ", num_lookups.size(), ", one of ",
                             counted.shape().DebugString());
    }
    tensorflow::OpInputList bags;
    TF_RETURN_IF_ERROR(context->input_list("bags", &bags));
    if (bags.size() > 0) return InvalidArgument("bags are not supported on a GPU");
    std::vector<Lookups<Index>> lookups;
    const std::vector<RowStates> no_states(args_.num_tables());
    TF_RETURN_IF_ERROR(
        ReadLookups(context, args_.names(), list.num_rows, list.dims, no_states, &lookups));
    for (int64_t t = 0; t < args_.num_tables(); ++t) {
      gpu::TableStep<Index>& one = (*tables)[t];
      if (grad_scales[t].NumElements() != 1) {
        return InvalidArgument("grad_scales must be scalars, got ",
                               grad_scales[t].shape().DebugString());
      }
      one.grad_scale = grad_scales[t].flat<float>().data();
      if (num_lookups.size() > 0) one.counted = num_lookups[t].flat<int64_t>().data();
      one.table.holds_elsewhere = num_lookups.size() > 0;
      one.ids = lookups[t].ids;
      one.grads = lookups[t].grads;
      one.num_lookups = lookups[t].num_lookups;
    }
    return absl::OkStatus();
  }

  TableArgs args_;
  float clip_value_ = 0;
};

#define SLIPSTREAM_REGISTER(Index)                                                             \
  REGISTER_KERNEL_BUILDER(                                                                     \
      Name("Slipstream>ApplyRows").SLIPSTREAM_TABLES_ON_GPU.TypeConstraint<Index>("Tindices"), \
      ApplyRowsGpuOp<Index>)
SLIPSTREAM_REGISTER(int32_t);
SLIPSTREAM_REGISTER(int64_t);
#undef SLIPSTREAM_REGISTER

}  // namespace slipstream
