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

flags="-std=c++17 -O1 -g1 -Wall -Wextra -Wno-unknown-pragmas -ffp-contract=off -Itests/emulated_cuda"
flags="$flags -fsanitize=address,undefined -fno-sanitize-recover=all"
compile() {
  for file; do
    # shellcheck disable=SC2086
    $cxx $flags -x c++ -c "$file" -o "$build/$(basename "$file").o"
  done
}
# Two compilers at a time.
compile kernels/update_rows.cu harness/time.cc kernels/staleness.cc tests/emulated_cuda/emulated_cuda.cc &
half=$!
compile kernels/live_rows.cu harness/check.cc kernels/live_rows.cc kernels/update_rows.cc
wait $half
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
