"""Trains a click model, publishes it for TensorFlow Serving, trains on, publishes the difference.

    python examples/serving.py --folder published

leaves `published/clicks/1`, a SavedModel; `published/deltas/2`, what changed after it; and
`published/clicks/2`, made of the two as a serving host makes it, with

    tf-slipstream apply-delta --base published/clicks/1 --delta published/deltas/2 \\
        --out published/clicks/2
"""

import argparse
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import tf_slipstream as slipstream
from tf_slipstream import export

keras = tf.keras
BATCH_SIZE = 2048


def click_model(num_rows, dim):
    """Returns a compiled model of 13 dense features and one field."""
    features = keras.Input((13,), name="features")
    item = keras.Input((1,), dtype="int32", name="item")
    row = keras.layers.Flatten()(slipstream.SlipstreamEmbedding(num_rows, dim, name="items")(item))
    x = keras.layers.Dense(64, activation="relu")(keras.layers.Concatenate()([features, row]))
    model = keras.Model((features, item), keras.layers.Dense(1, activation="sigmoid")(x))
    optimizer = slipstream.SlipstreamOptimizer(keras.optimizers.Adagrad(0.05))
    model.compile(optimizer, loss="binary_crossentropy")
    return model


def publish(args):
    """Trains and publishes twice; returns the model, and the folder of the second version."""
    folder = pathlib.Path(args.folder)
    versions, delta = folder / "clicks", folder / "deltas" / "2"
    for path in (versions, delta.parent):
        path.mkdir(parents=True, exist_ok=True)
    log = slipstream.data.SyntheticClickLog(cardinalities=(args.rows,))
    model = click_model(args.rows, args.dim)
    tracker = export.DeltaTracker(model, folder / "marks")

    model.fit(log.dataset(args.examples, BATCH_SIZE), verbose=0)
    full = export.save_version(model, versions / "1")
    print(f"{full.path}: {full.num_bytes / 1e6:.1f} MB")

    # The next hour's clicks.
    start, more = args.examples, args.examples // 50
    model.fit(log.dataset(more, BATCH_SIZE, start=start), verbose=0)
    num_changed = len(tracker.changed_rows(1)["items"])
    saved = export.save_delta(model, 1, delta)
    print(f"{saved.path}: {saved.num_bytes / 1e6:.1f} MB, {num_changed:,} rows changed")
    return model, apply(versions / "1", delta, versions / "2")


def apply(base, delta, out):
    """Makes a version as a serving host does; returns its folder."""
    command = [sys.executable, "-m", "tf_slipstream.cli", "apply-delta"]
    command += ["--base", str(base), "--delta", str(delta), "--out", str(out)]
    subprocess.run(command, check=True)
    return out


def check(model, folder):
    """Compares what the published version answers with what the model does."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(100, 13)).astype("float32")
    item = rng.integers(1000, size=(100, 1)).astype("int32")
    serve = tf.saved_model.load(str(folder)).signatures["serving_default"]
    served = serve(features=tf.constant(features), item=tf.constant(item))["output_0"]
    trained = model.predict_on_batch((features, item))
    # Rows are equal to the bit. Of dense layers a served graph may fuse what a model computes apart
    # (oneDNN does on some processors), which rounds the last bit another way.
    difference = np.abs(served - trained).max()
    print(f"{folder} answers as the model does, to within {difference:.0e}")
    return difference < 1e-6


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", default="published", help="folder to publish in; must be new")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--examples", type=int, default=400_000)
    args = parser.parse_args()
    sys.exit(0 if check(*publish(args)) else 1)


if __name__ == "__main__":
    main()
