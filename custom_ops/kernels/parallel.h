#ifndef SLIPSTREAM_KERNELS_PARALLEL_H_
#define SLIPSTREAM_KERNELS_PARALLEL_H_

#include <cstdint>
#include <functional>

namespace slipstream {

// Calls task(i) once for every i in [0, num_tasks), in any order and on any threads, and returns
// when all are done. No kernel's result depends on the order or on the number of threads.
using ParallelFor =
    std::function<void(int64_t num_tasks, const std::function<void(int64_t)>& task)>;

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_PARALLEL_H_
