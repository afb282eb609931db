"""MultiWorkerMirroredStrategy in a box: ours beside Keras 3 and tf_keras, on the same ids.

    python benchmarks/distribution/multi_worker.py

Each worker is a machine of its own (network.py), and does the step of mirrored_step.py at several
speeds of the links. Bytes are all that machines send. The last line is a JSON object with the
ratios of tf_keras to ours.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import machine

from distribution import network
from distribution.mirrored import SUBJECTS

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = pathlib.Path(__file__).with_name("multi_worker_step.py")
OURS = {"slipstream": "", "slipstream_stale": "_stale"}  # and what names of their ratios end in
_PORT = 4000
_MAX_SECONDS = 300


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--lookups", type=int, default=26 * 2048, help="of a worker: 26 fields")
    parser.add_argument("--zipf", type=float, default=1.1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=48, help="of ours; of stock 8 at most")
    parser.add_argument("--steps", type=int, default=16, help="at each speed")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--gigabits", type=float, nargs="*", default=[1, 10], help="of links")
    args = parser.parse_args(argv)
    if args.workers < 2 or min(args.gigabits, default=1) <= 0:
        parser.error("expected at least two --workers, and --gigabits above 0")
    return args


def measure(args):
    """Yields a result per subject and speed, and at last the ratios."""
    found = {}
    if reason := network.why_not():
        print(f"Workers over a network were not measured: {reason}", file=sys.stderr)
    else:
        for subject in args.subjects:
            for result in _run(subject, args):
                found[subject, result["gigabits"]] = result
                yield result
    yield ratios(found)


def ratios(found):
    """Returns tf_keras over ours, of those that were measured.

    Args:
        found: Dict from a subject and a speed, None for links that are not shaped, to a result.
    """
    ratio = {}
    for (subject, gigabits), ours in found.items():
        stock = found.get(("tf_keras", gigabits))
        if subject not in OURS or stock is None:
            continue
        end = OURS[subject]
        speed = "" if gigabits is None else f"_{gigabits:g}g"
        if gigabits is None:
            bytes_ratio = stock["bytes_per_step"] / ours["bytes_per_step"]
            ratio[f"mwms_bytes_ratio{end}"] = round(bytes_ratio, 2)
        step_ratio = stock["milliseconds"][1] / ours["milliseconds"][1]
        ratio[f"mwms_step_ratio{speed}{end}"] = round(step_ratio, 2)
    return ratio


def predicted_milliseconds(num_bytes, compute, gigabits):
    """Returns how long a step takes: it computes, then its bytes leave as others' come in.

    Args:
        num_bytes: That a worker sends in a step; it receives as many from the one before it.
        compute: Milliseconds of a step where links cost nothing.
        gigabits: Gbit/s of a link.
    """
    return compute + 8e-6 * num_bytes / (network.PAYLOAD * gigabits)


def _run(subject, args):
    names = [f"worker{i}" for i in range(args.workers)]
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        box = stack.enter_context(network.Box(names, None))
        options = {**vars(args), "subject": subject, "links": dataclasses.asdict(box.links)}
        if subject not in OURS:
            options["warmup"] = min(8, args.warmup)  # nothing of it has periods
        command = [sys.executable, str(PROGRAM), json.dumps(options)]
        cluster = {"worker": [f"{box.address(name)}:{_PORT}" for name in names]}
        processes = []
        for i, name in enumerate(names):
            config = {"cluster": cluster, "task": {"type": "worker", "index": i}}
            output = stack.enter_context(open(folder / f"{name}.txt", "w"))
            environment = _environment(subject, TF_CONFIG=json.dumps(config))
            processes.append(
                box.popen(name, command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            )
        for name, process in zip(names, processes, strict=True):
            if process.wait(_MAX_SECONDS):
                log = (folder / f"{name}.txt").read_text()
                raise RuntimeError(f"{name} of {subject} failed:\n{log[-4000:]}")
        results = json.loads((folder / f"{names[0]}.txt").read_text().splitlines()[-1])
    compute = results[0]["milliseconds"][1]
    for result in results[1:]:
        result["predicted_milliseconds"] = predicted_milliseconds(
            result["bytes_per_step"], compute, result["gigabits"]
        )
    return results


def _environment(subject, **more):
    # Few threads: workers share the processors.
    few = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "2"}
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    chosen = {"TF_USE_LEGACY_KERAS": SUBJECTS[subject], "PYTHONPATH": path}
    return {**os.environ, **few, **quiet, **chosen, **more}


def line(result):
    """Returns a result as a line for people."""
    low, median, high = result["milliseconds"]
    gigabits, predicted = result["gigabits"], result.get("predicted_milliseconds")
    speed = "not shaped" if gigabits is None else f"{gigabits:g} Gbit/s"
    model = "" if predicted is None else f", model: {predicted:.1f}"
    return (
        f"{result['subject']:>17} {speed:>10} {result['bytes_per_step'] / 1024:9.0f} KiB a "
        f"worker's step, {median:7.1f} ms ({low:.1f}-{high:.1f}{model}); {result['saved']}"
    )


def main():
    args = arguments()
    print(json.dumps(machine.describe()))
    for result in measure(args):
        if "subject" in result:
            print(line(result), flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
