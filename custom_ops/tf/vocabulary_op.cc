// LookUpAndAdmit: rows of raw ids, in training.
#include <cstring>
#include <limits>

#include "../kernels/huge_pages.h"
#include "../kernels/vocabulary.h"
#include "kernel_context.h"
#include "table_variables.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace slipstream {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

REGISTER_OP("Slipstream>LookUpAndAdmit")
    .Input("ids: int64")
    .Input("index: resource")
    .Input("row_ids: resource")
    .Input("last_seen: resource")
    .Input("free_rows: resource")
    .Input("sketch: resource")
    .Input("counters: resource")
    .Input("changed_index: resource")
    .Input("changed_ids: resource")
    .Output("rows: int64")
    .Output("taken_back: int64")
    .Output("step: int64")
    .Attr("padding: list(int)")
    .Attr("num_oov: int >= 1")
    .Attr("is_string: bool")
    .Attr("admit_after: int >= 1")
    .Attr("forget_after: int >= 0")
    .Attr("num_unreset: int >= 0")
    .Attr("vocabulary_name: string")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      c->set_output(0, c->Vector(c->Dim(c->input(0), 0)));
      c->set_output(1, c->Vector(c->UnknownDim()));
      c->set_output(2, c->Scalar());
      return absl::OkStatus();
    })
    .Doc(R"doc(
Rows of ids, which get one and lose it as ../kernels/vocabulary.h says.

ids: [num, num_words].
rows: [num].
taken_back: [num_taken_back], rows that lost their id, in order; one may come twice.
step: The number of this step, 1 in the first.
padding: [num_words], the id that is padding; empty: there is none.
num_unreset: How many of the rows that earlier steps took back need not be reset yet.
)doc");

class LookUpAndAdmitOp : public OpKernel {
 public:
  explicit LookUpAndAdmitOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("padding", &settings_.padding));
    OP_REQUIRES_OK(context, context->GetAttr("num_oov", &settings_.num_oov));
    OP_REQUIRES_OK(context, context->GetAttr("is_string", &settings_.is_string));
    OP_REQUIRES_OK(context, context->GetAttr("admit_after", &settings_.admit_after));
    OP_REQUIRES_OK(context, context->GetAttr("forget_after", &settings_.forget_after));
    OP_REQUIRES_OK(context, context->GetAttr("num_unreset", &num_unreset_));
    OP_REQUIRES_OK(context, context->GetAttr("vocabulary_name", &name_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& ids = context->input(0);
    OP_REQUIRES(context, ids.dims() == 2 && ids.dim_size(1) >= 1,
                InvalidArgument("vocabulary '", name_, "': expected ids [num, num_words], got ",
                                ids.shape().DebugString()));
    TableVariables variables;
    constexpr tensorflow::DataType kTypes[] = {
        tensorflow::DT_INT64, tensorflow::DT_INT64, tensorflow::DT_INT64, tensorflow::DT_INT32,
        tensorflow::DT_UINT8, tensorflow::DT_INT64, tensorflow::DT_INT32, tensorflow::DT_INT32};
    for (int i = 0; i < 8; ++i) {
      OP_REQUIRES_OK(
          context, variables.Add(context, tensorflow::HandleFromInput(context, 1 + i), kTypes[i]));
    }
    OP_REQUIRES_OK(context, variables.LockForWriting(context));
    VocabularySettings settings = settings_;
    settings.num_words = ids.dim_size(1);
    Vocabulary vocabulary;
    OP_REQUIRES_OK(context, Read(settings, &variables, &vocabulary));
    const int64_t num = ids.dim_size(0);
    Tensor *rows, *taken_back, *step;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({num}), &rows));
    OP_REQUIRES_OK(context, context->allocate_output(2, TensorShape({}), &step));
    std::vector<int64_t> found;
    ThreadTeam team = IntraOpTeam(context);
    LookUpAndAdmit(settings, vocabulary, ids.flat<int64_t>().data(), num,
                   rows->flat<int64_t>().data(), &found, team.parallel_for());
    step->scalar<int64_t>()() = vocabulary.counters->step;
    const int64_t num_found = found.size();
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({num_found}), &taken_back));
    if (num_found > 0) {
      std::memcpy(taken_back->flat<int64_t>().data(), found.data(), num_found * sizeof(int64_t));
    }
  }

 private:
  template <typename T>
  static T* Data(Tensor* tensor) {
    return reinterpret_cast<T*>(const_cast<char*>(tensor->tensor_data().data()));
  }

  absl::Status Read(const VocabularySettings& settings, TableVariables* variables,
                    Vocabulary* v) const {
    Tensor *index = variables->tensor(0), *ids = variables->tensor(1);
    v->num_buckets = index->dims() == 2 && index->dim_size(1) == kSlots ? index->dim_size(0) : 0;
    v->capacity = ids->dims() == 2 ? ids->dim_size(0) : 0;
    v->num_blocks = variables->tensor(4)->NumElements() / kSketchBytes;
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    const int64_t sizes[] = {v->num_buckets * kSlots,
                             v->capacity * settings.num_words,
                             v->capacity,
                             v->capacity,
                             v->num_blocks * kSketchBytes,
                             kNumVocabularyCounters,
                             (v->num_buckets + 31) / 32,
                             (v->capacity + 31) / 32};
    for (int i = 0; i < 8; ++i) {
      if (variables->tensor(i)->NumElements() != sizes[i]) {
        return InvalidArgument("vocabulary '", name_, "': its variable ", i, " should have ",
                               sizes[i], " elements, and has shape ",
                               variables->tensor(i)->shape().DebugString());
      }
    }
    const bool has_padding = !settings.padding.empty();
    if (v->num_buckets * kSlots <= v->capacity || v->num_buckets > kMost || v->capacity >= kMost ||
        v->capacity <= settings.first_row() || v->num_blocks < 1 ||
        (has_padding && static_cast<int64_t>(settings.padding.size()) != settings.num_words)) {
      return InvalidArgument("vocabulary '", name_, "': ids of ", settings.num_words,
                             " words do not go with an index ", index->shape().DebugString(),
                             " and row_ids ", ids->shape().DebugString());
    }
    v->index = Data<int64_t>(index);
    v->ids = Data<int64_t>(ids);
    v->last_seen = Data<int64_t>(variables->tensor(2));
    v->free_rows = Data<int32_t>(variables->tensor(3));
    v->sketch = Data<uint8_t>(variables->tensor(4));
    v->counters = Data<VocabularyCounters>(variables->tensor(5));
    v->changed_index = Data<uint32_t>(variables->tensor(6));
    v->changed_ids = Data<uint32_t>(variables->tensor(7));
    for (int i = 0; i < 5; ++i) {
      const Tensor* tensor = variables->tensor(i);
      UseHugePages(tensor->tensor_data().data(), tensor->TotalBytes());
    }
    if (!IsWhole(settings, *v)) {
      return InvalidArgument("vocabulary '", name_, "': ", kNotRestoredWhole);
    }
    const VocabularyCounters& counters = *v->counters;
    if (counters.step >= kMost) {
      return InvalidArgument("vocabulary '", name_, "': it has done ", kMost,
                             " steps. Save its ids to a file, and load them into a new one.");
    }
    if (counters.num_reset + num_unreset_ < counters.num_forgotten + counters.num_evicted) {
      return InvalidArgument(
          "vocabulary '", name_, "' took ", counters.num_forgotten + counters.num_evicted,
          " rows back, and ", counters.num_reset,
          " of them were reset: another id would get what its row has learned. Give what it ",
          "returns to a SlipstreamEmbedding, or as a field's ids in a dict to a "
          "SlipstreamEmbeddingCollection, with no operation in between.");
    }
    return absl::OkStatus();
  }

  VocabularySettings settings_;
  int64_t num_unreset_;
  std::string name_;
};

REGISTER_KERNEL_BUILDER(Name("Slipstream>LookUpAndAdmit").Device(tensorflow::DEVICE_CPU),
                        LookUpAndAdmitOp);

}  // namespace slipstream
