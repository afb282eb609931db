#ifndef SLIPSTREAM_HARNESS_DEVICE_MEMORY_H_
#define SLIPSTREAM_HARNESS_DEVICE_MEMORY_H_

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

namespace slipstream::harness {

// Ends the program with what CUDA says is wrong.
inline void Require(int error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(static_cast<cudaError_t>(error)));
  std::exit(1);
}
#define REQUIRE(call) slipstream::harness::Require((call), #call)

// Values in the device's memory.
template <typename T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(size_t num) : num_(num) {
    if (num > 0) REQUIRE(cudaMalloc(reinterpret_cast<void**>(&data_), num * sizeof(T)));
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    if (num_ == 0) return;
    REQUIRE(cudaMemcpy(data_, values.data(), num_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~DeviceArray() {
    if (data_ != nullptr) cudaFree(data_);
  }
  DeviceArray(DeviceArray&& other) noexcept { *this = std::move(other); }
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(num_, other.num_);
    return *this;
  }

  T* data() const { return data_; }
  size_t size() const { return num_; }
  // Waits for the device.
  std::vector<T> Download() const {
    std::vector<T> values(num_);
    if (num_ == 0) return values;
    REQUIRE(cudaDeviceSynchronize());
    REQUIRE(cudaMemcpy(values.data(), data_, num_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t num_ = 0;
};

}  // namespace slipstream::harness

#endif  // SLIPSTREAM_HARNESS_DEVICE_MEMORY_H_
