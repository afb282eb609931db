"""Makes the files of a release: `python -m tests.golden.make 0.1`, under each Keras.

It writes `NAME-keras3-model.json` or `NAME-tf_keras-model.json`: a Keras file, a weights file and a
checkpoint, of a model after 12 steps, and what 12 more steps make of each. Under Keras 3 it writes
`NAME-published.json` as well: a version, a delta to the next, and the tables of both. A release has
two names: `0.1`, made with the newest TensorFlow, and `0.1-tf2.18`, made with the oldest.
"""

import pathlib
import sys
import tempfile

import tensorflow as tf

from tests.golden.packing import FOLDER, pack
from tests.golden.training import make_model, state_of, train, weights_of
from tf_slipstream import export
from tf_slipstream._compat import IS_KERAS_3

KERAS = "keras3" if IS_KERAS_3 else "tf_keras"
NUM_STEPS = 12


def main(name):
    if list(FOLDER.glob(f"{name}-{KERAS}-*")):
        sys.exit(f"there are files of {name} already, and they never change")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        pack(folder, make_saved(folder), FOLDER / f"{name}-{KERAS}-model.json")
    if IS_KERAS_3:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            pack(folder, make_published(folder), FOLDER / f"{name}-published.json")


def make_saved(folder):
    """Saves a model in every way, and returns what a reader of this release makes of it."""
    expected = {}
    model = make_model()
    train(model, 0, NUM_STEPS)
    # First, because the other ways apply what is held before they save.
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(folder / "checkpoint"))
    expected["checkpoint"] = {"weights": weights_of(model), "state": state_of(model)}
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    expected["file"] = {"weights": weights_of(model), "state": state_of(model)}
    train(model, NUM_STEPS, 2 * NUM_STEPS)
    expected["file"]["trained"] = weights_of(model)
    never_saved = make_model()
    train(never_saved, 0, 2 * NUM_STEPS)
    expected["checkpoint"]["trained"] = weights_of(never_saved)
    return expected


def make_published(folder):
    """Publishes two versions, the second as a delta, and returns the weights of each."""
    model = make_model()
    train(model, 0, NUM_STEPS)
    export.DeltaTracker(model)
    export.save_version(model, folder / "1")
    expected = {"1": weights_of(model)}
    train(model, NUM_STEPS, NUM_STEPS + 1)
    export.save_delta(model, 1, folder / "delta", version=2)
    expected["2"] = weights_of(model)
    return expected


if __name__ == "__main__":
    main(sys.argv[1])
