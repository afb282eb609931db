// A team's sections: each task once, none after the section, whatever its helpers do.
#include "../kernels/thread_team.h"

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>

#include "test_support.h"

namespace slipstream {
namespace {

using Help = std::function<void()>;

// Many short sections with plain writes between them, which must be seen and must not race.
void TestSections(int64_t num_threads, const ThreadTeam::Schedule& schedule) {
  ThreadTeam team(num_threads, schedule);
  const ParallelFor parallel_for = team.parallel_for();
  std::mt19937_64 random(3);
  std::vector<int64_t> values;
  for (int64_t section = 1; section <= 300; ++section) {
    const int64_t num_tasks = RandomBelow(&random, 12);
    values.assign(num_tasks, -1);
    parallel_for(num_tasks, [&](int64_t i) { values[i] = values[i] == -1 ? section + i : -2; });
    bool each_once = true;
    for (int64_t i = 0; i < num_tasks; ++i) each_once &= values[i] == section + i;
    CHECK(each_once);
  }
}

// Helpers do take part: two tasks that wait for each other end only on two threads.
void TestHelpersJoin() {
  std::vector<std::thread> helpers;
  {
    ThreadTeam team(2, [&](Help help) { helpers.emplace_back(std::move(help)); });
    for (int repeat = 0; repeat < 3; ++repeat) {
      std::atomic<int> num_arrived{0};
      std::set<std::thread::id> threads;
      std::mutex mutex;
      team.parallel_for()(2, [&](int64_t) {
        ++num_arrived;
        while (num_arrived < 2) std::this_thread::yield();
        const std::lock_guard<std::mutex> lock(mutex);
        threads.insert(std::this_thread::get_id());
      });
      CHECK_EQ(threads.size(), size_t{2});
    }
  }
  for (std::thread& helper : helpers) helper.join();
  CHECK_EQ(helpers.size(), size_t{1});  // asked for once
}

// One that comes after the team is gone touches nothing of it.
void TestHelperThatComesTooLate() {
  std::vector<Help> late;
  {
    ThreadTeam team(4, [&](Help help) { late.push_back(std::move(help)); });
    int64_t sum = 0;
    team.parallel_for()(4, [&](int64_t i) { sum += i; });  // on this thread alone
    CHECK_EQ(sum, int64_t{6});
  }
  CHECK_EQ(late.size(), size_t{3});
  std::thread([&] {
    for (const Help& help : late) help();
  }).join();
}

}  // namespace

void TestThreadTeam() {
  current_case = "thread team";
  for (int64_t num_threads : {1, 2, 3, 5}) {
    std::vector<std::thread> helpers;
    TestSections(num_threads, [&](Help help) { helpers.emplace_back(std::move(help)); });
    TestSections(num_threads, [&](Help help) {
      helpers.emplace_back([help = std::move(help)] {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        help();
      });
    });
    for (std::thread& helper : helpers) helper.join();
    // As a pool does whose queue is full.
    TestSections(num_threads, [](const Help& help) { help(); });
  }
  TestHelpersJoin();
  TestHelperThatComesTooLate();
}

}  // namespace slipstream
