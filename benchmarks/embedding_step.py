"""How long does an embedding step take, against stock Keras and tf_keras?

The step is lookup + gradient + update.

    make bench
    make bench ARGS="--tables 10000000x64 --rules adam --rounds 3"

Each subject runs in a process of its own, in turn with the others, `--rounds` times. All get the
same ids (a bounded Zipf) and the same upstream gradient, and are checked against the equation
first. A result is the median over all steps of all rounds; the spread is from the 10th to the 90th
percentile. Every round of every subject is appended to results/embedding_step.jsonl.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import machine
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
TENSORFLOW = [sys.executable, os.path.join(HERE, "subjects", "tensorflow_step.py")]
SUBJECTS = ("slipstream", "keras3", "tf_keras_legacy")
# Stock Keras needs a second and more for a step on the large table; fewer steps tell as much.
SLOW_STEPS = 8


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables = ["1000000x32", "10000000x64"]
    rules = ["sgd", "adagrad", "row_wise_adagrad", "adam"]
    parser.add_argument("--tables", nargs="+", default=tables, metavar="ROWSxDIM")
    parser.add_argument("--rules", nargs="+", default=rules)
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS, choices=SUBJECTS)
    parser.add_argument("--lookups", type=int, default=53_248)
    parser.add_argument("--zipf", type=float, default=1.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", default=os.path.join("results", "embedding_step.jsonl"))
    args = parser.parse_args()
    os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
    print(json.dumps(machine.describe()))
    print(f"{args.lookups} lookups, Zipf {args.zipf}, {args.threads} threads; ms a step\n")
    header = f"{'table':>12} {'rule':>17} {'subject':>16} {'median':>8} {'10%':>8} {'90%':>8}"
    print(header + f" {'over ours':>10} {'peak - start':>13}")
    for table in args.tables:
        for rule in args.rules:
            print_rows(table, rule, compare(args, table, rule))


def compare(args, table, rule):
    """Runs the subjects in turn; returns, by subject, the results of its rounds."""
    results = {}
    for _ in range(args.rounds):
        for subject in args.subjects:
            if rule == "row_wise_adagrad" and subject != "slipstream":
                continue  # neither Keras has one
            result = run(args, table, rule, subject)
            results.setdefault(subject, []).append(result)
            with open(args.output, "a") as file:
                file.write(json.dumps(result | {"time": time.time()}) + "\n")
    return results


def run(args, table, rule, subject):
    rows, dim = table.split("x")
    is_slow = subject != "slipstream" and int(rows) * int(dim) > 10**8
    steps = min(args.steps, SLOW_STEPS) if is_slow else args.steps
    command = [*TENSORFLOW, "--subject", subject, "--rule", rule, "--rows", rows, "--dim", dim]
    command += ["--lookups", args.lookups, "--zipf", args.zipf, "--threads", args.threads]
    command += ["--steps", steps, "--warmup", 2 if is_slow else 5]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{subject} failed on {table} {rule}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def print_rows(table, rule, results):
    ours = None
    for subject, rounds in results.items():
        milliseconds = 1e3 * np.concatenate([r["seconds"] for r in rounds])
        low, median, high = np.percentile(milliseconds, [10, 50, 90])
        ours = median if ours is None else ours
        memory = max(r["peak_memory"] - r["memory_before"] for r in rounds) / 1e6
        numbers = f"{median:8.2f} {low:8.2f} {high:8.2f} {median / ours:9.2f}x {memory:10.0f} MB"
        print(f"{table:>12} {rule:>17} {subject:>16} {numbers}", flush=True)


if __name__ == "__main__":
    main()
