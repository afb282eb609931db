"""MirroredStrategy on virtual CPU devices: ours beside Keras 3 and tf_keras, on the same ids."""

import json
import os
import pathlib
import statistics
import subprocess
import sys

SUBJECTS = {
    "keras3": "0",
    "tf_keras": "1",
    "slipstream": "0",
    "slipstream_stale": "0",
}


def measure(args):
    """Yields a result per subject and number of replicas, and at last the ratios.

    The ratios are of the first number of replicas: bytes of the tf_keras subject (Keras 3 exchanges
    the same) over ours.
    """
    bytes_per_step = {}
    for replicas in args.replicas:
        for subject in SUBJECTS:
            result = _run(subject, replicas, args)
            bytes_per_step[subject, replicas] = result["bytes_per_step"]
            yield result
    first = args.replicas[0]
    stock = bytes_per_step["tf_keras", first]
    yield {
        "mirrored_bytes_ratio": round(stock / bytes_per_step["slipstream", first], 2),
        "mirrored_bytes_ratio_stale": round(stock / bytes_per_step["slipstream_stale", first], 2),
    }


def _run(subject, replicas, args):
    program = pathlib.Path(__file__).with_name("mirrored_step.py")
    # Stock has no period to warm up for, and as many bytes in each step.
    is_stock = not subject.startswith("slipstream")
    options = {
        "--subject": subject,
        "--replicas": replicas,
        "--steps": min(4, args.steps) if is_stock else args.steps,
        "--counted-steps": min(2, args.steps) if is_stock else args.steps,
        "--rows": args.rows,
        "--lookups": args.lookups,
        "--dim": args.dim,
        "--warmup": min(1, args.warmup) if is_stock else args.warmup,
    }
    command = [sys.executable, str(program)]
    for option, value in options.items():
        command += [option, str(value)]
    environment = dict(os.environ, TF_USE_LEGACY_KERAS=SUBJECTS[subject], TF_CPP_MIN_LOG_LEVEL="3")
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def line(result):
    """Returns a result as a line for people."""
    low, median, high = result["milliseconds"]
    return (
        f"{result['replicas']} replicas {result['subject']:>17} "
        f"{result['bytes_per_step'] / 1024:9.0f} KiB a step and replica, "
        f"{median:7.1f} ms ({low:.1f}-{high:.1f}); {result['saved']}"
    )


def spread(seconds):
    """Returns the 10th percentile, median and 90th percentile in milliseconds."""
    tenths = statistics.quantiles(seconds, n=10)
    return [round(1e3 * value, 2) for value in (tenths[0], statistics.median(seconds), tenths[-1])]
