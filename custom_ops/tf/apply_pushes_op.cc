// ApplyPushes: what a worker sent of its step, applied to tables on a parameter server.
#include "apply_step.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace slipstream {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

REGISTER_OP("Slipstream>ApplyPushes")
    .SLIPSTREAM_TABLE_INPUTS.Input("worker_counters: N * resource")
    .Input("indices: N * int32")
    .Input("grads: N * float")
    .Input("batches: N * int32")
    .Input("push_counts: N * int64")
    .SLIPSTREAM_TABLE_ATTRS.SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext*) { return absl::OkStatus(); })
    .Doc(absl::StrCat(R"doc(
As ApplyRows, of what RowCachePush gave out.

Pushes may come in another order than their steps: a table's step never goes back.

)doc",
                      kTableDoc, R"doc(
worker_counters: int64 [num_workers, 5]: pulled rows, cached rows, batches held now, batches lost with a
  worker that was replaced, and which worker it is.
indices: [num_ids] distinct ids in [0, num_rows).
grads: [num_ids, dim], scaled and clipped.
batches: [num_ids, 2]: batches that a row's gradient is of, and lookups in this batch.
push_counts: int64 [11]: six counters of lookups and rows; pulled rows, cached rows, batches held now,
  which worker it is, its number.
)doc"));

class ApplyPushesOp : public OpKernel {
 public:
  explicit ApplyPushesOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, args_.Init(context, Memory::kHost));
  }

  void Compute(OpKernelContext* context) override {
    std::vector<StepSettings> settings;
    OP_REQUIRES_OK(context, args_.ReadSettings(context, nullptr, 0, &settings));
    TableVariables variables;
    OP_REQUIRES_OK(context, args_.AddVariables(context, &variables));
    OP_REQUIRES_OK(context, variables.Add(context, "worker_counters", tensorflow::DT_INT64));
    OP_REQUIRES_OK(context, variables.LockForWriting(context));
    TableList list;
    OP_REQUIRES_OK(context, args_.Read(&variables, &list));
    std::vector<Push> pushes;
    OP_REQUIRES_OK(context, ReadPushes(context, &variables, &pushes));
    int64_t step = settings[0].step;
    for (size_t t = 0; t < pushes.size(); ++t) {
      list.tables[t].batches = pushes[t].batches;
      step = std::max(step, list.counters[t][kPushStep]);
    }
    for (StepSettings& one : settings) one.step = step;
    const auto count = [&](const std::vector<Lookups<int32_t>>& lookups, LiveRows* live_rows) {
      std::vector<RowCounts> counts;
      for (size_t t = 0; t < pushes.size(); ++t) {
        if (live_rows->counts(t).num_row_updates != lookups[t].num_lookups) {
          return InvalidArgument("table '", args_.names()[t], "': the ids of a push repeat");
        }
        counts.push_back(CountPush(pushes[t], live_rows->found(), t));
      }
      live_rows->SetCounts(counts);
      return absl::OkStatus();
    };
    OP_REQUIRES_OK(context, ApplyStep<int32_t>(context, args_, settings, &list, &pool_, count));
    for (size_t t = 0; t < pushes.size(); ++t) {
      list.counters[t][kPushStep] = step;
      pushes[t].CountWorker();
    }
  }

 private:
  // What a worker sent with the gradients of a table.
  //   batches, counts  as the op's inputs
  //   worker           [5]: its row of worker_counters
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
  static constexpr int64_t kNumPushCounts = 11;
  static constexpr int64_t kNumWorkerCounters = 5;

  absl::Status ReadPushes(OpKernelContext* context, TableVariables* variables,
                          std::vector<Push>* pushes) const {
    tensorflow::OpInputList batches, counts, indices;
    TF_RETURN_IF_ERROR(context->input_list("batches", &batches));
    TF_RETURN_IF_ERROR(context->input_list("push_counts", &counts));
    TF_RETURN_IF_ERROR(context->input_list("indices", &indices));
    for (int64_t t = 0; t < args_.num_tables(); ++t) {
      Tensor* workers = variables->tensor(args_.num_variables() + t);
      if (batches[t].NumElements() != 2 * indices[t].NumElements() ||
          counts[t].NumElements() != kNumPushCounts || workers->dims() != 2 ||
          workers->dim_size(1) != kNumWorkerCounters) {
        return InvalidArgument("table '", args_.names()[t], "': a push of ",
                               indices[t].NumElements(), " rows has batches ",
                               batches[t].shape().DebugString(), ", counts ",
                               counts[t].shape().DebugString(), " and worker_counters ",
                               workers->shape().DebugString());
      }
      const int64_t* one = counts[t].flat<int64_t>().data();
      if (one[10] < 0 || one[10] >= workers->dim_size(0)) {
        return InvalidArgument("table '", args_.names()[t], "': a push of worker ", one[10],
                               ", where there are ", workers->dim_size(0));
      }
      pushes->push_back({batches[t].flat<int32_t>().data(), indices[t].NumElements(), one,
                         workers->flat<int64_t>().data() + one[10] * kNumWorkerCounters});
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

  TableArgs args_;
  LiveRowsPool pool_;
};

REGISTER_KERNEL_BUILDER(Name("Slipstream>ApplyPushes").Device(tensorflow::DEVICE_CPU),
                        ApplyPushesOp);

}  // namespace slipstream
