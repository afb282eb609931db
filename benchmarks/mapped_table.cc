// A table on the disk, mapped into memory, in training: what mapped_table.py compiles and runs.
//
//   mapped_table FILE CGROUP NUM_ROWS NUM_STEPS ORDER ASKS HOLDS
//     FILE    of the table, which is made anew; "-": the table is in memory
//     CGROUP  whose memory limit holds for the steps; "-": none
//     ORDER   "popular": the most popular row is the first; "shuffled"
//     ASKS    1: the system is told which pages the next step needs
//     HOLDS   1: updates of the most popular hundredth of the rows are held for 16 steps
//
// Prints for each step: milliseconds, pages that it waited for, bytes read from and written to the
// disk; then a sum over the table. A row is DIM floats and as many of Adagrad's slot behind it.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr int64_t kDim = 32, kLookups = 26 * 1024, kHeldSteps = 16, kPage = 4096;
constexpr double kExponent = 1.1;
constexpr int64_t kRowBytes = 2 * kDim * sizeof(float);

[[noreturn]] void Fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

// Distinct ranks of a step's lookups, in the order of the ids' hashes as a batch has them.
std::vector<std::vector<uint32_t>> Batches(int64_t num_rows, int64_t num_steps) {
  std::vector<double> ends(num_rows);
  double sum = 0;
  for (int64_t i = 0; i < num_rows; ++i) ends[i] = sum += std::pow(i + 1, -kExponent);
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> uniform(0, sum);
  std::vector<std::vector<uint32_t>> batches(num_steps);
  for (auto& batch : batches) {
    for (int64_t i = 0; i < kLookups; ++i) {
      batch.push_back(std::lower_bound(ends.begin(), ends.end() - 1, uniform(random)) -
                      ends.begin());
    }
    std::sort(batch.begin(), batch.end());
    batch.erase(std::unique(batch.begin(), batch.end()), batch.end());
    std::shuffle(batch.begin(), batch.end(), random);
  }
  return batches;
}

void Update(float* row, const float* grad) {
  for (int64_t d = 0; d < kDim; ++d) {
    row[kDim + d] += grad[d] * grad[d];
    row[d] -= 0.05f * grad[d] / std::sqrt(row[kDim + d] + 1e-7f);
  }
}

void WriteFile(const char* path, int64_t num_bytes) {
  const int file = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
  std::vector<char> zeros(1 << 22);
  for (int64_t done = 0; done < num_bytes; done += zeros.size()) {
    if (write(file, zeros.data(), zeros.size()) != static_cast<ssize_t>(zeros.size())) Fail(path);
  }
  // Of what is in the page cache now nothing would count against the limit.
  if (fdatasync(file) != 0 || posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED) != 0) Fail(path);
  close(file);
}

struct DiskBytes {
  int64_t read = 0, written = 0;
};
DiskBytes BytesSoFar() {
  DiskBytes bytes;
  std::ifstream io("/proc/self/io");
  for (std::string name; io >> name;) {
    int64_t value;
    io >> value;
    if (name == "read_bytes:") bytes.read = value;
    if (name == "write_bytes:") bytes.written = value;
  }
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 8) return 2;
  const std::string path = argv[1], cgroup = argv[2], order = argv[5];
  const int64_t num_rows = std::atoll(argv[3]), num_steps = std::atoll(argv[4]);
  const bool asks = argv[6][0] == '1', holds = argv[7][0] == '1';
  const int64_t num_bytes = num_rows * kRowBytes, num_held = holds ? num_rows / 100 : 0;
  const auto batches = Batches(num_rows, num_steps);
  int file = -1;
  if (path != "-") {
    WriteFile(path.c_str(), num_bytes);
    file = open(path.c_str(), O_RDWR);
    if (file < 0) Fail(path.c_str());
  }
  if (cgroup != "-") {
    std::ofstream procs(cgroup + "/cgroup.procs");
    if (!(procs << getpid() << std::flush)) Fail(cgroup.c_str());
  }
  void* memory = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE,
                      file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE : MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) Fail("mmap");
  // Else a page that is needed brings 31 others that are not.
  if (file >= 0 && madvise(memory, num_bytes, MADV_RANDOM) != 0) Fail("madvise");
  float* table = static_cast<float*>(memory);
  std::vector<float> held(num_held * kDim);
  std::vector<int32_t> held_since(num_held, -1);

  // num_rows is a power of 2, so that a product with an odd number is a permutation.
  const auto place = [&](int64_t rank) {
    return order == "popular" ? rank : rank * 0x9E3779B1 % num_rows;
  };
  const auto row_of = [&](int64_t rank) { return table + place(rank) * 2 * kDim; };
  float forward = 0;
  for (int64_t step = 0; step < num_steps; ++step) {
    const auto begin = std::chrono::steady_clock::now();
    rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    const DiskBytes bytes = BytesSoFar();
    if (asks && step + 1 < num_steps) {
      for (const uint32_t rank : batches[step + 1]) {
        const uintptr_t page = reinterpret_cast<uintptr_t>(row_of(rank)) / kPage * kPage;
        madvise(reinterpret_cast<void*>(page), kPage, MADV_WILLNEED);
      }
    }
    for (const uint32_t rank : batches[step]) forward += row_of(rank)[0];
    for (const uint32_t rank : batches[step]) {
      float grad[kDim];
      for (int64_t d = 0; d < kDim; ++d) grad[d] = 1.0f + d + rank % 7;
      if (rank >= num_held) {
        Update(row_of(rank), grad);
        continue;
      }
      float* sum = held.data() + rank * kDim;
      for (int64_t d = 0; d < kDim; ++d) sum[d] += grad[d];
      if (held_since[rank] < 0) held_since[rank] = step - rank % kHeldSteps;
      if (step - held_since[rank] >= kHeldSteps) {
        Update(row_of(rank), sum);
        std::fill(sum, sum + kDim, 0);
        held_since[rank] = step;
      }
    }
    const double ms =
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    getrusage(RUSAGE_SELF, &after);
    const DiskBytes now = BytesSoFar();
    std::printf("%.3f %ld %ld %ld %zu\n", ms, after.ru_majflt - before.ru_majflt,
                now.read - bytes.read, now.written - bytes.written, batches[step].size());
  }
  // Of the rows of the last step, which are in memory.
  double sum = forward * 0;
  for (const uint32_t rank : batches[num_steps - 1]) sum += row_of(rank)[1];
  std::printf("sum %.6f\n", sum);
  return 0;
}
