#ifndef SLIPSTREAM_TF_GPU_TABLES_H_
#define SLIPSTREAM_TF_GPU_TABLES_H_

// An op's tables in a GPU's memory.

#include <algorithm>
#include <string>
#include <vector>

#include "../kernels/gpu_step.h"
#include "gpu_context.h"
#include "kernel_context.h"
#include "table_args.h"

namespace slipstream {

template <typename Index>
struct GpuTables {
  // Locks the variables as long as this object is. Fails with the error of an earlier step, if
  // there is one that nobody was told of.
  absl::Status Read(tensorflow::OpKernelContext* context, TableArgs* args, float clip_value) {
    std::string resources;
    TF_RETURN_IF_ERROR(TableResources(context, &resources));
    TF_RETURN_IF_ERROR(FindReport(context, resources, &report));
    TF_RETURN_IF_ERROR(args->CheckSettings(context));
    const tensorflow::Tensor *step, *learning_rate, *tail_rates, *tails;
    TF_RETURN_IF_ERROR(context->input("step", &step));
    TF_RETURN_IF_ERROR(context->input("learning_rate", &learning_rate));
    TF_RETURN_IF_ERROR(context->input("tail_rates", &tail_rates));
    TF_RETURN_IF_ERROR(context->input("tails", &tails));
    inputs.step = step->flat<int64_t>().data();
    inputs.learning_rate = learning_rate->flat<float>().data();
    inputs.tail_rates = tail_rates->flat<float>().data();
    inputs.tails = tails->flat<float>().data();
    inputs.num_tails = tails->NumElements();
    inputs.clip_value = clip_value;
    std::copy(args->hyperparameters().begin(), args->hyperparameters().end(),
              inputs.hyperparameters);
    TF_RETURN_IF_ERROR(args->AddVariables(context, &variables));
    CUstream_st* stream = StreamOf(context);
    const auto copy = [stream](const tensorflow::Tensor& from, tensorflow::Tensor* to) {
      return GpuStatus(gpu::CopyBytes(const_cast<char*>(to->tensor_data().data()),
                                      from.tensor_data().data(), from.TotalBytes(), stream),
                       "copying a variable");
    };
    TF_RETURN_IF_ERROR(variables.LockForWriting(context, copy));
    TF_RETURN_IF_ERROR(args->Read(&variables, &list));
    for (int64_t t = 0; t < args->num_tables(); ++t) {
      gpu::TableStep<Index> one = {};
      one.table = list.tables[t];
      if (one.table.staleness != nullptr) one.pool = *one.table.staleness;
      one.counters = list.counters[t];
      one.weight_decay = args->weight_decay(t);
      tables.push_back(one);
    }
    return TakeEarlierError(report, args->names(), list.num_rows);
  }

  absl::Status AllocateWorkspace(tensorflow::OpKernelContext* context,
                                 tensorflow::Tensor* workspace) const {
    size_t num_bytes;
    TF_RETURN_IF_ERROR(GpuStatus(gpu::WorkspaceBytes(tables, &num_bytes), "the workspace's size"));
    return slipstream::AllocateWorkspace(context, num_bytes, workspace);
  }

  gpu::Report* report = nullptr;
  gpu::StepInputs inputs = {};
  TableVariables variables;
  TableList list;
  std::vector<gpu::TableStep<Index>> tables;
};

}  // namespace slipstream

#endif  // SLIPSTREAM_TF_GPU_TABLES_H_
