#ifndef SLIPSTREAM_TESTS_TEST_SUPPORT_H_
#define SLIPSTREAM_TESTS_TEST_SUPPORT_H_

// What the kernels' tests share: checks that report and carry on, and ways to run tasks.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iostream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../kernels/parallel.h"
#include "../kernels/staleness.h"

namespace slipstream {

// One function per kernel, called by main.
void TestFieldRows();
void TestGatherRows();
void TestHostileState();
void TestHostileVocabulary();
void TestHugePages();
void TestRowCache();
void TestLiveRows();
void TestStaleness();
void TestThreadTeam();
void TestUpdateRows();
void TestVocabulary();

inline int64_t num_checks = 0;
inline int64_t num_failures = 0;
inline std::string current_case;  // printed with what fails in it

// Of all results so far: other builds, with other instructions, must come to the same.
inline uint64_t digest = 14695981039346656037u;

template <typename T>
void AddToDigest(const std::vector<T>& values) {
  const unsigned char* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(T); ++i) {
    digest = (digest ^ bytes[i]) * 1099511628211u;
  }
}

template <typename A, typename B>
void CheckOne(bool passed, const char* file, int line, const char* what, const A& actual,
              const B& expected) {
  ++num_checks;
  if (passed || ++num_failures > 20) return;
  std::cerr << file << ":" << line << ": " << what << " is " << actual << ", expected " << expected
            << " (" << current_case << ")\n";
}

template <typename T>
void CheckSameBits(const char* file, int line, const char* what, const std::vector<T>& actual,
                   const std::vector<T>& expected) {
  CheckOne(actual.size() == expected.size(), file, line, what, actual.size(), expected.size());
  if (actual.size() != expected.size() || actual.empty()) return;
  size_t i = 0;
  const bool same = std::memcmp(actual.data(), expected.data(), actual.size() * sizeof(T)) == 0;
  while (!same && std::memcmp(&actual[i], &expected[i], sizeof(T)) == 0) ++i;
  const std::string element = std::string(what) + "[" + std::to_string(i) + "]";
  CheckOne(same, file, line, element.c_str(), actual[i], expected[i]);
}

// Within `tolerance`, relative where the expected value is above 1.
inline void CheckNear(const char* file, int line, const char* what,
                      const std::vector<float>& actual, const std::vector<double>& expected,
                      double tolerance) {
  CheckOne(actual.size() == expected.size(), file, line, what, actual.size(), expected.size());
  if (actual.size() != expected.size()) return;
  size_t i = 0;
  while (i < actual.size() &&
         std::abs(actual[i] - expected[i]) <= tolerance * std::fmax(1, std::abs(expected[i]))) {
    ++i;
  }
  const std::string element = std::string(what) + "[" + std::to_string(i) + "]";
  const bool near = i == actual.size();
  CheckOne(near, file, line, element.c_str(), near ? 0 : actual[i], near ? 0 : expected[i]);
}

#define CHECK(condition)                                                                      \
  slipstream::CheckOne(static_cast<bool>(condition), __FILE__, __LINE__, #condition, "false", \
                       "true")
#define CHECK_EQ(actual, expected) \
  slipstream::CheckOne((actual) == (expected), __FILE__, __LINE__, #actual, actual, expected)
#define CHECK_SAME_BITS(actual, expected) \
  slipstream::CheckSameBits(__FILE__, __LINE__, #actual, actual, expected)
#define CHECK_NEAR(actual, expected, tolerance) \
  slipstream::CheckNear(__FILE__, __LINE__, #actual, actual, expected, tolerance)

// In order, in reverse, and on four threads. Each of these has a fixed share, since one that took
// the next task might do all of a short test alone.
inline std::vector<ParallelFor> AllParallelFors() {
  using Task = std::function<void(int64_t)>;
  const auto in_order = [](int64_t num_tasks, const Task& task) {
    for (int64_t i = 0; i < num_tasks; ++i) task(i);
  };
  const auto reversed = [](int64_t num_tasks, const Task& task) {
    for (int64_t i = num_tasks - 1; i >= 0; --i) task(i);
  };
  const auto on_threads = [](int64_t num_tasks, const Task& task) {
    constexpr int64_t kNumThreads = 4;
    std::vector<std::thread> threads;
    for (int64_t t = 0; t < kNumThreads; ++t) {
      threads.emplace_back([&task, num_tasks, t] {
        for (int64_t i = t; i < num_tasks; i += kNumThreads) task(i);
      });
    }
    for (std::thread& thread : threads) thread.join();
  };
  return {in_order, reversed, on_threads};
}

inline int64_t RandomBelow(std::mt19937_64* random, int64_t limit) {
  return static_cast<int64_t>((*random)() % static_cast<uint64_t>(limit));
}

// In [-1, 1], with all the bits that a float has, so that sums depend on their order.
inline float RandomFloat(std::mt19937_64* random) {
  return static_cast<float>(
      std::ldexp(static_cast<double>(static_cast<int64_t>((*random)())), -63));
}

// A heap block that ends where the values end, so that the sanitizer sees every read past them.
inline std::vector<float> RandomFloats(std::mt19937_64* random, int64_t num) {
  std::vector<float> values(num);
  for (float& value : values) value = RandomFloat(random);
  return values;
}

// A policy from its fields' values in the order of schema.h.
inline PolicySettings PolicyOf(const std::vector<double>& values) {
  static const char* const kFields[] = {
#define SLIPSTREAM_FIELD(type, name) #name,
      SLIPSTREAM_POLICY_FIELDS(SLIPSTREAM_FIELD)
#undef SLIPSTREAM_FIELD
  };
  PolicySettings policy;
  for (size_t i = 0; i < values.size(); ++i) CHECK(policy.Set(kFields[i], values[i]));
  return policy;
}

// StepSettings::tails of Adam, summed term by term.
inline std::vector<float> AdamTails(double beta_1, double beta_2, bool amsgrad, int64_t num) {
  const double r = amsgrad ? beta_1 : beta_1 / std::sqrt(beta_2);
  std::vector<float> tails(num);
  for (int64_t t = 0; t < num; ++t) {
    double sum = 0, power = 1;
    for (int64_t j = 1; j < 2000; ++j) {
      power *= r;
      const double at = static_cast<double>(t + j);
      sum += power * std::sqrt(1 - std::pow(beta_2, at)) / (1 - std::pow(beta_1, at));
    }
    tails[t] = static_cast<float>(sum);
  }
  return tails;
}

}  // namespace slipstream

#endif  // SLIPSTREAM_TESTS_TEST_SUPPORT_H_
