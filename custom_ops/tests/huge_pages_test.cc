// UseHugePages leaves memory as it was, whatever part of a buffer it is given.
#include "../kernels/huge_pages.h"

#include "test_support.h"

namespace slipstream {

void TestHugePages() {
  current_case = "40 MB buffer";
  constexpr int64_t kBytes = int64_t{40} << 20;
  std::vector<int64_t> values(kBytes / sizeof(int64_t));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int64_t>(i * i);
  const std::vector<int64_t> before = values;
  UseHugePages(values.data(), kBytes);
  CHECK_SAME_BITS(values, before);
  UseHugePages(values.data(), kBytes);                        // a second time
  UseHugePages(values.data(), kBytes / 2);                    // another size
  UseHugePages(values.data() + 1, kBytes - sizeof(int64_t));  // at no page's start
  UseHugePages(values.data() + 5, (int64_t{16} << 20) - 1);   // too small
  UseHugePages(nullptr, 0);
  CHECK_SAME_BITS(values, before);

  current_case = "writes beside it, from other threads";
  AllParallelFors().back()(8, [&](int64_t i) {
    UseHugePages(values.data() + i, kBytes / 2);
    values[i] = -i;
  });
  for (int64_t i = 0; i < 8; ++i) CHECK_EQ(values[i], -i);
}

}  // namespace slipstream
