#ifndef SLIPSTREAM_TF_KERNEL_CONTEXT_H_
#define SLIPSTREAM_TF_KERNEL_CONTEXT_H_

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "../kernels/live_rows.h"
#include "../kernels/thread_team.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace slipstream {

template <typename... Args>
absl::Status InvalidArgument(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

// The calling thread, and threads of the device's intra-op pool.
ThreadTeam IntraOpTeam(tensorflow::OpKernelContext* context);

// Memory for LiveRows::Find, reused from step to step; one to each of the steps that run at once.
class LiveRowsPool {
 public:
  std::unique_ptr<LiveRows> Take();
  // Gives it back, unless its step was so large that keeping it would hold too much memory.
  void Return(std::unique_ptr<LiveRows> live_rows, int64_t num_lookups);

 private:
  std::mutex mutex_;  // guards free_
  std::vector<std::unique_ptr<LiveRows>> free_;
};

// Reads the inputs "indices" and "grads" of an op: one pair per table. `num_rows`, `dims` and
// `states` are the tables', `bags` the gradient row of each lookup, for each table or for none; one
// that is empty: its own. Checks ranks and sizes.
template <typename Index>
absl::Status ReadLookups(tensorflow::OpKernelContext* context,
                         const std::vector<std::string>& table_names,
                         const std::vector<int64_t>& num_rows, const std::vector<int64_t>& dims,
                         const std::vector<RowStates>& states, std::vector<Lookups<Index>>* lookups,
                         const tensorflow::OpInputList& bags = {});

// What to do where state makes no sense.
inline constexpr char kNotRestoredWhole[] =
    "it was not restored whole. No row was changed. Restore the model with its optimizer, or start "
    "with a new optimizer.";

// What is wrong with an entry of a pool.
absl::Status BadEntryError(int64_t entry, const std::string& table_name);

// What is wrong with a lookup, for the user who made the batch.
absl::Status BadLookupError(const BadLookup& bad, const std::string& table_name, int64_t num_rows);

}  // namespace slipstream

#endif  // SLIPSTREAM_TF_KERNEL_CONTEXT_H_
