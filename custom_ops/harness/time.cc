// Times the CUDA kernels against a copy within the device's memory, in one run: what bytes must
// move at least, over the time, over the copy's bandwidth. Exit status 77: no device, nothing was
// timed. Each line is written when it is known: a run that is cut has told what it got to.
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
  const bool is_bfloat16 = table.bfloat16_table.size() > 0;
  double num_bytes = (is_bfloat16 ? 2.0 * 2 + 4 : 3.0 * 4) * table.host.dim;
  for (size_t s = 0; s < table.slots.size(); ++s) num_bytes += 2.0 * 4 * table.host.slot_dim;
  return num_bytes + 8 + (table.last_steps.size() > 0 ? 8 : 0);
}

// Rows were last touched in a step before.
StepData Inputs(const RuleCase& rule) {
  StepData inputs;
  inputs.step = 20;
  AddTails(rule, &inputs);
  return inputs;
}

// Row updates alone, of distinct random rows.
void TimeUpdates(double bandwidth, int64_t divisor, gpu::Report* report) {
  const RuleCase rules[] = {{"sgd", {}},
                            {"adagrad", {1e-7}},
                            {"row_wise_adagrad", {1e-7}},
                            {"adam", {0.9, 0.999, 1e-7, 0}}};
  std::printf("row updates, distinct random rows of a table of 2.5 G elements:\n");
  for (const RuleCase& rule : rules) {
    for (const int64_t dim : {16, 64, 128}) {
      for (const bool is_bfloat16 : {false, true}) {
        if (is_bfloat16 && dim != 64) continue;
        const int64_t num_rows = 2'500'000'000 / dim / divisor;
        const int64_t num_lookups = (int64_t{1} << 20) / divisor;
        std::vector<DeviceTable> tables;
        tables.emplace_back(rule, num_rows, dim, is_bfloat16);
        BatchData<int64_t> batch;
        // Multiples of an odd number, which has no factor in common with any power of two: distinct
        // below 2^k rows, and far apart.
        int64_t modulus = 1;
        while (2 * modulus <= num_rows) modulus *= 2;
        for (int64_t i = 0; i < num_lookups; ++i) {
          batch.ids.push_back((i + 1) * 2654435761 % modulus);
        }
        batch.grads.assign(num_lookups * dim, 0.5f);
        const DeviceStep<int64_t> step(rule, {batch}, Inputs(rule), tables);
        step.Apply(report, gpu::Half::kFind);
        const double milliseconds = Time([&] { step.Apply(report, gpu::Half::kUpdate); });
        Print(std::string("  ") + rule.name + ", dim " + std::to_string(dim) +
                  (is_bfloat16 ? ", bfloat16" : ""),
              milliseconds, num_lookups * BytesPerRow(tables[0]), bandwidth);
      }
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
  const RuleCase rules[] = {{"sgd", {}}, {"adagrad", {1e-7}}, {"adam", {0.9, 0.999, 1e-7, 0}}};
  std::printf("steps, Zipf 1.1; least bytes: ids, gradients, rows and slots:\n");
  for (const auto& [whole_rows, dim] :
       {std::pair<int64_t, int64_t>{1'000'000, 32}, std::pair<int64_t, int64_t>{10'000'000, 64}}) {
    const int64_t num_rows = whole_rows / divisor;
    for (const int64_t whole : {53'248, 500'000, 4'000'000}) {
      const int64_t num_lookups = std::max<int64_t>(1, whole / divisor);
      const BatchData<int64_t> batch = {ZipfIds(num_rows, num_lookups, 1.1),
                                        std::vector<float>(num_lookups * dim, 0.5f)};
      const double num_distinct = NumDistinct(batch.ids);
      const std::string lookups = std::to_string(whole_rows) + " x " + std::to_string(dim) + ", " +
                                  std::to_string(whole) + " lookups";
      for (const RuleCase& rule : rules) {
        std::vector<DeviceTable> tables;
        tables.emplace_back(rule, num_rows, dim, false);
        const DeviceStep<int64_t> step(rule, {batch}, Inputs(rule), tables);
        const double least = num_lookups * (8.0 + 4 * dim) +
                             num_distinct * 4 * 2 * dim * (1 + tables[0].slots.size());
        Print("  " + lookups + ", " + rule.name, Time([&] { step.Apply(report); }), least,
              bandwidth);
        if (std::string(rule.name) != "adagrad") continue;
        Print("  " + lookups + ", finding and summing",
              Time([&] { step.Apply(report, gpu::Half::kFind); }), num_lookups * (8.0 + 4 * dim),
              bandwidth);
        DeviceArray<int32_t> num_slices(1);
        DeviceArray<int64_t> ids(num_lookups);
        DeviceArray<float> grads(num_lookups * dim);
        const double slices = Time([&] {
          step.Find(num_slices.data(), report);
          step.Copy(0, ids.data(), grads.data());
        });
        Print("  " + lookups + ", live_slices", slices,
              num_lookups * (8.0 + 4 * dim) + num_distinct * (8 + 4 * dim), bandwidth);
      }
    }
  }
}

// The lookups of a batch in many small tables, and the same rows in one table. A table costs its
// launches.
void TimeManyTables(double bandwidth, int64_t divisor, gpu::Report* report) {
  const RuleCase rule = {"adagrad", {1e-7}};
  const int64_t dim = 16, num_rows = std::max<int64_t>(1, 100'000 / divisor);
  const int64_t num_lookups = std::max<int64_t>(1, 2'048 / divisor);
  std::printf("many tables of 100,000 x 16, 2,048 lookups of each, Adagrad:\n");
  for (const int64_t num_tables : {26, 100}) {
    std::vector<BatchData<int64_t>> batches(num_tables);
    BatchData<int64_t> all;
    double num_distinct = 0;
    for (int64_t t = 0; t < num_tables; ++t) {
      batches[t] = {ZipfIds(num_rows, num_lookups, 1.1),
                    std::vector<float>(num_lookups * dim, 0.5f)};
      num_distinct += NumDistinct(batches[t].ids);
      for (const int64_t id : batches[t].ids) all.ids.push_back(t * num_rows + id);
    }
    all.grads.assign(all.ids.size() * dim, 0.5f);
    const double least = all.ids.size() * (8.0 + 4 * dim) + num_distinct * 4 * 4 * dim;
    for (const bool is_stacked : {false, true}) {
      std::vector<DeviceTable> tables;
      for (int64_t t = 0; t < (is_stacked ? 1 : num_tables); ++t) {
        tables.emplace_back(rule, is_stacked ? num_tables * num_rows : num_rows, dim, false);
      }
      const DeviceStep<int64_t> step(
          rule, is_stacked ? std::vector<BatchData<int64_t>>{all} : batches, {}, tables);
      Print("  " + std::to_string(num_tables) + (is_stacked ? " in one" : " tables"),
            Time([&] { step.Apply(report); }), least, bandwidth);
    }
  }
}

// A step in which half of the lookups are of rows that sleep, skipped or deferred, against none.
void TimeSleep(int64_t divisor, gpu::Report* report) {
  const RuleCase rule = {"adagrad", {1e-7}};
  const int64_t num_rows = 1'000'000 / divisor, dim = 64, num_lookups = 500'000 / divisor;
  const BatchData<int64_t> batch = {ZipfIds(num_rows, num_lookups, 1.1),
                                    std::vector<float>(num_lookups * dim, 0.5f)};
  // No row becomes popular, and those that are do not wake.
  const std::vector<double> policy = {1, 2e9, 8, 8, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 1e15, 0};
  const char* const kinds[] = {"nothing asleep", "skipped", "deferred"};
  std::printf("500,000 lookups of 1,000,000 x 64, Adagrad, a policy:\n");
  double milliseconds[3];
  for (int kind = 0; kind < 3; ++kind) {
    std::mt19937_64 random(2);
    std::vector<bool> is_stale(num_rows);
    for (int64_t id = 0; id < num_rows; ++id) is_stale[id] = kind > 0 && random() % 2 == 0;
    TableData data = NewTable(rule, num_rows, dim, policy, num_rows);
    data.state[0].learning_rate = 0.125;
    int64_t num_entries = 0, num_stale = 0;
    for (int64_t id = 0; id < num_rows; ++id) {
      if (!is_stale[id]) continue;
      const int64_t far = int64_t{1} << 40;
      data.entries[num_entries] = {id, far, 0, 1, 0, far, 0, kind == 1};
      data.row_states[id] = static_cast<int32_t>(-1 - num_entries++);
    }
    data.state[0].num_entries = static_cast<double>(num_entries);
    for (const int64_t id : batch.ids) num_stale += is_stale[id];
    std::vector<DeviceTable> tables;
    tables.emplace_back(data);
    const DeviceStep<int64_t> step(rule, {batch}, {}, tables);
    milliseconds[kind] = Time([&] { step.Apply(report); });
    std::printf("  %-56s %9.3f ms %8.0f%% of lookups %6.2fx\n", kinds[kind], milliseconds[kind],
                100.0 * num_stale / num_lookups, milliseconds[0] / milliseconds[kind]);
  }
}

int Main(int64_t divisor) {
  int num_devices = 0;
  if (cudaGetDeviceCount(&num_devices) != cudaSuccess || num_devices == 0) {
    std::printf("time: no CUDA device was found. Compiled and linked; NOTHING WAS TIMED.\n");
    return kNoDevice;
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  cudaDeviceProp properties = {};
  REQUIRE(cudaGetDeviceProperties(&properties, 0));
  gpu::Report* report = nullptr;
  REQUIRE(gpu::AllocateReport(&report));
  const double bandwidth = CopyBandwidth((int64_t{2} << 30) / divisor);
  std::printf("%s, copy: %.1f GB/s; medians of %d\n", properties.name, bandwidth, kRepeats);
  TimeUpdates(bandwidth, divisor, report);
  TimeSteps(bandwidth, divisor, report);
  TimeManyTables(bandwidth, divisor, report);
  TimeSleep(divisor, report);
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
