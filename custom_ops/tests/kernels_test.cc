// Runs the tests of every kernel. Prints what failed, and last the number of checks that passed
// with a digest of the results; exits with 1 if any failed.
#include <cstdio>

#include "test_support.h"

int main() {
  slipstream::TestLiveRows();
  slipstream::TestUpdateRows();
  slipstream::TestStaleness();
  slipstream::TestHostileState();
  slipstream::TestThreadTeam();
  slipstream::TestGatherRows();
  slipstream::TestHugePages();
  slipstream::TestRowCache();
  slipstream::TestVocabulary();
  if (slipstream::num_failures > 0) {
    std::fprintf(stderr, "kernels_test: %lld of %lld checks failed\n",
                 static_cast<long long>(slipstream::num_failures),
                 static_cast<long long>(slipstream::num_checks));
    return 1;
  }
  std::printf("%lld checks passed, results %016llx\n",
              static_cast<long long>(slipstream::num_checks),
              static_cast<unsigned long long>(slipstream::digest));
  return 0;
}
