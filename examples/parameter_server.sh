#!/bin/sh
# Two workers and two parameter servers on this machine, the program that trains on them, and their end.
#   examples/parameter_server.sh [options of parameter_server.py]
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
PORT=${PORT:-23450}  # and the four after it
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

workers="\"localhost:$PORT\", \"localhost:$((PORT + 1))\""
servers="\"localhost:$((PORT + 2))\", \"localhost:$((PORT + 3))\""
cluster="{\"worker\": [$workers], \"ps\": [$servers]}"

tasks=""
trap 'for task in $tasks; do kill "$task" 2>/dev/null || true; done' EXIT INT TERM
for task in worker:0 worker:1 ps:0 ps:1; do
  "$PYTHON" -m tf_slipstream.server --cluster "$cluster" --task "$task" &
  tasks="$tasks $!"
done

chief="\"chief\": [\"localhost:$((PORT + 4))\"]"
export TF_CONFIG="{\"cluster\": {\"worker\": [$workers], \"ps\": [$servers], $chief},
  \"task\": {\"type\": \"chief\", \"index\": 0}}"
"$PYTHON" examples/parameter_server.py "$@"
