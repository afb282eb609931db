"""A published version serves everywhere, with the names that its users expect."""

import json
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests.export.click_models import DIM, NUM_DENSE, NUM_ROWS, NUM_TAGS, batch, click_model, train
from tests.models import embedding_of, ids_input, random_table
from tf_slipstream import SlipstreamEmbedding, export
from tf_slipstream._compat import IS_KERAS_3, keras


def example(**features):
    """Returns a serialized `tf.Example`."""
    kinds = {}
    for name, values in features.items():
        values = np.atleast_1d(values)
        if values.dtype.kind == "f":
            kinds[name] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
        elif values.dtype.kind in "SU":
            strings = [str(value).encode() for value in values]
            kinds[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=strings))
        else:
            kinds[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Example(features=tf.train.Features(feature=kinds)).SerializeToString()


@pytest.fixture(scope="module")
def click(tmp_path_factory):
    """Returns a trained model and the folder of its version."""
    folder = tmp_path_factory.mktemp("click") / "1"
    model = click_model()
    train(model, 0, 1)
    export.save_version(model, folder)
    return model, folder


def test_signatures_have_the_names_of_tensorflow_serving(click):
    signatures = tf.saved_model.load(str(click[1])).signatures
    assert set(signatures) == {"serving_default", "predict", "regression"}
    inputs = {name: one.structured_input_signature[1] for name, one in signatures.items()}
    assert inputs["serving_default"] == {
        "features": tf.TensorSpec([None, NUM_DENSE], tf.float32, "features"),
        "user": tf.TensorSpec([None], tf.int64, "user"),
        "tags": tf.TensorSpec([None, NUM_TAGS], tf.int64, "tags"),
    }
    assert inputs["predict"] == {"examples": tf.TensorSpec([None], tf.string, "examples")}
    assert inputs["regression"] == {"inputs": tf.TensorSpec([None], tf.string, "inputs")}
    outputs = {name: list(one.structured_outputs) for name, one in signatures.items()}
    assert outputs == {
        "serving_default": ["output_0"],
        "predict": ["output_0"],
        "regression": ["outputs"],
    }


def test_another_process_answers_the_same_to_the_bit(click, elsewhere):
    model, folder = click
    inputs, _ = batch(3)
    (answer,) = elsewhere.answers(folder, inputs).values()
    np.testing.assert_array_equal(answer, model.predict_on_batch(inputs))


def test_examples_are_answered_like_tensors(click):
    model, folder = click
    inputs, _ = batch(3)
    examples = [
        example(features=inputs["features"][i], user=inputs["user"][i], tags=inputs["tags"][i])
        for i in range(len(inputs["user"]))
    ]
    signatures = tf.saved_model.load(str(folder)).signatures
    expected = model.predict_on_batch(inputs)
    predicted = signatures["predict"](examples=tf.constant(examples))["output_0"]
    np.testing.assert_array_equal(predicted, expected)
    regressed = signatures["regression"](inputs=tf.constant(examples))["outputs"]
    np.testing.assert_array_equal(regressed, expected)


def test_only_the_model_is_in_it(click):
    model, folder = click
    prefix = str(folder / "variables" / "variables")
    shapes = [shape for name, shape in tf.train.list_variables(prefix) if "GRAPH" not in name]
    assert sorted(shapes) == sorted(list(weight.shape) for weight in model.weights)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Returns the program of `serve.c`, built against the library that is in the wheel."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler is not None, "no C compiler, which building the ops needs as well"
    path = tmp_path_factory.mktemp("program") / "serve"
    folder = pathlib.Path(tf.__file__).parent
    command = [compiler, "-Wall", "-Werror", "-I", folder / "include", "-o", path]
    command += [pathlib.Path(__file__).with_name("serve.c"), "-L", folder, f"-Wl,-rpath,{folder}"]
    command += ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    subprocess.run([*map(str, command)], check=True, timeout=120)
    return path


def operation_names(folder):
    """Returns the operations of `serving_default`: dict by input, and that of its output."""
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    signature = saved.meta_graphs[0].signature_def["serving_default"]
    inputs = {name: info.name.removesuffix(":0") for name, info in signature.inputs.items()}
    (output,) = signature.outputs.values()
    return inputs, output.name.removesuffix(":0")


def run_program(program, folder, inputs, tmp_path):
    names, output = operation_names(folder)
    size = len(next(iter(inputs.values())))
    command = [program, folder, size, output, tmp_path / "answer"]
    for name, values in inputs.items():
        values.tofile(tmp_path / name)
        kind = {"f": "float", "i": "int64"}[values.dtype.kind]
        command += [names[name], kind, values.shape[1] if values.ndim > 1 else 0, tmp_path / name]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return np.fromfile(tmp_path / "answer", np.float32)[:, np.newaxis]


def test_the_loader_of_tensorflow_serving_answers_the_same_to_the_bit(click, program, tmp_path):
    model, folder = click
    inputs, _ = batch(4)
    answer = run_program(program, folder, inputs, tmp_path)
    np.testing.assert_array_equal(answer, model.predict_on_batch(inputs))


def test_it_loads_what_a_delta_made_as_well(published, program, tmp_path):
    export.apply_delta(published.base, published.delta, tmp_path / "2")
    inputs, _ = batch(4)
    applied, full, base = (
        run_program(program, folder, inputs, tmp_path)
        for folder in (tmp_path / "2", published.full[0], published.base)
    )
    np.testing.assert_array_equal(applied, full)
    assert (applied != base).any()


def test_ragged_inputs_are_given_as_values_and_row_splits(tmp_path, elsewhere):
    ids = ids_input("ragged", None, name="ids")
    rows = embedding_of(random_table(NUM_ROWS, DIM), combiner="mean")(ids)
    model = keras.Model(ids, keras.layers.Dense(2)(rows))
    export.save_version(model, tmp_path / "1")
    bags = tf.ragged.constant([[1, 2], [], [3]], dtype=tf.int64)
    flat = {"ids_values": bags.values.numpy(), "ids_row_splits": bags.row_splits.numpy()}
    (answer,) = elsewhere.answers(tmp_path / "1", flat).values()
    np.testing.assert_array_equal(answer, model(bags))
    predict = tf.saved_model.load(str(tmp_path / "1")).signatures["predict"]
    examples = [example(ids=bag) for bag in ([1, 2], np.zeros(0, int), [3])]
    np.testing.assert_array_equal(predict(examples=tf.constant(examples))["output_0"], model(bags))


def test_two_towers_with_strings(tmp_path, elsewhere):
    words = [f"user-{number}" for number in range(NUM_ROWS - 1)]
    lookup = keras.layers.StringLookup(vocabulary=words)
    user = keras.Input([], dtype="string", name="user")
    item = keras.Input([], dtype="int32", name="item")
    towers = [
        embedding_of(random_table(NUM_ROWS, DIM, seed), name=name)(ids)
        for seed, (name, ids) in enumerate([("u", lookup(user)), ("i", item)])
    ]
    score = keras.layers.Dot(axes=1)(towers)
    model = keras.Model([user, item], score)
    export.save_version(model, tmp_path / "1")
    users, items = np.array(["user-5", "user-7", "stranger"]), np.array([1, 2, 3], "int32")
    expected = model([tf.constant(users), tf.constant(items)])
    inputs = {"user": users, "item": items}
    (answer,) = elsewhere.answers(tmp_path / "1", inputs).values()
    np.testing.assert_array_equal(answer, expected)
    predict = tf.saved_model.load(str(tmp_path / "1")).signatures["predict"]
    examples = [example(user=user, item=item) for user, item in zip(users, items)]
    np.testing.assert_array_equal(predict(examples=tf.constant(examples))["output_0"], expected)


class Retrieval(keras.Model):
    """A subclassed model with several outputs, that says nowhere what it is called with."""

    def __init__(self):
        super().__init__()
        self.table = SlipstreamEmbedding(NUM_ROWS, DIM)

    def call(self, inputs):
        rows = self.table(inputs["user"])
        return {"row": rows, "norm": tf.norm(rows, axis=-1)}


def test_a_subclassed_model_is_told_its_inputs(tmp_path, elsewhere):
    model = Retrieval()
    specs = {"user": tf.TensorSpec([None], tf.int64)}
    if IS_KERAS_3:
        with pytest.raises(ValueError, match="`inputs` is needed"):
            export.save_version(model, tmp_path / "1")
    users = {"user": np.array([1, 5])}
    expected = model({"user": tf.constant([1, 5], tf.int64)})
    export.save_version(model, tmp_path / "1", inputs=specs)
    answer = elsewhere.answers(tmp_path / "1", users)
    for name in ("row", "norm"):
        np.testing.assert_array_equal(answer[name], expected[name])


@pytest.mark.skipif(IS_KERAS_3, reason="TensorFlow Recommenders refuses Keras 3 at import")
def test_brute_force_retrieval_over_item_rows(tmp_path, elsewhere):
    import tensorflow_recommenders as tfrs

    users = keras.Sequential([embedding_of(random_table(NUM_ROWS, DIM))])
    items = embedding_of(random_table(50, DIM, 1))

    def index():
        layer = tfrs.layers.factorized_top_k.BruteForce(users, k=3)
        names = tf.constant([f"item-{number}" for number in range(50)])
        layer.index(items(tf.range(50)), names)
        layer(tf.constant([1], tf.int64))
        return layer

    spec = tf.TensorSpec([None], tf.int64, "user")
    layer = index()
    export.save_version(layer, tmp_path / "1", inputs=spec)
    answers = elsewhere.answers(tmp_path / "1", {"user": np.array([3, 9])})
    scores, names = layer(tf.constant([3, 9], tf.int64))
    np.testing.assert_array_equal(answers["output_0"], scores)
    np.testing.assert_array_equal(answers["output_1"], names.numpy())
    # The next index over other rows is a delta of this one.
    items.set_weights([random_table(50, DIM, 2)])
    layer = index()
    export.save_delta(layer, tmp_path / "1", tmp_path / "delta")
    export.apply_delta(tmp_path / "1", tmp_path / "delta", tmp_path / "2")
    answers = elsewhere.answers(tmp_path / "2", {"user": np.array([3, 9])})
    np.testing.assert_array_equal(answers["output_0"], layer(tf.constant([3, 9], tf.int64))[0])


def test_a_custom_op_is_refused_by_name_and_place(click, tmp_path):
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((click[1] / "saved_model.pb").read_bytes())
    export.check_stock_ops(click[1])
    function = saved.meta_graphs[0].graph_def.library.function[0]
    function.node_def.add(name="leak", op="SlipstreamApplyRows")
    (tmp_path / "saved_model.pb").write_bytes(saved.SerializeToString())
    with pytest.raises(export.ExportError, match="SlipstreamApplyRows") as error:
        export.check_stock_ops(tmp_path)
    assert function.signature.name in str(error.value)
    export.check_stock_ops(tmp_path, allow_ops=["SlipstreamApplyRows"])


def test_a_model_that_would_leak_an_op_is_not_published(tmp_path, monkeypatch):
    # An op that this TensorFlow has, but that is none of those of `tf.raw_ops`, as ours are not.
    monkeypatch.delattr(tf.raw_ops, "Sigmoid")
    (tmp_path / "m").mkdir()
    with pytest.raises(export.ExportError, match="Sigmoid .*allow_ops"):
        export.save_version(click_model(), tmp_path / "m" / "1")
    assert list((tmp_path / "m").iterdir()) == []
    export.save_version(click_model(), tmp_path / "m" / "1", allow_ops=["Sigmoid"])


def test_a_folder_must_be_a_number(tmp_path):
    with pytest.raises(ValueError, match="name is a number"):
        export.save_version(click_model(), tmp_path / "latest")
    saved = export.save_version(click_model(), tmp_path / "latest", version=7)
    assert saved.version == 7
    record = json.loads((tmp_path / "latest" / "assets.extra" / "slipstream.json").read_text())
    assert (record["version"], record["id"]) == (7, saved.id)


def test_it_is_no_larger_than_a_stock_export_of_a_stock_model(tmp_path):
    def model_of(layer):
        ids = keras.Input([2], dtype="int64", name="ids")
        x = keras.layers.Flatten()(layer(ids))
        return keras.Model(ids, keras.layers.Dense(1)(x))

    stock = model_of(keras.layers.Embedding(50_000, 8))
    stock.export(str(tmp_path / "stock"))
    export.save_version(model_of(SlipstreamEmbedding(50_000, 8)), tmp_path / "1", examples=False)

    def size(folder):
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    assert size(tmp_path / "1") <= size(tmp_path / "stock")
