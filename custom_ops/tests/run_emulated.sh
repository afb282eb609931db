#!/bin/sh
# Runs the checks of ../harness on emulated CUDA (emulated_cuda/): the GPU kernels' logic, where there is no
# GPU. Under sanitizers, and with threads and blocks in two orders: what depends on them is a race.
set -eu
cd "$(dirname "$0")/.."
cxx=${CXX:-g++}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

flags="-std=c++17 -O1 -g -Wall -Wextra -Wno-unknown-pragmas -ffp-contract=off -Itests/emulated_cuda"
flags="$flags -fsanitize=address,undefined -fno-sanitize-recover=all"
for file in kernels/live_rows.cu kernels/update_rows.cu kernels/live_rows.cc kernels/update_rows.cc \
  kernels/staleness.cc harness/check.cc harness/time.cc tests/emulated_cuda/emulated_cuda.cc; do
  # shellcheck disable=SC2086
  $cxx $flags -x c++ -c "$file" -o "$build/$(basename "$file").o"
done
for program in check time; do
  other=$([ $program = check ] && echo time || echo check)
  mv "$build/$other.cc.o" "$build/$other.left_out"
  $cxx -fsanitize=address,undefined "$build"/*.o -o "$build/$program"
  mv "$build/$other.left_out" "$build/$other.cc.o"
done
for order in backward shuffled; do
  printf '%s: ' $order
  "$build/check" $order
done
# Sizes are no measure of anything here.
"$build/time" 20000 >/dev/null
