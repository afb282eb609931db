"""An exported model holds stock TensorFlow ops and no training state, and serves without us."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests.models import NUM_IDS, click_data, embedding_of, fit, random_table
from tf_slipstream import SlipstreamOptimizer
from tf_slipstream._compat import IS_KERAS_3, keras

# What serves: loads each SavedModel and saves what it answers. It gets TensorFlow only.
SERVE = """
import json, sys
import numpy as np
import tensorflow as tf

folders, ids = json.loads(sys.argv[1]), np.load(sys.argv[2])
for folder in folders:
    serve = tf.saved_model.load(folder).signatures["serving_default"]
    (name,) = serve.structured_input_signature[1]
    (answer,) = serve(**{name: tf.constant(ids)}).values()
    np.save(folder + ".npy", answer)
assert "tf_slipstream" not in sys.modules
"""


def export(model, folder):
    model.export(folder, **({"verbose": False} if IS_KERAS_3 else {}))


def save_compiled(model, folder):
    """As users of `tf.saved_model.save` do: with the function that they serve."""

    @tf.function(input_signature=[tf.TensorSpec([None, NUM_IDS], tf.int64)])
    def serve(ids):
        return model(ids, training=False)

    tf.saved_model.save(model, folder, signatures=serve)


def save_uncompiled(model, folder):
    save_compiled(keras.Model(model.inputs, model.outputs), folder)


def save_tf_keras(model, folder):
    model.save(folder, save_format="tf")


def save_tf_keras_without_optimizer(model, folder):
    model.save(folder, save_format="tf", include_optimizer=False)


WITHOUT_OPTIMIZER = [export, save_uncompiled]
# Keras tracks the optimizer of a compiled model, and what it tracks is saved here.
WITH_OPTIMIZER = [save_compiled]
if not IS_KERAS_3:
    WITHOUT_OPTIMIZER.append(save_tf_keras_without_optimizer)
    WITH_OPTIMIZER.append(save_tf_keras)
WAYS = [*WITHOUT_OPTIMIZER, *WITH_OPTIMIZER]


def trained_model():
    ids = keras.Input([NUM_IDS], dtype="int64")
    rows = embedding_of(random_table(10, 3), name="user")(ids)
    bags = embedding_of(random_table(10, 3), name="tags", combiner="sqrtn", mask_zero=True)(ids)
    cast = embedding_of(random_table(10, 3), name="cast", dtype="mixed_bfloat16")(ids)
    flat = [keras.layers.Flatten()(one) for one in (rows, cast)]
    flat[1] = keras.layers.Activation("linear", dtype="float32")(flat[1])
    output = keras.layers.Dense(1, activation="sigmoid")
    model = keras.Model(ids, output(keras.layers.Concatenate()([*flat, bags])))
    model.compile(SlipstreamOptimizer(keras.optimizers.Adam(0.125)), loss="binary_crossentropy")
    fit(model, click_data())
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns the trained model, and by way of saving it the folder."""
    folder = tmp_path_factory.mktemp("exported")
    model = trained_model()
    folders = {}
    for way in WAYS:
        folders[way] = str(folder / way.__name__)
        way(model, folders[way])
    return model, folders


def ops_of(folder):
    """Returns the op types of a SavedModel, its functions' and their gradients' included."""
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString(pathlib.Path(folder, "saved_model.pb").read_bytes())
    ops = set()
    for meta_graph in saved.meta_graphs:
        graph = meta_graph.graph_def
        ops |= {node.op for node in graph.node}
        ops |= {node.op for function in graph.library.function for node in function.node_def}
    return ops


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_only_stock_ops_are_saved(way, exported):
    ops = ops_of(exported[1][way])
    assert "ResourceGather" in ops
    assert not [op for op in ops if "Slipstream" in op]


@pytest.mark.parametrize("way", WITHOUT_OPTIMIZER, ids=lambda way: way.__name__)
def test_no_state_of_the_optimizer_is_saved(way, exported):
    model, folders = exported
    variables = tf.train.list_variables(str(pathlib.Path(folders[way], "variables", "variables")))
    assert not [name for name, _ in variables if "optimizer" in name]
    # tf_keras saves its metrics, which are scalars.
    shapes = {tuple(shape) for _, shape in variables} - {()}
    assert shapes == {tuple(weight.shape) for weight in model.weights}


def test_a_process_without_us_answers_the_same_to_the_bit(exported, tmp_path):
    model, folders = exported
    ids = click_data(seed=3)[0]
    np.save(tmp_path / "ids.npy", ids)
    subprocess.run(
        [sys.executable, "-c", SERVE, json.dumps(list(folders.values())), tmp_path / "ids.npy"],
        cwd=tmp_path,
        check=True,
        timeout=120,
    )
    expected = model.predict(ids, batch_size=len(ids), verbose=0)
    for folder in folders.values():
        np.testing.assert_array_equal(np.load(folder + ".npy"), expected)
