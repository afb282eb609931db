#ifndef SLIPSTREAM_TESTS_EMULATED_CUDA_COUNTING_ITERATOR_H_
#define SLIPSTREAM_TESTS_EMULATED_CUDA_COUNTING_ITERATOR_H_

namespace thrust {

template <typename T>
class counting_iterator {
 public:
  explicit counting_iterator(T first) : first_(first) {}
  T operator[](int i) const { return first_ + i; }

 private:
  T first_;
};

}  // namespace thrust

#endif  // SLIPSTREAM_TESTS_EMULATED_CUDA_COUNTING_ITERATOR_H_
