#!/bin/sh
# All that is to be asked of a GPU, in one call of at most 8 minutes, for a machine that can be had now and
# then only.
#
#   sh gpu_check.sh OUT
#
# Builds for sm_90 (ARCHS: others), checks the CUDA kernels against the CPU's, runs compute-sanitizer's
# memcheck and racecheck over smaller forms of that, times, and times PyTorch beside. Each part writes
# OUT/<part>.txt when it is run, and a line of OUT/summary.txt when it ends, so that a run which is cut has
# told what it got to. Exit status: 0, all parts passed; 77, none failed, but something is missing here (a
# device, a tool) and its part was not run; 1, a part failed.
set -u
if [ $# != 1 ]; then
  echo "usage: sh gpu_check.sh OUT" >&2
  exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 2
BUILD=${BUILD:-$(mktemp -d)}
ARCHS=${ARCHS:-90}
export BUILD ARCHS
result=0
: >"$out/summary.txt"

# part NAME SECONDS COMMAND...: runs the command, at most so long.
part() {
  name=$1 limit=$2
  shift 2
  begin=$(date +%s)
  timeout "$limit" "$@" >"$out/$name.txt" 2>&1
  status=$?
  case $status in
    0) said=passed ;;
    77 | 127) # no device; no such program
      said='NOT RUN'
      [ $result = 1 ] || result=77
      ;;
    124) said="FAILED: longer than $limit s" result=1 ;;
    *) said="FAILED: exit status $status" result=1 ;;
  esac
  echo "$name: $said, $(($(date +%s) - begin)) s" | tee -a "$out/summary.txt"
  tail -n "${lines:-3}" "$out/$name.txt"
  return $status
}

{ nvidia-smi; nvcc --version; g++ --version; } >"$out/machine.txt" 2>&1
part build 150 sh harness/run.sh compile || exit
part check 60 "$BUILD/check"
lines=100 part time 90 "$BUILD/time"
lines=40 part torch 60 python3 harness/torch_step.py "$out/time.txt"
part memcheck 60 compute-sanitizer --tool memcheck --error-exitcode 1 "$BUILD/check" small
# CUB's kernels alone share memory within a block, and racecheck takes minutes for few of them.
part racecheck 100 compute-sanitizer --tool racecheck --error-exitcode 1 "$BUILD/check" tiny
exit $result
