#!/bin/sh
# Tests the kernels without TensorFlow; needs a C++17 compiler with sanitizers, g++ or $CXX. Built thrice:
#   address,undefined  no access is out of bounds, nothing rests on undefined behaviour
#   thread             tasks on threads do not race; without the test that has none
#   release            what ships, the only one with vector instructions; same results to the bit
set -eu
cd "$(dirname "$0")/.."
cxx=${CXX:-g++}
common="-std=c++17 -Wall -Wextra -pthread"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# compile NAME FILES FLAGS...: every .cc of FILES to $build/NAME.*.o
compile() {
  name=$1 files=$2
  shift 2
  for file in "$files"/*.cc; do
    $cxx $common "$@" -c "$file" -o "$build/$name.$(basename "$file" .cc).o"
  done
}

# Two compilers at a time; lines are all that a report needs to know of. A sanitizer takes longest over
# the tests' templates and finds nothing there: what it must see are the kernels, with memory that comes
# from its own allocator.
{
  compile tests tests -O1 -g1
  compile thread kernels -O1 -g1 -fsanitize=thread -fno-sanitize-recover=all
} & half=$!
compile address,undefined kernels -O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all
# The flags of ../CMakeLists.txt.
compile release kernels -O3 -fno-math-errno -fno-trapping-math -ffp-contract=off
wait $half

# ThreadSanitizer of older compilers does not start where newer kernels place memory.
fixed_addresses=
if setarch -R true 2>/dev/null; then fixed_addresses="setarch -R"; fi

run() {
  sanitize= arguments=
  if [ "$1" != release ]; then sanitize="-fsanitize=$1"; fi
  if [ "$1" = thread ]; then arguments=on_threads; fi
  # Kernels first: of an inline function that both compiled, the linker keeps theirs.
  $cxx -pthread $sanitize "$build/$1".*.o "$build"/tests.*.o -o "$build/$1"
  if ! $fixed_addresses "$build/$1" $arguments >"$build/$1.out"; then
    echo "kernels_test: failed in the $1 build" >&2
    return 1
  fi
}
run thread & first=$!
run address,undefined
run release
wait $first

results() { cut -d, -f2 "$build/$1.out"; }
if ! cmp -s "$build/release.out" "$build/address,undefined.out" ||
  [ "$(results thread)" != "$(results release)" ]; then
  echo "kernels_test: the builds differ in their results:" >&2
  (cd "$build" && grep . ./*.out) >&2
  exit 1
fi
echo "kernels_test: $(cut -d, -f1 "$build/release.out") in each of 3 builds, hostile states in 2"
