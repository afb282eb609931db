#include <ucontext.h>

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "cuda_runtime.h"
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated_cuda {
namespace {

constexpr size_t kStackBytes = 1 << 18;

struct Barrier {
  unsigned arrived = 0;
  int64_t generation = 0;
};
struct Warp {
  std::map<unsigned, Barrier> barriers;  // by their masks
  uint64_t slots[32];
};
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool is_done;
  const Barrier* waits_at;  // null: it can go on
  int64_t generation;       // of that barrier while it waits
};

// Of the block that runs.
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Warp> warps;
ucontext_t scheduler;
const std::function<void()>* running_kernel;
[[maybe_unused]] const void* scheduler_stack;
[[maybe_unused]] size_t scheduler_bytes;

Warp& OwnWarp() { return warps[threadIdx.x / 32]; }

// The sanitizer must know whose stack is in use.
void SwitchToScheduler(Fiber* from, bool is_last) {
#ifdef __SANITIZE_ADDRESS__
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(is_last ? nullptr : &fake_stack, scheduler_stack, scheduler_bytes);
#endif
  (void)is_last;
  const dim3 thread = threadIdx;
  swapcontext(&from->context, &scheduler);
  threadIdx = thread;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack, &scheduler_bytes);
#endif
}

void RunFiber() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_bytes);
#endif
  Fiber* own = fibers[threadIdx.x].get();
  (*running_kernel)();
  own->is_done = true;
  SwitchToScheduler(own, true);
}

void Resume(unsigned thread) {
  threadIdx = dim3(thread);
#ifdef __SANITIZE_ADDRESS__
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, fibers[thread]->stack.get(), kStackBytes);
#endif
  swapcontext(&scheduler, &fibers[thread]->context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

std::vector<unsigned> Turns(unsigned num) {
  std::vector<unsigned> turns(num);
  std::iota(turns.begin(), turns.end(), 0u);
  if (order == Order::kBackward) std::reverse(turns.begin(), turns.end());
  static std::mt19937 random;
  if (order == Order::kShuffled) std::shuffle(turns.begin(), turns.end(), random);
  return turns;
}

void RunBlock() {
  const unsigned num = blockDim.x;
  while (fibers.size() < num) fibers.push_back(std::make_unique<Fiber>());
  warps.assign((num + 31) / 32, {});
  const std::vector<unsigned> turns = Turns(num);
  for (const unsigned thread : turns) {
    Fiber& fiber = *fibers[thread];
    fiber.is_done = false;
    fiber.waits_at = nullptr;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, RunFiber, 0);
  }
  for (bool all_done = false; !all_done;) {
    all_done = true;
    bool has_progress = false;
    for (const unsigned thread : turns) {
      const Fiber& fiber = *fibers[thread];
      if (fiber.is_done) continue;
      all_done = false;
      if (fiber.waits_at != nullptr && fiber.waits_at->generation == fiber.generation) continue;
      has_progress = true;
      Resume(thread);
    }
    if (!all_done && !has_progress) Fail("lanes wait for others that do not come");
  }
}

}  // namespace

void Fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s (thread %u of block %u)\n", what, threadIdx.x,
               blockIdx.x);
  std::abort();
}

uint64_t* WarpSlots() { return OwnWarp().slots; }

void WarpBarrier(unsigned mask) {
  const unsigned bit = 1u << Lane();
  if ((mask & bit) == 0) Fail("a lane waits under a mask that does not name it");
  Barrier& barrier = OwnWarp().barriers[mask];
  barrier.arrived |= bit;
  if (barrier.arrived == mask) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  Fiber* own = fibers[threadIdx.x].get();
  own->waits_at = &barrier;
  own->generation = barrier.generation;
  SwitchToScheduler(own, false);
  own->waits_at = nullptr;
}

void Run(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
  running_kernel = &kernel;
  blockDim = config.blockDim;
  gridDim = config.gridDim;
  for (const unsigned block : Turns(config.gridDim.x)) {
    blockIdx = dim3(block);
    RunBlock();
  }
}

}  // namespace emulated_cuda
