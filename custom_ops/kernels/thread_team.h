#ifndef SLIPSTREAM_KERNELS_THREAD_TEAM_H_
#define SLIPSTREAM_KERNELS_THREAD_TEAM_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "parallel.h"

namespace slipstream {

// Threads that stay together for a step. A step has four parallel sections of well under a
// millisecond with short serial ones between them: waking threads for each section takes as long as
// a good part of its work, so helpers are asked for once and wait between sections, spinning first
// and then yielding.
//
// A helper that comes late joins the section that is running then, and one that never comes is not
// waited for: the calling thread alone can do all the work.
class ThreadTeam {
 public:
  // Runs a function on another thread, at any time later.
  using Schedule = std::function<void(std::function<void()>)>;

  // Of at most `num_threads` threads, the calling one included.
  ThreadTeam(int64_t num_threads, Schedule schedule);
  // Helpers leave by themselves; those that come later leave at once.
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  // A `ParallelFor` that lives no longer than the team; to be called by one thread at a time. Each
  // thread begins with its own share of the tasks, the same share of every section, so that it
  // finds in its cache what it wrote in the section before; then it takes over what others have
  // left.
  ParallelFor parallel_for();

 private:
  struct Shared;

  void Run(int64_t num_tasks, const std::function<void(int64_t)>& task);

  const int64_t num_threads_;
  const Schedule schedule_;
  int64_t num_asked_ = 0;  // helpers
  const std::shared_ptr<Shared> shared_;
};

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_THREAD_TEAM_H_
