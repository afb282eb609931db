// RowCacheFind, RowCacheStore, RowCachePush: a worker's part of a table on parameter servers.
#include <atomic>
#include <cstring>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "../kernels/row_cache.h"
#include "kernel_context.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/device_name_utils.h"

namespace slipstream {

using tensorflow::OpInputList;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::OpOutputList;
using tensorflow::Tensor;
using tensorflow::TensorShape;

#define SLIPSTREAM_ROW_CACHE_ATTRS   \
  Attr("cache: string")              \
      .Attr("session: string")       \
      .Attr("row_starts: list(int)") \
      .Attr("dim: int >= 1")         \
      .Attr("capacity: int >= 0")    \
      .SetIsStateful()

// Outputs [first_rows, end_rows) are rows of `dim`; of all others only the kernel knows the size.
absl::Status SetShapes(tensorflow::shape_inference::InferenceContext* c, int first_rows,
                       int end_rows) {
  int dim;
  TF_RETURN_IF_ERROR(c->GetAttr("dim", &dim));
  for (int i = 0; i < c->num_outputs(); ++i) {
    const bool is_rows = first_rows <= i && i < end_rows;
    c->set_output(i, is_rows ? c->Matrix(c->UnknownDim(), dim) : c->UnknownShape());
  }
  return absl::OkStatus();
}

REGISTER_OP("Slipstream>RowCacheFind")
    .Input("lookups: int64")
    .Input("step: int64")
    .Output("inverse: int32")
    .Output("ids: int64")
    .Output("num_lookups: int32")
    .Output("cached: float")
    .Output("known: float")
    .Output("pulls: num_shards * int32")
    .Output("hashes: num_shards * int64")
    .Output("order: int32")
    .Attr("num_shards: int >= 1")
    .Attr("max_age: int >= 0")
    .Attr("table_name: string")
    .SLIPSTREAM_ROW_CACHE_ATTRS
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) { return SetShapes(c, 3, 5); })
    .Doc(R"doc(
Distinct ids of a batch, the rows of those that are cached on this device, and what must be pulled.

cache: Names the cache of a table; it lasts until one is asked for with another `session`.
row_starts: [num_shards + 1]; shard s has the rows [row_starts[s], row_starts[s + 1]).
capacity: Rows that it may keep.
max_age: Steps for which a cached row may be used.
inverse: [num_lookups], each lookup's place among the ids.
ids: [num_ids]; those that are cached come first, then those of the first shard's pulls, and so on.
num_lookups: [num_ids], how often each was looked up.
cached: [num_cached, dim].
known: [num_known, dim]: values of rows that are cached too, but may have changed; the first shard's
  come first.
pulls: Per shard, ids in it; those of its known rows come last.
hashes: Per shard, of its known rows.
order: [num_ids], the places of the ids, in order of first appearance.
)doc");

REGISTER_OP("Slipstream>RowCacheStore")
    .Input("ids: int64")
    .Input("known: float")
    .Input("hashes: num_shards * int64")
    .Input("rows: num_shards * float")
    .Input("sleeps: num_shards * int32")
    .Input("step: int64")
    .Output("same: float")
    .Output("places: int32")
    .Attr("num_shards: int >= 1")
    .SLIPSTREAM_ROW_CACHE_ATTRS
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) { return SetShapes(c, 0, 1); })
    .Doc(R"doc(
Keeps rows that sleep, as pulled for the ids that RowCacheFind found.

ids, known, hashes: Its outputs.
rows, sleeps: Per shard, as PullRows gives them out for its ids.
same: [num_same, dim], of the known rows those that have not changed.
places: [num_ids], each id's place among the rows of RowCacheFind's `cached`, of `rows`, the first
  shard's first, and of `same`.
)doc");

REGISTER_OP("Slipstream>RowCachePush")
    .Input("ids: int64")
    .Input("grads: float")
    .Input("num_lookups: int32")
    .Input("step: int64")
    .Input("flush: bool")
    .Output("push_ids: num_shards * int32")
    .Output("push_grads: num_shards * float")
    .Output("batches: num_shards * int32")
    .Output("push_counts: num_shards * int64")
    .Attr("num_shards: int >= 1")
    .Attr("clip_value: float")
    .Attr("table_name: string")
    .SLIPSTREAM_ROW_CACHE_ATTRS
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      const int num_shards = c->num_outputs() / 4;
      return SetShapes(c, num_shards, 2 * num_shards);
    })
    .Doc(R"doc(
Holds the gradients of rows that sleep, and gives out all others for ApplyRows, with what was held of them.

ids: [num_ids] of the table, distinct.
grads: [num_ids, dim], summed over the batch.
num_lookups: [num_ids].
flush: Whether to give out all that is held and to forget every row.
clip_value: Bound on each element of a batch's gradient, 0 for none.
)doc");

namespace {

class RowCacheResource : public tensorflow::ResourceBase {
 public:
  std::string DebugString() const override { return "slipstream::RowCache"; }

  std::mutex mutex;  // guards all below
  std::string session;
  std::unique_ptr<RowCache> cache;
  int64_t worker_id = 0;  // unlike that of every other cache there has been
};

class RowCacheOp : public OpKernel {
 public:
  explicit RowCacheOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("cache", &name_));
    OP_REQUIRES_OK(context, context->GetAttr("session", &session_));
    OP_REQUIRES_OK(context, context->GetAttr("row_starts", &shards_.starts));
    OP_REQUIRES_OK(context, context->GetAttr("dim", &dim_));
    OP_REQUIRES_OK(context, context->GetAttr("capacity", &capacity_));
    int num_shards;
    OP_REQUIRES_OK(context, context->GetAttr("num_shards", &num_shards));
    OP_REQUIRES(context, shards_.num() == num_shards && shards_.starts[0] == 0,
                InvalidArgument("expected row_starts of ", num_shards, " shards from 0"));
    for (int s = 0; s < num_shards; ++s) {
      const int64_t num = shards_.starts[s + 1] - shards_.starts[s];
      OP_REQUIRES(context, 0 <= num && num < (int64_t{1} << 31),
                  InvalidArgument("a shard has ", num, " rows; at most 2^31 - 1 are possible"));
    }
  }

  void Compute(OpKernelContext* context) override {
    tensorflow::core::RefCountPtr<RowCacheResource> resource;
    RowCacheResource* found = nullptr;
    OP_REQUIRES_OK(context,
                   context->resource_manager()->LookupOrCreate<RowCacheResource>(
                       "slipstream_row_caches", name_, &found, [](RowCacheResource** made) {
                         *made = new RowCacheResource;
                         return absl::OkStatus();
                       }));
    resource.reset(found);
    std::lock_guard<std::mutex> lock(found->mutex);
    if (found->session != session_ || found->cache == nullptr) {
      found->session = session_;
      found->cache = std::make_unique<RowCache>(shards_, dim_, capacity_);
      std::random_device random;
      found->worker_id = (static_cast<int64_t>(random()) << 31) + random() % (1u << 31) + 1;
    }
    const Tensor* step;
    OP_REQUIRES_OK(context, context->input("step", &step));
    OP_REQUIRES(context, step->NumElements() == 1, InvalidArgument("step must be a scalar"));
    Run(context, step->flat<int64_t>()(0), found->cache.get(), found->worker_id);
  }

 protected:
  virtual void Run(OpKernelContext* context, int64_t step, RowCache* cache, int64_t worker_id) = 0;

  Shards shards_;
  int64_t dim_ = 0;

 private:
  std::string name_, session_;
  int64_t capacity_ = 0;
};

class RowCacheFindOp : public RowCacheOp {
 public:
  explicit RowCacheFindOp(OpKernelConstruction* context) : RowCacheOp(context) {
    OP_REQUIRES_OK(context, context->GetAttr("max_age", &max_age_));
    OP_REQUIRES_OK(context, context->GetAttr("table_name", &table_name_));
  }

 protected:
  void Run(OpKernelContext* context, int64_t step, RowCache* cache, int64_t) override {
    const Tensor* lookups;
    OP_REQUIRES_OK(context, context->input("lookups", &lookups));
    const int64_t num_lookups = lookups->NumElements();
    OP_REQUIRES(context, num_lookups < (int64_t{1} << 31),
                InvalidArgument("a batch has ", num_lookups, " lookups; at most 2^31 - 1 are"));
    Tensor* inverse;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({num_lookups}), &inverse));
    RowCache::Distinct distinct;
    const BadRow bad = cache->Find(lookups->flat<int64_t>().data(), num_lookups, step, max_age_,
                                   inverse->flat<int32_t>().data(), &distinct);
    OP_REQUIRES(
        context, bad.position < 0,
        InvalidArgument("table '", table_name_, "': id ", bad.id, " at position ", bad.position,
                        " is not in [0, ", shards_.num_rows(), "). No row was changed."));
    const int64_t num = distinct.ids.size();
    Tensor *ids, *counts, *cached, *known;
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({num}), &ids));
    OP_REQUIRES_OK(context, context->allocate_output(2, TensorShape({num}), &counts));
    OP_REQUIRES_OK(context,
                   context->allocate_output(3, TensorShape({distinct.num_cached, dim_}), &cached));
    std::memcpy(ids->flat<int64_t>().data(), distinct.ids.data(), num * sizeof(int64_t));
    std::memcpy(counts->flat<int32_t>().data(), distinct.num_lookups.data(), num * sizeof(int32_t));
    cache->CopyValues(distinct.slots.data(), distinct.num_cached, cached->flat<float>().data());
    Tensor* order;
    OP_REQUIRES_OK(context,
                   context->allocate_output(5 + 2 * shards_.num(), TensorShape({num}), &order));
    std::memcpy(order->flat<int32_t>().data(), distinct.order.data(), num * sizeof(int32_t));
    int64_t num_known = 0;
    for (const int64_t of_shard : distinct.num_known) num_known += of_shard;
    OP_REQUIRES_OK(context, context->allocate_output(4, TensorShape({num_known, dim_}), &known));
    OpOutputList pulls, hashes;
    OP_REQUIRES_OK(context, context->output_list("pulls", &pulls));
    OP_REQUIRES_OK(context, context->output_list("hashes", &hashes));
    const int64_t* next = distinct.ids.data() + distinct.num_cached;
    float* value = known->flat<float>().data();
    for (int s = 0; s < shards_.num(); ++s) {
      Tensor *pull, *hash;
      OP_REQUIRES_OK(context, pulls.allocate(s, TensorShape({distinct.num_pulled[s]}), &pull));
      for (int64_t i = 0; i < distinct.num_pulled[s]; ++i) {
        pull->flat<int32_t>()(i) = static_cast<int32_t>(*next++ - shards_.starts[s]);
      }
      OP_REQUIRES_OK(context, hashes.allocate(s, TensorShape({distinct.num_known[s]}), &hash));
      cache->CopyValues(
          distinct.slots.data() + (next - distinct.ids.data()) - distinct.num_known[s],
          distinct.num_known[s], value);
      for (int64_t i = 0; i < distinct.num_known[s]; ++i, value += dim_) {
        hash->flat<int64_t>()(i) = RowHash(value, dim_);
      }
    }
  }

 private:
  int64_t max_age_ = 0;
  std::string table_name_;
};

class RowCacheStoreOp : public RowCacheOp {
 public:
  explicit RowCacheStoreOp(OpKernelConstruction* context) : RowCacheOp(context) {}

 protected:
  void Run(OpKernelContext* context, int64_t step, RowCache* cache, int64_t) override {
    const Tensor *ids, *known;
    OpInputList rows, sleeps, hashes;
    OP_REQUIRES_OK(context, context->input("ids", &ids));
    OP_REQUIRES_OK(context, context->input("known", &known));
    OP_REQUIRES_OK(context, context->input_list("hashes", &hashes));
    OP_REQUIRES_OK(context, context->input_list("rows", &rows));
    OP_REQUIRES_OK(context, context->input_list("sleeps", &sleeps));
    int64_t num_pulled = 0, num_known = 0, num_same = 0;
    for (int s = 0; s < shards_.num(); ++s) {
      const auto words = sleeps[s].flat<int32_t>();
      int64_t same = 0;
      for (int64_t i = 0; i < words.size(); ++i) same += (words(i) & Sleep::kSameBit) != 0;
      const int64_t num = rows[s].dim_size(0) + same;
      OP_REQUIRES(
          context,
          rows[s].NumElements() == rows[s].dim_size(0) * dim_ &&
              (words.size() == num || (words.size() == 0 && hashes[s].NumElements() == 0)),
          InvalidArgument("rows ", rows[s].shape().DebugString(), ", and ", same,
                          " that are the same, have sleeps ", sleeps[s].shape().DebugString()));
      num_pulled += num;
      num_known += hashes[s].NumElements();
      num_same += same;
    }
    OP_REQUIRES(
        context, num_pulled <= ids->NumElements() && known->NumElements() == num_known * dim_,
        InvalidArgument(num_pulled, " rows were pulled for ", ids->NumElements(), " ids, and ",
                        num_known, " are known, of values ", known->shape().DebugString()));
    Tensor *same, *places;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({num_same, dim_}), &same));
    OP_REQUIRES_OK(context, context->allocate_output(1, ids->shape(), &places));
    int32_t* place = places->flat<int32_t>().data();
    const int64_t num_cached = ids->NumElements() - num_pulled;
    std::iota(place, place + num_cached, 0);
    place += num_cached;
    const int64_t* id = ids->flat<int64_t>().data() + num_cached;
    const float* value = known->flat<float>().data();
    float* next_same = same->flat<float>().data();
    int32_t row_place = num_cached, same_place = ids->NumElements() - num_same;
    std::vector<const float*> found;
    for (int s = 0; s < shards_.num(); ++s) {
      const float* row = rows[s].flat<float>().data();
      const int32_t* words = sleeps[s].flat<int32_t>().data();
      const int64_t num_words = sleeps[s].NumElements();
      const int64_t num = num_words == 0 ? rows[s].dim_size(0) : num_words;
      const int64_t first_known = num - hashes[s].NumElements();
      found.clear();
      for (int64_t i = 0; i < num; ++i) {
        const bool is_same = num_words > 0 && (words[i] & Sleep::kSameBit) != 0;
        OP_REQUIRES(context, !is_same || i >= first_known,
                    InvalidArgument("row ", id[i], " was not known, and none was pulled for it"));
        if (is_same) {
          found.push_back(value + (i - first_known) * dim_);
          std::memcpy(next_same, found.back(), dim_ * sizeof(float));
          next_same += dim_;
        } else {
          found.push_back(row);
          row += dim_;
        }
        *place++ = is_same ? same_place++ : row_place++;
      }
      cache->Store(id, found.data(), words, num_words, step);
      id += num;
      value += hashes[s].NumElements() * dim_;
    }
  }
};

class RowCachePushOp : public RowCacheOp {
 public:
  explicit RowCachePushOp(OpKernelConstruction* context) : RowCacheOp(context) {
    OP_REQUIRES_OK(context, context->GetAttr("clip_value", &clip_value_));
    OP_REQUIRES_OK(context, context->GetAttr("table_name", &table_name_));
  }

 protected:
  void Run(OpKernelContext* context, int64_t step, RowCache* cache, int64_t worker_id) override {
    const Tensor *ids, *grads, *num_lookups, *flush;
    OP_REQUIRES_OK(context, context->input("ids", &ids));
    OP_REQUIRES_OK(context, context->input("grads", &grads));
    OP_REQUIRES_OK(context, context->input("num_lookups", &num_lookups));
    OP_REQUIRES_OK(context, context->input("flush", &flush));
    const int64_t num = ids->NumElements();
    OP_REQUIRES(context,
                grads->NumElements() == num * dim_ && num_lookups->NumElements() == num &&
                    flush->NumElements() == 1,
                InvalidArgument("table '", table_name_, "': ", num, " ids have gradients ",
                                grads->shape().DebugString(), " and lookups ",
                                num_lookups->shape().DebugString()));
    const int64_t* first = ids->flat<int64_t>().data();
    for (int64_t i = 0; i < num; ++i) {
      OP_REQUIRES(context, 0 <= first[i] && first[i] < shards_.num_rows(),
                  InvalidArgument("table '", table_name_, "': id ", first[i], " is not in [0, ",
                                  shards_.num_rows(), "). No row was changed."));
    }
    const BadRow bad =
        cache->Push(first, grads->flat<float>().data(), num_lookups->flat<int32_t>().data(), num,
                    step, clip_value_, flush->flat<bool>()(0));
    OP_REQUIRES(context, bad.position < 0,
                InvalidArgument("table '", table_name_, "': the gradient of row ", bad.id,
                                " is NaN or infinite. No row was changed. Look at the loss and "
                                "the inputs of this batch, lower the learning rate, clip "
                                "gradients, or train float16 under a LossScaleOptimizer."));
    tensorflow::DeviceNameUtils::ParsedName device;
    const bool has_task =
        tensorflow::DeviceNameUtils::ParseFullName(context->device()->name(), &device) &&
        device.has_job && device.job == "worker" && device.has_task;
    OpOutputList push_ids, push_grads, batches, counts;
    OP_REQUIRES_OK(context, context->output_list("push_ids", &push_ids));
    OP_REQUIRES_OK(context, context->output_list("push_grads", &push_grads));
    OP_REQUIRES_OK(context, context->output_list("batches", &batches));
    OP_REQUIRES_OK(context, context->output_list("push_counts", &counts));
    for (int s = 0; s < shards_.num(); ++s) {
      const int64_t n = cache->num_pushed(s);
      Tensor *to_ids, *to_grads, *to_batches, *to_counts;
      OP_REQUIRES_OK(context, push_ids.allocate(s, TensorShape({n}), &to_ids));
      OP_REQUIRES_OK(context, push_grads.allocate(s, TensorShape({n, dim_}), &to_grads));
      OP_REQUIRES_OK(context, batches.allocate(s, TensorShape({n, 2}), &to_batches));
      OP_REQUIRES_OK(context, counts.allocate(s, TensorShape({11}), &to_counts));
      cache->CopyPushed(s, to_ids->flat<int32_t>().data(), to_grads->flat<float>().data(),
                        to_batches->flat<int32_t>().data());
    }
    cache->Finish();
    for (int s = 0; s < shards_.num(); ++s) {
      const WorkerCounts c = cache->TakeCounts(s);
      const int64_t values[] = {
          c.num_lookups,     c.num_skipped_lookups,     c.num_deferred_lookups,
          c.num_row_updates, c.num_skipped_row_updates, c.num_deferred_row_updates,
          c.num_pulled_rows, c.num_cached_rows,         cache->num_held(s),
          worker_id,         has_task ? device.task : 0};
      std::memcpy(counts[s]->flat<int64_t>().data(), values, sizeof(values));
    }
  }

 private:
  float clip_value_ = 0;
  std::string table_name_;
};

REGISTER_KERNEL_BUILDER(Name("Slipstream>RowCacheFind").Device(tensorflow::DEVICE_CPU),
                        RowCacheFindOp);
REGISTER_KERNEL_BUILDER(Name("Slipstream>RowCacheStore").Device(tensorflow::DEVICE_CPU),
                        RowCacheStoreOp);
REGISTER_KERNEL_BUILDER(Name("Slipstream>RowCachePush").Device(tensorflow::DEVICE_CPU),
                        RowCachePushOp);

}  // namespace

}  // namespace slipstream
