// LiveSlices on a GPU. Its outputs are as long as there are rows, which the host must learn before
// it can allocate them: so it waits for the device, once for all tables, and a bad lookup fails the
// op at once. A training step needs it for clipping by norm alone.
#include <string>
#include <vector>

#include "../kernels/gpu_step.h"
#include "gpu_context.h"
#include "kernel_context.h"
#include "table_args.h"

namespace slipstream {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::OpOutputList;
using tensorflow::Tensor;
using tensorflow::TensorShape;

template <typename Index>
class LiveSlicesGpuOp : public OpKernel {
 public:
  explicit LiveSlicesGpuOp(OpKernelConstruction* context) : OpKernel(context) {
    int num_tables;
    OP_REQUIRES_OK(context, context->GetAttr("table_names", &table_names_));
    OP_REQUIRES_OK(context, context->GetAttr("num_rows", &num_rows_));
    OP_REQUIRES_OK(context, context->GetAttr("N", &num_tables));
    OP_REQUIRES_OK(context, pools_.Init(context, Memory::kDevice, num_tables));
    OP_REQUIRES(context,
                static_cast<int>(table_names_.size()) == num_tables &&
                    static_cast<int>(num_rows_.size()) == num_tables,
                InvalidArgument("expected ", num_tables, " table_names and num_rows"));
  }

  void Compute(OpKernelContext* context) override {
    gpu::Report* report;
    OP_REQUIRES_OK(context, FindReport(context, absl::StrCat("\n", name()), &report));
    CUstream_st* stream = StreamOf(context);
    TableVariables variables;
    OP_REQUIRES_OK(context, pools_.AddVariables(context, &variables));
    variables.LockForReading();
    std::vector<gpu::TableStep<Index>> tables;
    OP_REQUIRES_OK(context, ReadTables(context, &variables, &tables));
    const Tensor* step;
    OP_REQUIRES_OK(context, context->input("step", &step));
    OP_REQUIRES(context, step->NumElements() == 1,
                InvalidArgument("step must be a scalar, got ", step->shape().DebugString()));

    const int64_t num_tables = tables.size();
    size_t num_bytes;
    OP_REQUIRES_OK(context,
                   GpuStatus(gpu::WorkspaceBytes(tables, &num_bytes), "the workspace's size"));
    Tensor workspace, device_nums;
    OP_REQUIRES_OK(context, AllocateWorkspace(context, num_bytes, &workspace));
    OP_REQUIRES_OK(context, AllocateWorkspace(context, num_tables * sizeof(int32_t), &device_nums));
    void* memory = workspace.flat<uint8_t>().data();
    auto* nums_on_device = reinterpret_cast<int32_t*>(device_nums.flat<uint8_t>().data());
    OP_REQUIRES_OK(context, GpuStatus(gpu::FindSlices(tables, step->flat<int64_t>().data(), memory,
                                                      nums_on_device, report, stream),
                                      "LiveSlices"));
    std::vector<int32_t> nums(num_tables);
    OP_REQUIRES_OK(context, GpuStatus(gpu::ReadBytes(nums.data(), nums_on_device,
                                                     num_tables * sizeof(int32_t), stream),
                                      "LiveSlices"));
    const BadLookup bad = gpu::TakeReport(report);
    OP_REQUIRES(context, bad.kind == BadLookup::kNone,
                BadLookupError(bad, table_names_[bad.table], num_rows_[bad.table]));

    OpOutputList live_indices, live_grads;
    OP_REQUIRES_OK(context, context->output_list("live_indices", &live_indices));
    OP_REQUIRES_OK(context, context->output_list("live_grads", &live_grads));
    for (int64_t t = 0; t < num_tables; ++t) {
      Tensor *ids, *rows;
      OP_REQUIRES_OK(context, live_indices.allocate(t, TensorShape({nums[t]}), &ids));
      OP_REQUIRES_OK(context,
                     live_grads.allocate(t, TensorShape({nums[t], tables[t].table.dim}), &rows));
      OP_REQUIRES_OK(context,
                     GpuStatus(gpu::CopySlices(tables, t, memory, ids->flat<Index>().data(),
                                               rows->flat<float>().data(), stream),
                               "LiveSlices"));
    }
  }

 private:
  absl::Status ReadTables(OpKernelContext* context, TableVariables* variables,
                          std::vector<gpu::TableStep<Index>>* tables) const {
    tensorflow::OpInputList grads;
    TF_RETURN_IF_ERROR(context->input_list("grads", &grads));
    std::vector<int64_t> dims;
    for (size_t t = 0; t < num_rows_.size(); ++t) {
      dims.push_back(grads[t].dims() == 2 ? grads[t].dim_size(1) : 0);
    }
    std::vector<Lookups<Index>> lookups;
    const std::vector<RowStates> no_states(num_rows_.size());
    TF_RETURN_IF_ERROR(ReadLookups(context, table_names_, num_rows_, dims, no_states, &lookups));
    for (size_t t = 0; t < num_rows_.size(); ++t) {
      gpu::TableStep<Index> one = {};
      one.ids = lookups[t].ids;
      one.grads = lookups[t].grads;
      one.num_lookups = lookups[t].num_lookups;
      one.table.num_rows = num_rows_[t];
      one.table.dim = dims[t];
      tables->push_back(one);
    }
    std::vector<Staleness> staleness;
    TF_RETURN_IF_ERROR(pools_.Read(variables, 0, num_rows_, dims, table_names_, &staleness));
    for (size_t p = 0; p < staleness.size(); ++p) {
      (*tables)[pools_.tables()[p]].pool = staleness[p];
    }
    return absl::OkStatus();
  }

  std::vector<std::string> table_names_;
  std::vector<int64_t> num_rows_;
  PoolArgs pools_;
};

#define SLIPSTREAM_REGISTER(Index)                                                      \
  REGISTER_KERNEL_BUILDER(                                                              \
      Name("Slipstream>LiveSlices")                                                     \
          .SLIPSTREAM_ON_GPU.SLIPSTREAM_POOLS_ON_GPU.TypeConstraint<Index>("Tindices"), \
      LiveSlicesGpuOp<Index>)
SLIPSTREAM_REGISTER(int32_t);
SLIPSTREAM_REGISTER(int64_t);
#undef SLIPSTREAM_REGISTER

}  // namespace slipstream
