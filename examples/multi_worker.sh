#!/bin/sh
# Trains on several workers, all on this machine: starts them, waits, and stops what is left.
#
#     sh examples/multi_worker.sh                      # 2 workers
#     WORKERS=3 PORT=5100 sh examples/multi_worker.sh --steps 200
#
# On a real cluster each machine runs the last line of `start` with its own TF_CONFIG
# (docs/guide/replicas.md).
set -eu

workers=${WORKERS:-2}
port=${PORT:-5000}
python=${PYTHON:-python}
program=$(dirname "$0")/multi_worker.py

addresses=
for index in $(seq 0 $((workers - 1))); do
  addresses="$addresses${addresses:+, }\"localhost:$((port + index))\""
done

start() {
  index=$1
  shift
  export TF_CONFIG="{\"cluster\": {\"worker\": [$addresses]}, \"task\": {\"type\": \"worker\", \"index\": $index}}"
  exec "$python" "$program" "$@"
}

pids=
stop() {
  for pid in $pids; do kill "$pid" 2>/dev/null || true; done
}
trap stop EXIT
trap 'exit 1' INT TERM

for index in $(seq 0 $((workers - 1))); do
  start "$index" "$@" &
  pids="$pids $!"
done
# A worker that fails leaves the others waiting for it: they are stopped.
for pid in $pids; do
  wait "$pid" || exit 1
done
echo "$workers workers are done"
