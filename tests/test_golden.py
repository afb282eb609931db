"""What earlier releases saved and published is read as they meant it: `tests/golden`."""

import json
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from tests.golden import make, packing
from tests.golden.training import make_model, state_of, train, weights_of
from tests.models import num_asleep, num_held
from tf_slipstream import export
from tf_slipstream._compat import keras
from tf_slipstream.delta.version_record import read_record
from tf_slipstream.state import schema

# The second by the oldest TensorFlow and Kerases that there are releases for.
RELEASES = ["0.1", "0.1-tf2.18"]


def load_file(folder):
    with zipfile.ZipFile(folder / "model.keras") as archive:
        saved_by = json.loads(archive.read("metadata.json"))["keras_version"]
    if numbers_of(saved_by) > numbers_of(keras.__version__):
        pytest.skip(f"Keras {saved_by} made the file, and no older one need read it")
    return keras.models.load_model(folder / "model.keras")


def numbers_of(version):
    return [int(number) for number in version.split(".")[:2]]


def load_weights(folder):
    model = make_model()
    model.optimizer.build(model.trainable_variables)
    model.load_weights(folder / "model.weights.h5")
    return model


def load_checkpoint(folder):
    model = make_model()
    model.optimizer.build(model.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    checkpoint.read(str(folder / "checkpoint")).assert_consumed()
    return model


WAYS = {"file": load_file, "weights": load_weights, "checkpoint": load_checkpoint}


def unpack(release, kind, folder):
    return packing.unpack(f"{release}-{kind}", folder)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("release", RELEASES)
def test_a_model_is_as_it_was_and_trains_on(release, way, tmp_path):
    expected = unpack(release, f"{make.KERAS}-model", tmp_path)
    expected = expected["checkpoint" if way == "checkpoint" else "file"]
    model = WAYS[way](tmp_path)
    assert weights_of(model) == expected["weights"]
    assert state_of(model) == expected["state"]
    # A checkpoint alone has gradients that are held.
    assert num_asleep(model.optimizer) > 0
    assert (num_held(model.optimizer) > 0) == (way == "checkpoint")
    train(model, make.NUM_STEPS, 2 * make.NUM_STEPS)
    for weight, value in zip(weights_of(model), expected["trained"], strict=True):
        np.testing.assert_allclose(weight, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("release", RELEASES)
def test_a_release_with_another_schema_says_so(release, way, tmp_path, monkeypatch):
    unpack(release, f"{make.KERAS}-model", tmp_path)
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    with pytest.raises(
        ValueError, match=rf"version {schema.VERSION - 1} of tf_slipstream's schema"
    ):
        WAYS[way](tmp_path)


@pytest.mark.parametrize("release", RELEASES)
def test_a_published_version_is_read_and_a_delta_applied_to_it(release, tmp_path):
    expected = unpack(release, "published", tmp_path)
    export.apply_delta(tmp_path / "1", tmp_path / "delta", tmp_path / "2")
    ids = np.array([[0, 1], [7, 3]])
    for version, (table, kernel, bias) in expected.items():
        served = tf.saved_model.load(tmp_path / version)
        (output,) = served.signatures["serving_default"](ids=tf.constant(ids)).values()
        rows = np.array(table)[ids].reshape(2, -1)
        np.testing.assert_allclose(output, rows @ kernel + bias, rtol=1e-5, atol=1e-6)
        assert read_record(tmp_path / version).version == int(version)
    assert expected["1"] != expected["2"]


def test_the_files_are_small_and_text():
    paths = list(packing.FOLDER.glob("*.json"))
    assert len(paths) == 3 * len(RELEASES)
    assert sum(len(path.read_text()) for path in paths) < 60_000 * len(RELEASES)
