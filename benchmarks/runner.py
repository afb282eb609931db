"""Runs subjects in turn, each in a process and environment of its own; keeps what they report."""

import json
import os
import subprocess
import sys
import time

import machine
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(HERE, "..", "build")
# What every result has; one of a subject that did not run has `skipped`, the reason, in place of
# `seconds`. What else it has are the subject's own options and counts.
FIELDS = ("benchmark", "case", "subject", "round", "time", "machine", "seconds")


class Subject:
    """Something to time.

    Args:
        name: What it is called on the command line and in results.
        script: Its program in `subjects/`.
        environment: None for the Python that runs this; else a folder in `build/`.
    """

    def __init__(self, name, script, environment=None):
        self.name, self.environment = name, environment
        self.script = os.path.join(HERE, "subjects", script)

    def python(self):
        """Returns the interpreter; None if its environment has not been made."""
        if self.environment is None:
            return sys.executable
        # Another place than build/, for example BENCH_PEERS=folder.
        folder = os.environ.get(
            f"BENCH_{self.environment.upper()}", os.path.join(BUILD, self.environment)
        )
        path = os.path.join(folder, "bin", "python")
        return path if os.path.exists(path) else None

    def run(self, options):
        """Returns the result as a dict, which has `skipped` if it cannot be had."""
        python = self.python()
        if python is None:
            return {"skipped": f"build/{self.environment} is missing: make bench-peers makes it"}
        command = [python, self.script, "--subject", self.name, *map(str, options)]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "0"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
        message = f"{self.name} failed: {' '.join(command)}\n{done.stderr[-3000:]}"
        if self.environment is None:
            sys.exit(message)
        # A peer that breaks, or that the system ends for its memory, is no reason to stop.
        print(message, file=sys.stderr)
        return {"skipped": f"failed with status {done.returncode}"}


class Results:
    """Appends every result to a file, and returns what is to be printed of a case.

    Args:
        benchmark: Name that its lines carry.
        output: Path of the JSON lines.
    """

    def __init__(self, benchmark, output):
        self.benchmark, self.output = benchmark, output
        self.machine = machine.describe()
        os.makedirs(os.path.dirname(output) or ".", exist_ok=True)

    def add(self, case, subject, index, result):
        line = {
            "benchmark": self.benchmark,
            "case": case,
            "subject": subject,
            "round": index,
            "time": time.time(),
            "machine": self.machine | {"load_average": os.getloadavg()[0]},
        }
        with open(self.output, "a") as file:
            file.write(json.dumps(line | result) + "\n")


def run_case(results, case, subjects, options, rounds, idle_seconds=0.0):
    """Runs the subjects of a case in turn, `rounds` times.

    Args:
        results: `Results`.
        case: The case's name.
        subjects: List of pairs of a `Subject` and the reason to leave it out, or None.
        options: List, the subjects' command line.
        rounds: Integer.
        idle_seconds: How long to wait at most for other programs to come to rest.

    Returns:
        Dict from names of subjects to lists of their results, one per round; a subject that is left
        out has one alone.
    """
    found = {}
    for index in range(rounds):
        for subject, reason in subjects:
            if "skipped" in found.get(subject.name, [{}])[0]:
                continue
            if reason is None:
                machine.wait_until_idle(idle_seconds)
            result = {"skipped": reason} if reason else subject.run(options)
            results.add(case, subject.name, index, result)
            found.setdefault(subject.name, []).append(result)
    return found


def load(paths, all_runs=False):
    """Returns, from files of JSON lines, the results of every case and subject.

    Args:
        paths: List of paths.
        all_runs: Whether to pool all runs, rather than to take the latest.

    Returns:
        Dict from `(case, subject)` to lists of results, in the order in which they came.
    """
    found = {}
    for path in paths:
        with open(path) as file:
            for line in map(json.loads, file):
                if "case" not in line:
                    continue
                key = line["case"], line["subject"]
                if line["round"] == 0 and not all_runs:
                    found[key] = []
                found.setdefault(key, []).append(line)
    return found


def milliseconds(rounds):
    """Returns the 10th, 50th and 90th percentile over the steps of all rounds; None if skipped."""
    if "skipped" in rounds[0]:
        return None
    return np.percentile(1e3 * np.concatenate([one["seconds"] for one in rounds]), [10, 50, 90])


def print_case(case, found, ours="slipstream"):
    """Prints a line per subject: median, spread, ratio to ours, memory, the processor's speed."""
    reference = milliseconds(found[ours]) if ours in found else None
    for name, rounds in found.items():
        times = milliseconds(rounds)
        if times is None:
            print(f"{case:>28} {name:>16}  - {rounds[0]['skipped']}", flush=True)
            continue
        low, median, high = times
        ratio = f"{median / reference[1]:8.2f}x" if reference is not None else f"{'':9}"
        line = f"{case:>28} {name:>16} {median:9.2f} {low:9.2f} {high:9.2f} {ratio}"
        if "memory_before" in rounds[0]:
            memory = max(one["peak_memory"] - one["memory_before"] for one in rounds) / 1e6
            line += f" {memory:9.0f} MB"
        if "loop_seconds" in rounds[0]:
            loops = [1e3 * seconds for one in rounds for seconds in one["loop_seconds"]]
            line += f"   {min(loops):.2f}-{max(loops):.2f}"
        print(line, flush=True)


def print_header():
    print(
        f"{'case':>28} {'subject':>16} {'median ms':>9} {'10%':>9} {'90%':>9} {'to ours':>9}"
        f" {'peak - start':>12}   fixed loop, ms"
    )
