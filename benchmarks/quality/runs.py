"""Runs one after the other: with progress, a line of results each, resumed where they stopped."""

import gc
import sys
import time

import machine
import tensorflow as tf
import tqdm

from quality import results, training


def work_through(runs, make_data_set, output, part="0/1"):
    """Does the runs that the file of results has not.

    Args:
        runs: Pairs of a `Configuration` and a dict of settings, those of one data set together.
        make_data_set: Makes a data set from its name.
        output: The file's path.
        part: `"I/N"`: every N-th run of those to do, from the I-th on.
    """
    index, num_parts = map(int, part.split("/"))
    done = results.load(output)
    runs = [run for run in runs if results.key_of(run[1]) not in done][index::num_parts]
    print(f"{len(runs)} runs to do; {len(done)} in {output}", file=sys.stderr)
    data_set, name = None, None
    for number, (configuration, settings) in enumerate(runs, 1):
        if settings["data"] != name:
            name, data_set = settings["data"], make_data_set(settings["data"])
        line = _run(data_set, configuration, settings, f"{number}/{len(runs)}")
        gc.collect()  # models, whose functions refer to them in circles
        results.append(output, line)


def set_threads(num_threads):
    """Sets how many threads compute, before TensorFlow has computed anything."""
    tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    tf.config.threading.set_inter_op_parallelism_threads(num_threads)


def _run(data_set, configuration, settings, number):
    """Runs once with a progress bar; returns the line of results."""
    start = time.time()
    resolved = settings | {"dim": settings.get("dim") or data_set.dim}
    label = f"{settings['data']} x{settings['epochs']} {settings['optimizer']} {configuration.name}"
    with tqdm.tqdm(desc=f"[{number}] {label}", unit=" examples", unit_scale=True) as bar:
        try:
            result = training.run(data_set, configuration, resolved, bar.update)
        except (FloatingPointError, tf.errors.InvalidArgumentError) as error:
            bar.write(f"{label} failed: {str(error)[:300]}", file=sys.stderr)
            result = {"failed": str(error)[:300]}
        else:
            shown = {name: f"{result[name]:.5f}" for name in ("auc", "log_loss")}
            shown |= {n: f"{result[n]:.3f}" for n in ("lookups_saved", "row_updates_saved")}
            bar.set_postfix(shown)
    return {
        "name": configuration.name,
        "family": configuration.family,
        "settings": settings,
        "result": result,
        "seconds": time.time() - start,
        "time": start,
        "machine": machine.describe(("tensorflow", "keras", "numpy")),
    }
