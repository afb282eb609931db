// SettleRows on a GPU.
#include "gpu_tables.h"

namespace slipstream {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

class SettleRowsGpuOp : public OpKernel {
 public:
  explicit SettleRowsGpuOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, args_.Init(context, Memory::kDevice));
    OP_REQUIRES_OK(context, context->GetAttr("wake", &wake_));
  }

  void Compute(OpKernelContext* context) override {
    GpuTables<int32_t> tables;
    OP_REQUIRES_OK(context, tables.Read(context, &args_, 0));
    Tensor workspace;
    OP_REQUIRES_OK(context, tables.AllocateWorkspace(context, &workspace));
    OP_REQUIRES_OK(context, GpuStatus(gpu::SettleTables(args_.rule(), tables.tables, tables.inputs,
                                                        wake_, workspace.flat<uint8_t>().data(),
                                                        tables.report, StreamOf(context)),
                                      "SettleRows"));
  }

 private:
  TableArgs args_;
  bool wake_ = false;
};

REGISTER_KERNEL_BUILDER(Name("Slipstream>SettleRows").SLIPSTREAM_TABLES_ON_GPU, SettleRowsGpuOp);

}  // namespace slipstream
