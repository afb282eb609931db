"""The long form: every part for its share of an hour, in processes of bounded memory.

`python -m tests.reliability.campaign [--minutes 60] [--folder results/campaign] [--only PART...]`
prints what it does and a table at the end. It is resumed by starting it again with the same folder:
what was tried is in `results.jsonl`, a line for each trial, and is not tried again. `--anew` begins
from the start.
"""

import argparse
import collections
import dataclasses
import importlib
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
# Address space, of which TensorFlow alone takes much; what a process may have more than it.
_MOST_BYTES = 16 << 30
_TRIAL_SECONDS = 600
# Trials after which a part gets a new process.
_TRIALS_OF_A_PROCESS = 25


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the campaign.

    Attributes:
        module: Of this package, with `trial(seed, folder)`.
        share: Of the time.
    """

    module: str
    share: float


PARTS = {
    "hostile_state": Part("hostile_state", 0.15),
    "hostile_vocabulary": Part("hostile_vocabulary", 0.05),
    "failing_files": Part("failing_files", 0.15),
    "kills": Part("kills", 0.2),
    "fuzzing": Part("fuzzing", 0.2),
    "bad_batches": Part("bad_batches", 0.05),
    "together": Part("together", 0.1),
    "flat_memory": Part("flat_memory", 0.07),
    "same_bits": Part("same_bits", 0.03),
}


def run_part(name, seconds, first, folder):
    """Runs trials of a part from seed `first` on in this process, and prints a line for each."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    import tests.conftest  # noqa: F401  its settings of TensorFlow

    trial = importlib.import_module(f"tests.reliability.{PARTS[name].module}").trial
    deadline = time.monotonic() + seconds
    for seed in range(first, first + _TRIALS_OF_A_PROCESS):
        begin, own = time.monotonic(), pathlib.Path(tempfile.mkdtemp(dir=folder))
        line = {"part": name, "seed": seed, "fault": None, "counts": {}}
        try:
            line["counts"] = trial(seed, own)
        except Exception as error:
            line["fault"] = f"{type(error).__name__}: {error}"[:2000]
        shutil.rmtree(own, ignore_errors=True)
        line["seconds"] = round(time.monotonic() - begin, 2)
        print("TRIAL " + json.dumps(line), flush=True)
        if time.monotonic() > deadline:
            break


def _run_process(name, seconds, first, folder):
    """Runs a process of a part; returns the lines of its trials, one for a crash or a hang too."""
    log = folder / "log.txt"
    command = [sys.executable, "-m", "tests.reliability.campaign", "--part", name]
    command += ["--seconds", str(seconds), "--first", str(first), "--folder", str(folder)]
    environ = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    with log.open("w") as stream:
        try:
            code = subprocess.run(
                command,
                cwd=ROOT,
                env=environ,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=seconds + _TRIAL_SECONDS,
            ).returncode
        except subprocess.TimeoutExpired:
            code = "a hang"
    text = log.read_text(errors="replace")
    lines = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("TRIAL ")]
    if code != 0:
        fault = f"the process ended with {code}: {text[-1500:]}"
        lines.append({"part": name, "seed": first + len(lines), "fault": fault, "counts": {}})
    return lines


def _results(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table_of(results):
    """Returns the rows of the summary, in Markdown."""
    rows = ["| part | trials | minutes | what | faults |", "|---|---|---|---|---|"]
    for name in PARTS:
        own = [line for line in results if line["part"] == name]
        counts = collections.Counter()
        for line in own:
            counts.update({k: v for k, v in line["counts"].items() if isinstance(v, int)})
        what = ", ".join(f"{value:,} {key}" for key, value in counts.items())
        minutes = sum(line.get("seconds", 0) for line in own) / 60
        num_faults = sum(line["fault"] is not None for line in own)
        rows.append(f"| {name} | {len(own)} | {minutes:.1f} | {what} | {num_faults} |")
    return rows


def run_all(minutes, folder, only):
    path = folder / "results.jsonl"
    for name, part in PARTS.items():
        if only and name not in only:
            continue
        share = part.share / sum(PARTS[n].share for n in only or PARTS)
        while True:
            done = [line for line in _results(path) if line["part"] == name]
            left = 60 * minutes * share - sum(line.get("seconds", 0) for line in done)
            if left <= 0:
                break
            first = 1 + max((line["seed"] for line in done), default=-1)
            lines = _run_process(name, left, first, folder)
            with path.open("a") as stream:
                stream.writelines(json.dumps(line) + "\n" for line in lines)
            faults = [line for line in lines if line["fault"]]
            print(f"{name}: {len(done) + len(lines)} trials, {max(0, left):.0f} s were left")
            for line in faults:
                print(f"  FAULT, seed {line['seed']}: {line['fault'][:500]}")
            sys.stdout.flush()
            if not any("seconds" in line for line in lines):
                break  # it does not even start
    results = _results(path)
    table = table_of(results)
    (folder / "table.md").write_text("\n".join(table) + "\n")
    print(*table, sep="\n")
    return int(any(line["fault"] for line in results))


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.campaign")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "results" / "campaign")
    parser.add_argument("--only", nargs="*", choices=[*PARTS], default=[])
    parser.add_argument("--anew", action="store_true", help="forget what was tried")
    for argument, kind in (("--part", str), ("--seconds", float), ("--first", int)):
        parser.add_argument(argument, type=kind, help=argparse.SUPPRESS)  # of its own processes
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.part:
        run_part(args.part, args.seconds, args.first, args.folder)
        return 0
    if args.anew:
        (args.folder / "results.jsonl").unlink(missing_ok=True)
    return run_all(args.minutes, args.folder, args.only)


if __name__ == "__main__":
    sys.exit(main())
