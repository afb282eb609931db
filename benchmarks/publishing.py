"""What does publishing cost: a full version, a delta of what changed, and applying it?

    python benchmarks/publishing.py
    python benchmarks/publishing.py --rows 1000000 --rounds 3

A model with one table learns a synthetic click log until `--changed` of its rows were written since
the version before. Then, `--rounds` times, each after the disk has come to rest: Keras's own
`model.export`, `save_version`, `save_delta` against the first version, applying that delta, and
copying the first version. All that we write is waited for until it is on the disk (fsync), so the
copy is timed with and without that. The applied version is compared with the full one, byte by
byte, first. A result is the median of the rounds; every round is appended to
results/publishing.jsonl.

Last, requests to a version of ours, and to a stock export of the same model with Keras's own layer
and the same weights, in turn, in this process.
"""

import argparse
import contextlib
import filecmp
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import machine
import numpy as np
import tensorflow as tf

import tf_slipstream as slipstream
from tf_slipstream import export

keras = tf.keras
BATCH_SIZE = 8192
# Applies a delta in a process of its own, as a serving host does; prints the seconds that it takes.
APPLY = """
import sys, time
from tf_slipstream import export
apply_delta = export.apply_delta
start = time.perf_counter()
apply_delta(*sys.argv[1:])
print(time.perf_counter() - start)
"""


def main():
    args = arguments()
    os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
    print(json.dumps(machine.describe()))
    rounds = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        publisher = Publisher(pathlib.Path(folder), args)
        changed = publisher.train()
        print(
            f"{args.rows:,} rows of {args.dim} floats; {changed:,} rows changed "
            f"({changed / args.rows:.2%})"
        )
        for _ in range(args.rounds):
            rounds.append(publisher.measure())
            line = vars(args) | {"changed_rows": changed, "time": time.time()} | rounds[-1]
            with open(args.output, "a") as file:
                file.write(json.dumps(line) + "\n")
        print_table(rounds)
        print_latencies(latencies(publisher))


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--changed", type=float, default=0.01, help="share of the rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", help="where to write; the system's temporary folder if left out"
    )
    parser.add_argument("--output", default=os.path.join("results", "publishing.jsonl"))
    return parser.parse_args()


def click_model(rows, dim, layer=slipstream.SlipstreamEmbedding):
    """Returns a model of one categorical field and 13 dense features."""
    dense, ids = (
        keras.Input((13,), name="dense_features"),
        keras.Input((1,), dtype="int64", name="ids"),
    )
    row = layer(rows, dim, name="field")(ids)
    x = keras.layers.Concatenate()([dense, keras.layers.Flatten()(row)])
    x = keras.layers.Dense(64, activation="relu")(x)
    return keras.Model((dense, ids), keras.layers.Dense(1, activation="sigmoid")(x))


class Publisher:
    """Trains a model once and publishes it again and again, in one folder."""

    def __init__(self, folder, args):
        self.folder, self.args = folder, args
        self.model = click_model(args.rows, args.dim)
        optimizer = slipstream.SlipstreamOptimizer(slipstream.RowWiseAdagrad(0.05))
        self.model.compile(optimizer, loss="binary_crossentropy")
        self.tracker = export.DeltaTracker(self.model, folder / "marks")

    def train(self):
        """Publishes version 1, then trains until enough rows changed; returns how many."""
        export.save_version(self.model, self.folder / "1")
        log = slipstream.data.SyntheticClickLog(cardinalities=(self.args.rows,))
        batches = log.batches(10**12, BATCH_SIZE)
        num_changed = 0
        while num_changed < self.args.changed * self.args.rows:
            self.model.train_on_batch(*next(batches))
            num_changed = len(self.tracker.changed_rows(1)["field"])
        return num_changed

    def measure(self):
        """Returns seconds and bytes of one round."""
        base, delta, full, applied = (self.folder / name for name in ("1", "delta", "2", "3"))
        stock, copy = self.folder / "stock", self.folder / "copy"
        seconds = {
            "model.export": timed(lambda: export_stock(self.model, stock)),
            "save_version": timed(lambda: export.save_version(self.model, full)),
            "save_delta": timed(lambda: export.save_delta(self.model, 1, delta)),
            "apply_delta": seconds_to_apply(base, delta, applied),
            "cp -r": timed(lambda: copy_folder(base, copy)),
        }
        shutil.rmtree(copy)
        seconds["cp -r, fsync"] = timed(lambda: copy_folder(base, copy, wait=True))
        for name in ("variables.index", "variables.data-00000-of-00001"):
            same = filecmp.cmp(
                full / "variables" / name, applied / "variables" / name, shallow=False
            )
            assert same, f"{name} of the applied version is not that of a full one"
        num_bytes = {
            "model.export": size_of(stock),
            "save_version": size_of(full),
            "save_delta": size_of(delta),
            "apply_delta": size_of(applied),
        }
        for path in (stock, full, applied, copy):
            shutil.rmtree(path)
        delta.unlink()
        return {"seconds": seconds, "bytes": num_bytes}


def export_stock(model, path):
    """Exports as Keras does it, quietly."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        model.export(str(path))


def copy_folder(source, target, wait=False):
    subprocess.run(["cp", "-r", source, target], check=True)
    if wait:
        files = [str(path) for path in target.rglob("*") if path.is_file()]
        subprocess.run(["sync", *files], check=True)


def timed(publish):
    """Returns the seconds that something takes, begun when the disk has nothing to do."""
    os.sync()
    start = time.perf_counter()
    publish()
    return time.perf_counter() - start


def seconds_to_apply(base, delta, out):
    os.sync()
    command = [sys.executable, "-c", APPLY, base, delta, out]
    done = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def size_of(path):
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def latencies(publisher, num_requests=300):
    """Returns, by batch size and subject, milliseconds `[num_requests]` of a request."""
    args, folder = publisher.args, publisher.folder
    stock = click_model(args.rows, args.dim, keras.layers.Embedding)
    stock.set_weights(publisher.model.get_weights())
    export_stock(stock, folder / "stock-model")
    del stock
    export.save_version(publisher.model, folder / "4", examples=False)
    served = {"stock": folder / "stock-model", "ours": folder / "4"}
    loaded = {name: tf.saved_model.load(str(path)) for name, path in served.items()}
    rng = np.random.default_rng(0)
    result = {}
    for size in (1, 64, 1024):
        request = {
            "dense_features": tf.constant(rng.normal(size=(size, 13)).astype("float32")),
            "ids": tf.constant(rng.integers(args.rows, size=(size, 1))),
        }
        answers, times = {}, {name: [] for name in loaded}
        for _ in range(num_requests + 20):  # the first ones warm up
            for name, model in loaded.items():
                start = time.perf_counter()
                answers[name] = model.signatures["serving_default"](**request)["output_0"].numpy()
                times[name].append(1e3 * (time.perf_counter() - start))
        assert np.array_equal(*answers.values())
        result[size] = {name: times[name][20:] for name in times}
    return result


def print_latencies(result):
    print(f"\n{'ms a request':>14} {'batch':>6} {'median':>8} {'90%':>8}")
    for size, subjects in result.items():
        for name, times in subjects.items():
            median, high = np.percentile(times, [50, 90])
            print(f"{name:>14} {size:6} {median:8.3f} {high:8.3f}")


def print_table(rounds):
    full_seconds = np.median([one["seconds"]["save_version"] for one in rounds])
    full_bytes = rounds[0]["bytes"]["save_version"]
    print(f"{'':>14} {'seconds':>9} {'min':>7} {'max':>7} {'of full':>8} {'MB':>9} {'of full':>8}")
    for name in rounds[0]["seconds"]:
        seconds = [one["seconds"][name] for one in rounds]
        line = f"{name:>14} {np.median(seconds):9.3f} {min(seconds):7.3f} {max(seconds):7.3f}"
        line += f" {np.median(seconds) / full_seconds:8.1%}"
        num_bytes = rounds[0]["bytes"].get(name)
        if num_bytes is not None:
            line += f" {num_bytes / 1e6:9.1f} {num_bytes / full_bytes:8.2%}"
        print(line)


if __name__ == "__main__":
    main()
