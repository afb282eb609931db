"""Runs the benchmarks as a user would, at a size that takes seconds."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "subjects")]


def run(script, folder, *options, **variables):
    """Runs a benchmark in a folder; returns what it printed."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *map(str, options)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | variables,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def results(folder, benchmark):
    """Returns the JSON lines that a benchmark left in a folder."""
    lines = (folder / "results" / f"{benchmark}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def environment(name):
    """Returns the folder of the peers' environment, or None if it was not made."""
    folder = ROOT / "build" / name
    return folder if (folder / "bin" / "python").exists() else None
