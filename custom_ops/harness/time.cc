// Times the CUDA kernels against a copy within the device's memory, in one run: what bytes must
// move at least, over the time, over the copy's bandwidth. Exit status 77: no device, nothing was
// timed.
//
// time [DIVISOR]: tables and batches smaller by so much, to see that it runs.
#include <algorithm>
#include <cmath>
#include <functional>
#include <random>

#include "step_data.h"

namespace slipstream::harness {
namespace {

constexpr int kNoDevice = 77;
constexpr int kWarmUps = 3, kRepeats = 20;
constexpr double kGigabyte = 1e9;

// Median milliseconds of `enqueue`.
double Time(const std::function<void()>& enqueue) {
  std::vector<float> times;
  for (int i = 0; i < kWarmUps + kRepeats; ++i) {
    cudaEvent_t begin, end;
    REQUIRE(cudaEventCreate(&begin));
    REQUIRE(cudaEventCreate(&end));
    REQUIRE(cudaEventRecord(begin, nullptr));
    enqueue();
    REQUIRE(cudaEventRecord(end, nullptr));
    REQUIRE(cudaEventSynchronize(end));
    float milliseconds = 0;
    REQUIRE(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i >= kWarmUps) times.push_back(milliseconds);
    REQUIRE(cudaEventDestroy(begin));
    REQUIRE(cudaEventDestroy(end));
  }
  std::nth_element(times.begin(), times.begin() + kRepeats / 2, times.end());
  return times[kRepeats / 2];
}

// Gigabytes a second that a copy moves, read and written.
double CopyBandwidth(int64_t num_bytes) {
  const DeviceArray<char> from(num_bytes), to(num_bytes);
  const double milliseconds = Time([&] {
    REQUIRE(cudaMemcpyAsync(to.data(), from.data(), num_bytes, cudaMemcpyDeviceToDevice, nullptr));
  });
  return 2 * num_bytes / kGigabyte / (milliseconds / 1e3);
}

void Print(const std::string& what, double milliseconds, double num_bytes, double bandwidth) {
  const double reached = num_bytes / kGigabyte / (milliseconds / 1e3);
  std::printf("%-58s %9.3f ms %8.1f GB/s %5.0f%% of copy\n", what.c_str(), milliseconds, reached,
              100 * reached / bandwidth);
}

// Bytes that an update of one row must move: row and slots in and out, the gradient in.
double BytesPerRow(const DeviceTable& table) {
  double num_floats = 3.0 * table.host.dim;
  for (size_t s = 0; s < table.slots.size(); ++s) num_floats += 2.0 * table.host.slot_dim;
  return 4 * num_floats + 8 + (table.last_steps.size() > 0 ? 8 : 0);
}

// Row updates alone, of distinct random rows.
void TimeUpdates(double bandwidth, int64_t divisor, gpu::Report* report) {
  const RuleCase rules[] = {
      {"adagrad", {1e-7}}, {"adam", {0.9, 0.999, 1e-7, 0}}, {"row_wise_adagrad", {1e-7}}};
  std::printf("row updates, distinct random rows of a table of 10 GB:\n");
  for (const RuleCase& rule : rules) {
    for (const int64_t dim : {64, 128}) {
      const int64_t num_rows = 10'000'000'000 / (4 * dim) / divisor;
      const int64_t num_lookups = (int64_t{1} << 20) / divisor;
      std::vector<DeviceTable> tables;
      tables.emplace_back(rule, num_rows, dim);
      BatchData<int64_t> batch;
      // Multiples of an odd number, which has no factor in common with any power of two: distinct
      // below 2^k rows, and far apart.
      int64_t modulus = 1;
      while (2 * modulus <= num_rows) modulus *= 2;
      for (int64_t i = 0; i < num_lookups; ++i) {
        batch.ids.push_back((i + 1) * 2654435761 % modulus);
      }
      batch.grads.assign(num_lookups * dim, 0.5f);
      const DeviceStep<int64_t> step(rule, {batch}, {}, tables);
      step.Apply(report, gpu::Half::kFind);
      const double milliseconds = Time([&] { step.Apply(report, gpu::Half::kUpdate); });
      Print(std::string("  ") + rule.name + ", dim " + std::to_string(dim), milliseconds,
            num_lookups * BytesPerRow(tables[0]), bandwidth);
    }
  }
}

// Ranks of a bounded Zipf distribution by inversion of its continuous form; then scattered.
std::vector<int64_t> ZipfIds(int64_t num_rows, int64_t num_lookups, double exponent) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> uniform(0, 1);
  std::vector<int64_t> ids(num_lookups);
  const double power = 1 - exponent, last = std::pow(num_rows + 1.0, power);
  for (int64_t& id : ids) {
    const double rank = std::pow(1 + uniform(random) * (last - 1), 1 / power);
    id = static_cast<int64_t>(std::min<double>(rank, num_rows) - 1) * 2654435761 % num_rows;
  }
  return ids;
}

double NumDistinct(std::vector<int64_t> ids) {
  std::sort(ids.begin(), ids.end());
  return std::unique(ids.begin(), ids.end()) - ids.begin();
}

// Whole steps: finding rows, summing gradients, updating.
void TimeSteps(double bandwidth, int64_t divisor, gpu::Report* report) {
  const RuleCase rule = {"adagrad", {1e-7}};
  const int64_t num_rows = 10'000'000 / divisor, dim = 64;
  std::printf(
      "live_slices and Adagrad, Zipf 1.1, %lld x %lld; least bytes: ids, gradients, rows:\n",
      static_cast<long long>(num_rows), static_cast<long long>(dim));
  for (const int64_t whole : {53'248, 500'000, 4'000'000}) {
    const int64_t num_lookups = std::max<int64_t>(1, whole / divisor);
    std::vector<DeviceTable> tables;
    tables.emplace_back(rule, num_rows, dim);
    BatchData<int64_t> batch = {ZipfIds(num_rows, num_lookups, 1.1),
                                std::vector<float>(num_lookups * dim, 0.5f)};
    const double num_distinct = NumDistinct(batch.ids);
    const DeviceStep<int64_t> step(rule, {batch}, {}, tables);
    const double num_bytes = num_lookups * (8.0 + 4 * dim) + num_distinct * 4 * 4 * dim;
    const std::string name = "  " + std::to_string(num_lookups) + " lookups";
    Print(name, Time([&] { step.Apply(report); }), num_bytes, bandwidth);
    Print(name + ", finding and summing alone", Time([&] { step.Apply(report, gpu::Half::kFind); }),
          num_lookups * (8.0 + 4 * dim), bandwidth);
  }
}

// A step in which half of the lookups are of rows that sleep and are skipped, against none.
void TimeSkipping(int64_t divisor, gpu::Report* report) {
  const RuleCase rule = {"adagrad", {1e-7}};
  const int64_t num_rows = 1'000'000 / divisor, dim = 64, num_lookups = 500'000 / divisor;
  BatchData<int64_t> batch = {ZipfIds(num_rows, num_lookups, 1.1),
                              std::vector<float>(num_lookups * dim, 0.5f)};
  // No row becomes popular, and those that are do not wake.
  const std::vector<double> policy = {1, 2e9, 8, 8, 0, 0, 1, 1, 1, 1, 1, 0, 0, 1e15, 0};
  double milliseconds[2];
  for (const bool skips : {false, true}) {
    std::mt19937_64 random(2);
    std::vector<bool> is_stale(num_rows);
    for (int64_t id = 0; id < num_rows; ++id) is_stale[id] = skips && random() % 2 == 0;
    TableData data = NewTable(rule, num_rows, dim, policy, num_rows);
    data.state[0].learning_rate = 0.125;
    int64_t num_entries = 0, num_stale = 0;
    for (int64_t id = 0; id < num_rows; ++id) {
      if (!is_stale[id]) continue;
      data.entries[num_entries] = {id, int64_t{1} << 40, int64_t{1} << 40, 1, 0, 1, 0, 1};
      data.row_states[id] = static_cast<int32_t>(-1 - num_entries++);
    }
    data.state[0].num_entries = static_cast<double>(num_entries);
    for (const int64_t id : batch.ids) num_stale += is_stale[id];
    std::vector<DeviceTable> tables;
    tables.emplace_back(data);
    const DeviceStep<int64_t> step(rule, {batch}, {}, tables);
    milliseconds[skips] = Time([&] { step.Apply(report); });
    std::printf("%lld lookups under a policy, %.0f%% of them skipped: %.3f ms\n",
                static_cast<long long>(num_lookups), 100.0 * num_stale / num_lookups,
                milliseconds[skips]);
  }
  std::printf("  %.2fx\n", milliseconds[0] / milliseconds[1]);
}

int Main(int64_t divisor) {
  int num_devices = 0;
  if (cudaGetDeviceCount(&num_devices) != cudaSuccess || num_devices == 0) {
    std::printf("time: no CUDA device was found. Compiled and linked; NOTHING WAS TIMED.\n");
    return kNoDevice;
  }
  cudaDeviceProp properties = {};
  REQUIRE(cudaGetDeviceProperties(&properties, 0));
  gpu::Report* report = nullptr;
  REQUIRE(gpu::AllocateReport(&report));
  const double bandwidth = CopyBandwidth((int64_t{2} << 30) / divisor);
  std::printf("%s, copy: %.1f GB/s; medians of %d\n", properties.name, bandwidth, kRepeats);
  TimeUpdates(bandwidth, divisor, report);
  TimeSteps(bandwidth, divisor, report);
  TimeSkipping(divisor, report);
  REQUIRE(cudaDeviceSynchronize());
  const bool is_bad = gpu::TakeReport(report).kind != BadLookup::kNone;
  if (is_bad) std::printf("time: a step was refused; the times above are of nothing\n");
  REQUIRE(cudaFreeHost(report));
  return is_bad;
}

}  // namespace
}  // namespace slipstream::harness

int main(int argc, char** argv) {
  return slipstream::harness::Main(argc > 1 ? std::max(1ll, std::atoll(argv[1])) : 1);
}
