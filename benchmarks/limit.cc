// The least that an embedding step must move, and nothing else: what the engine is measured
// against.
//
// All index work is done beforehand: the caller brings each batch's distinct rows and, per distinct
// row, the positions of its gradients. A step then
//   1. reads the row of every lookup and writes the sum of each bag to an output,
//   2. reads every upstream gradient once, sums those of a row in registers, and reads and writes
//      each distinct row and its slots once.
// Rows ahead are prefetched, memory is in huge pages, each half is split between the threads.
// No framework, no checks, no deduplication: a bound, not a competitor.
//
// Built by subjects/limit_step.py: g++ -O3 -march=native -shared.

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int64_t kHugePage = 1 << 21;
constexpr int64_t kPrefetchDistance = 12;
constexpr float kBeta1 = 0.9f, kBeta2 = 0.999f;

enum Rule { kSgd, kAdagrad, kRowWiseAdagrad, kAdam };

// One batch of one table.
//   lookups    [num_bags * bag] row of each lookup, in batch order
//   distinct   [num_distinct] rows, each once
//   offsets    [num_distinct + 1] into `positions`
//   positions  [num_bags * bag] bags whose gradient a distinct row gets, row by row
struct Batch {
  const int64_t* lookups;
  int64_t num_bags;
  int64_t bag;
  const int64_t* distinct;
  const int64_t* offsets;
  const int32_t* positions;
  int64_t num_distinct;
};

// Zeroed, aligned and, where the system has them, huge pages; never freed: the process ends.
float* Allocate(int64_t num_floats) {
  const int64_t num_bytes = (num_floats * 4 + 2 * kHugePage - 1) / kHugePage * kHugePage;
  void* start =
      mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) return nullptr;
  const auto aligned = (reinterpret_cast<uintptr_t>(start) + kHugePage - 1) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(aligned), num_bytes - kHugePage, MADV_HUGEPAGE);
  return reinterpret_cast<float*>(aligned);
}

inline void Prefetch(const float* row, int64_t num_floats, bool for_write) {
  for (int64_t i = 0; i < num_floats; i += 16) {
    if (for_write) {
      __builtin_prefetch(row + i, 1);
    } else {
      __builtin_prefetch(row + i, 0);
    }
  }
}

class Table {
 public:
  Table(Rule rule, int64_t num_rows, int64_t dim, int64_t max_bags, float initial)
      : rule_(rule), dim_(dim), rows_(Allocate(num_rows * dim)), output_(Allocate(max_bags * dim)) {
    uint64_t state = 1;
    for (int64_t i = 0; i < num_rows * dim; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      rows_[i] = static_cast<float>(state >> 40) * (0.1f / (1 << 24)) - 0.05f;
    }
    if (rule == kAdagrad) first_slot_ = Allocate(num_rows * dim);
    if (rule == kRowWiseAdagrad) first_slot_ = Allocate(num_rows);
    if (rule == kAdam) first_slot_ = Allocate(num_rows * dim);
    if (rule == kAdam) second_slot_ = Allocate(num_rows * dim);
    const int64_t num_slot = rule == kSgd ? 0 : rule == kRowWiseAdagrad ? num_rows : num_rows * dim;
    // Written even where it is zero: the step must not be the first to touch a page.
    for (int64_t i = 0; i < num_slot; ++i) first_slot_[i] = rule == kAdam ? 0 : initial;
    if (rule == kAdam) std::memset(second_slot_, 0, num_slot * 4);
    std::memset(output_, 0, max_bags * dim * 4);
  }

  const float* rows() const { return rows_; }

  // Sums of bags [begin, end) to the output.
  void Gather(const Batch& batch, int64_t begin, int64_t end) {
    if (dim_ == 16) return GatherDim<16>(batch, begin, end);
    if (dim_ == 32) return GatherDim<32>(batch, begin, end);
    if (dim_ == 64) return GatherDim<64>(batch, begin, end);
    if (dim_ == 128) return GatherDim<128>(batch, begin, end);
    GatherDim<0>(batch, begin, end);
  }

  // Updates distinct rows [begin, end).
  void Update(const Batch& batch, const float* upstream, float rate, float adam_rate, float epsilon,
              int64_t begin, int64_t end) {
    if (dim_ == 16) return UpdateDim<16>(batch, upstream, rate, adam_rate, epsilon, begin, end);
    if (dim_ == 32) return UpdateDim<32>(batch, upstream, rate, adam_rate, epsilon, begin, end);
    if (dim_ == 64) return UpdateDim<64>(batch, upstream, rate, adam_rate, epsilon, begin, end);
    if (dim_ == 128) return UpdateDim<128>(batch, upstream, rate, adam_rate, epsilon, begin, end);
    UpdateDim<0>(batch, upstream, rate, adam_rate, epsilon, begin, end);
  }

 private:
  template <int kDim>
  void GatherDim(const Batch& batch, int64_t begin, int64_t end) {
    const int64_t dim = kDim ? kDim : dim_;
    const int64_t last = end * batch.bag;
    for (int64_t b = begin; b < end; ++b) {
      float* out = output_ + b * dim;
      for (int64_t k = 0; k < batch.bag; ++k) {
        const int64_t lookup = b * batch.bag + k;
        if (lookup + kPrefetchDistance < last) {
          Prefetch(rows_ + batch.lookups[lookup + kPrefetchDistance] * dim, dim, false);
        }
        const float* __restrict row = rows_ + batch.lookups[lookup] * dim;
        if (k == 0) {
          for (int64_t j = 0; j < dim; ++j) out[j] = row[j];
        } else {
          for (int64_t j = 0; j < dim; ++j) out[j] += row[j];
        }
      }
    }
  }

  template <int kDim>
  void UpdateDim(const Batch& batch, const float* upstream, float rate, float adam_rate,
                 float epsilon, int64_t begin, int64_t end) {
    switch (rule_) {
      case kSgd:
        return UpdateRule<kDim, kSgd>(batch, upstream, rate, epsilon, begin, end);
      case kAdagrad:
        return UpdateRule<kDim, kAdagrad>(batch, upstream, rate, epsilon, begin, end);
      case kRowWiseAdagrad:
        return UpdateRule<kDim, kRowWiseAdagrad>(batch, upstream, rate, epsilon, begin, end);
      case kAdam:
        return UpdateRule<kDim, kAdam>(batch, upstream, adam_rate, epsilon, begin, end);
    }
  }

  template <int kDim, Rule kRule>
  void UpdateRule(const Batch& batch, const float* upstream, float rate, float epsilon,
                  int64_t begin, int64_t end) {
    constexpr bool kHasElementSlot = kRule == kAdagrad || kRule == kAdam;
    const int64_t dim = kDim ? kDim : dim_;
    // On the stack for the usual dims, so that the compiler keeps it in registers.
    float fixed[kDim ? kDim : 1];
    std::vector<float> variable(kDim ? 0 : dim);
    float* __restrict sum = kDim ? fixed : variable.data();
    for (int64_t d = begin; d < end; ++d) {
      if (d + kPrefetchDistance < end) {
        const int64_t ahead = batch.distinct[d + kPrefetchDistance];
        Prefetch(rows_ + ahead * dim, dim, true);
        if (kHasElementSlot) Prefetch(first_slot_ + ahead * dim, dim, true);
        if (kRule == kAdam) Prefetch(second_slot_ + ahead * dim, dim, true);
        if (kRule == kRowWiseAdagrad) __builtin_prefetch(first_slot_ + ahead, 1);
        const int64_t position = batch.positions[batch.offsets[d + kPrefetchDistance]];
        Prefetch(upstream + position * dim, dim, false);
      }
      const float* __restrict grad = upstream + batch.positions[batch.offsets[d]] * dim;
      for (int64_t j = 0; j < dim; ++j) sum[j] = grad[j];
      for (int64_t p = batch.offsets[d] + 1; p < batch.offsets[d + 1]; ++p) {
        grad = upstream + batch.positions[p] * dim;
        for (int64_t j = 0; j < dim; ++j) sum[j] += grad[j];
      }
      const int64_t row_id = batch.distinct[d];
      float* __restrict row = rows_ + row_id * dim;
      if (kRule == kSgd) {
        for (int64_t j = 0; j < dim; ++j) row[j] -= rate * sum[j];
      } else if (kRule == kAdagrad) {
        float* __restrict slot = first_slot_ + row_id * dim;
        for (int64_t j = 0; j < dim; ++j) {
          slot[j] += sum[j] * sum[j];
          row[j] -= rate * sum[j] / std::sqrt(slot[j] + epsilon);
        }
      } else if (kRule == kRowWiseAdagrad) {
        float squares = 0;
        for (int64_t j = 0; j < dim; ++j) squares += sum[j] * sum[j];
        first_slot_[row_id] += squares / dim;
        const float scale = rate / (std::sqrt(first_slot_[row_id]) + epsilon);
        for (int64_t j = 0; j < dim; ++j) row[j] -= scale * sum[j];
      } else {
        float* __restrict mean = first_slot_ + row_id * dim;
        float* __restrict square = second_slot_ + row_id * dim;
        for (int64_t j = 0; j < dim; ++j) {
          mean[j] = kBeta1 * mean[j] + (1 - kBeta1) * sum[j];
          square[j] = kBeta2 * square[j] + (1 - kBeta2) * sum[j] * sum[j];
          row[j] -= rate * mean[j] / (std::sqrt(square[j]) + epsilon);
        }
      }
    }
  }

  Rule rule_;
  int64_t dim_;
  float* rows_;
  float* output_;
  float* first_slot_ = nullptr;
  float* second_slot_ = nullptr;
};

// Spins for some microseconds, then lets others have the core: they may be whom we wait for.
inline void Wait(int64_t* idle) {
  if (++*idle > 10000) std::this_thread::yield();
}

// Threads that wait spinning: waking one costs more than a step of a small batch.
class Crew {
 public:
  explicit Crew(int num_threads) : num_threads_(num_threads) {
    for (int t = 1; t < num_threads; ++t) {
      std::thread([this, t] {
        for (int64_t seen = 0, idle = 0;;) {
          const int64_t now = round_.load(std::memory_order_acquire);
          if (now == seen) {
            Wait(&idle);
            continue;
          }
          idle = 0;
          seen = now;
          call_(context_, t);
          num_done_.fetch_add(1, std::memory_order_release);
        }
      }).detach();
    }
  }

  // Calls `run(thread)` on every thread and waits for all.
  template <class Run>
  void Do(Run run) {
    context_ = &run;
    call_ = [](void* context, int thread) { (*static_cast<Run*>(context))(thread); };
    num_done_.store(0, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    run(0);
    int64_t idle = 0;
    while (num_done_.load(std::memory_order_acquire) < num_threads_ - 1) Wait(&idle);
  }

  int num_threads() const { return num_threads_; }

 private:
  const int num_threads_;
  std::atomic<int64_t> round_{0};
  std::atomic<int> num_done_{0};
  void* context_ = nullptr;
  void (*call_)(void*, int) = nullptr;
};

struct Limit {
  std::vector<Table> tables;
  Crew* crew;
  int64_t num_steps = 0;
};

}  // namespace

extern "C" {

// Returns a handle with zeroed slots and random rows.
void* LimitCreate(int rule, const int64_t* num_rows, int64_t num_tables, int64_t dim,
                  int64_t max_bags, float initial, int num_threads) {
  auto* limit = new Limit;
  for (int64_t t = 0; t < num_tables; ++t) {
    limit->tables.emplace_back(static_cast<Rule>(rule), num_rows[t], dim, max_bags, initial);
  }
  limit->crew = new Crew(num_threads);
  return limit;
}

// The rows of a table, [num_rows, dim].
const float* LimitRows(void* handle, int64_t table) {
  return static_cast<Limit*>(handle)->tables[table].rows();
}

// One step of every table. `upstream` has a pointer per table, to [num_bags, dim].
void LimitStep(void* handle, const Batch* batches, const float* const* upstream, float rate,
               float epsilon) {
  auto* limit = static_cast<Limit*>(handle);
  const auto step = static_cast<float>(++limit->num_steps);
  const float adam_rate =
      rate * std::sqrt(1 - std::pow(kBeta2, step)) / (1 - std::pow(kBeta1, step));
  const int64_t num_threads = limit->crew->num_threads();
  limit->crew->Do([&](int64_t thread) {
    for (size_t t = 0; t < limit->tables.size(); ++t) {
      const int64_t num = batches[t].num_bags;
      limit->tables[t].Gather(batches[t], num * thread / num_threads,
                              num * (thread + 1) / num_threads);
    }
  });
  limit->crew->Do([&](int64_t thread) {
    for (size_t t = 0; t < limit->tables.size(); ++t) {
      // Halves of the lookups, not of the rows: popular rows have many gradients.
      const Batch& b = batches[t];
      const auto bound = [&](int64_t n) {
        const int64_t position = b.offsets[b.num_distinct] * n / num_threads;
        return std::lower_bound(b.offsets, b.offsets + b.num_distinct, position) - b.offsets;
      };
      limit->tables[t].Update(b, upstream[t], rate, adam_rate, epsilon, bound(thread),
                              thread + 1 == num_threads ? b.num_distinct : bound(thread + 1));
    }
  });
}

}  // extern "C"
