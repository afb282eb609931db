// Runs the tests of every kernel. Prints what failed, and last the number of checks that passed
// with a digest of the results; exits with 1 if any failed. With an argument, those that end on one
// thread are left out: that of hostile states, whose results are none of the digest's.
#include <cstdio>

#include "test_support.h"

int main(int num_arguments, char**) {
  slipstream::TestLiveRows();
  slipstream::TestUpdateRows();
  slipstream::TestStaleness();
  if (num_arguments == 1) {
    slipstream::TestHostileState();
    slipstream::TestHostileVocabulary();
  }
  slipstream::TestThreadTeam();
  slipstream::TestFieldRows();
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
