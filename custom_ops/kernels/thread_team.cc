#include "thread_team.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace slipstream {
namespace {

// Some 20 us, as long as the serial work between two sections takes; then others may have the core.
constexpr int kSpins = 500;
constexpr int kYields = 100;

class Waiting {
 public:
  void Once() {
    if (num_ < kSpins) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    } else if (num_ < kSpins + kYields) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    ++num_;
  }

 private:
  int num_ = 0;
};

// A thread's share of the tasks, in a cache line of its own.
struct alignas(64) Share {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

}  // namespace

struct ThreadTeam::Shared {
  explicit Shared(int64_t num_threads) : shares(num_threads) {}

  // Odd while a section is open. What a section is made of is written before it opens, and not
  // again before it is closed and `num_active` is 0.
  std::atomic<uint64_t> section{0};
  std::atomic<int64_t> num_active{0};
  std::atomic<bool> is_over{false};
  const std::thread::id caller = std::this_thread::get_id();
  const std::function<void(int64_t)>* task = nullptr;
  std::vector<Share> shares;

  void Work(int64_t thread) {
    const int64_t num_threads = shares.size();
    for (int64_t t = 0; t < num_threads; ++t) {
      Share& share = shares[(thread + t) % num_threads];
      for (int64_t i = share.next++; i < share.end; i = share.next++) (*task)(i);
    }
  }

  void Help(int64_t thread) {
    // A pool whose queue is full runs a function at once, on the thread that schedules it.
    if (std::this_thread::get_id() == caller) return;
    uint64_t done = 0;
    Waiting waiting;
    while (!is_over.load(std::memory_order_acquire)) {
      const uint64_t now = section.load();
      if (now % 2 == 0 || now == done) {
        waiting.Once();
        continue;
      }
      ++num_active;
      // Still open: then it will not be closed without waiting for this thread.
      if (section.load() == now) Work(thread);
      --num_active;
      done = now;
      waiting = Waiting();
    }
  }
};

ThreadTeam::ThreadTeam(int64_t num_threads, Schedule schedule)
    : num_threads_(std::max<int64_t>(1, num_threads)),
      schedule_(std::move(schedule)),
      shared_(std::make_shared<Shared>(num_threads_)) {}

ThreadTeam::~ThreadTeam() { shared_->is_over.store(true, std::memory_order_release); }

ParallelFor ThreadTeam::parallel_for() {
  return
      [this](int64_t num_tasks, const std::function<void(int64_t)>& task) { Run(num_tasks, task); };
}

void ThreadTeam::Run(int64_t num_tasks, const std::function<void(int64_t)>& task) {
  if (num_threads_ == 1 || num_tasks <= 1) {
    for (int64_t i = 0; i < num_tasks; ++i) task(i);
    return;
  }
  shared_->task = &task;
  for (int64_t t = 0; t < num_threads_; ++t) {
    Share& share = shared_->shares[t];
    share.next.store(num_tasks * t / num_threads_, std::memory_order_relaxed);
    share.end = num_tasks * (t + 1) / num_threads_;
  }
  ++shared_->section;
  for (; num_asked_ + 1 < std::min(num_threads_, num_tasks); ++num_asked_) {
    schedule_([shared = shared_, thread = num_asked_ + 1] { shared->Help(thread); });
  }
  shared_->Work(0);
  ++shared_->section;
  Waiting waiting;
  while (shared_->num_active.load() != 0) waiting.Once();
}

}  // namespace slipstream
