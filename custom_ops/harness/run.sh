#!/bin/sh
# Builds the CUDA kernels without TensorFlow, checks them against the CPU's and times them.
#
#   sh run.sh [all | compile | check | time | memcheck | racecheck | initcheck | synccheck]
#
# NVCC: the compiler, nvcc in PATH by default. ARCHS: what to build for, as nvcc's -gencode knows it
# ("75 80 86 90" by default, with PTX of the last). BUILD: a folder for what is built, kept; none: a
# temporary one. Exit status 77: compiled and linked, but there is no device (or no sanitizer): nothing was
# checked.
set -eu
cd "$(dirname "$0")/.."
what=${1:-all}
nvcc=${NVCC:-nvcc}
cxx=${CXX:-g++}
archs=${ARCHS:-75 80 86 90}
if [ -n "${BUILD:-}" ]; then
  build=$BUILD
  mkdir -p "$build"
else
  build=$(mktemp -d)
  trap 'rm -rf "$build"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
fi

generate=
for arch in $archs; do generate="$generate -gencode arch=compute_$arch,code=sm_$arch"; done
generate="$generate -gencode arch=compute_$arch,code=compute_$arch"
# The flags of ../CMakeLists.txt; ptxas says what registers a kernel takes and what it spills.
for file in live_rows update_rows; do
  # shellcheck disable=SC2086
  $nvcc -std=c++17 -O3 --fmad=false --expt-relaxed-constexpr -lineinfo -Xptxas -v $generate \
    -c "kernels/$file.cu" -o "$build/$file.cu.o" >"$build/$file.ptxas" 2>&1 ||
    { cat "$build/$file.ptxas"; exit 1; }
  $cxx -std=c++17 -O3 -fno-math-errno -fno-trapping-math -ffp-contract=off -c "kernels/$file.cc" \
    -o "$build/$file.cc.o"
done
$cxx -std=c++17 -O3 -fno-math-errno -fno-trapping-math -ffp-contract=off -c kernels/staleness.cc \
  -o "$build/staleness.cc.o"
for program in check time; do
  # nvcc knows where its headers and libraries are; the code is plain C++.
  $nvcc -std=c++17 -O2 -x c++ -c "harness/$program.cc" -o "$build/$program.o"
  $nvcc "$build/$program.o" "$build"/*.cu.o "$build"/*.cc.o -cudart static -o "$build/$program"
done
echo "harness: compiled for $archs and linked"

sanitize() {
  if ! command -v compute-sanitizer >/dev/null; then
    echo "harness: compute-sanitizer was not found; nothing was checked"
    exit 77
  fi
  compute-sanitizer --tool "$1" --error-exitcode 1 "$build/check"
}
case $what in
  compile) ;;
  check) "$build/check" ;;
  time) "$build/time" ;;
  memcheck | racecheck | initcheck | synccheck) sanitize "$what" ;;
  all)
    "$build/check"
    "$build/time"
    ;;
  *)
    echo "harness: there is no '$what'; see the head of $0" >&2
    exit 2
    ;;
esac
