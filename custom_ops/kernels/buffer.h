#ifndef SLIPSTREAM_KERNELS_BUFFER_H_
#define SLIPSTREAM_KERNELS_BUFFER_H_

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace slipstream {

// Memory for num values of a trivial type, kept from step to step: mapping it anew each time would
// cost more than the work done in it. Reserve() leaves the contents undefined.
template <typename T>
class Buffer {
 public:
  T* Reserve(int64_t num) {
    if (num > capacity_) {
      capacity_ = num + num / 4;
      data_.reset(static_cast<T*>(std::malloc(capacity_ * sizeof(T))));
      if (data_ == nullptr) {
        capacity_ = 0;
        throw std::bad_alloc();
      }
    }
    return data_.get();
  }
  T* data() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t capacity_ = 0;
};

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_BUFFER_H_
