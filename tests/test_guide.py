"""Runs the programs of the guide and of the migration pages, and checks the names of the rest."""

import ast
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

import tf_slipstream as slipstream
from tf_slipstream._compat import IS_KERAS_3, keras

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGES = [*sorted((DOCS / "guide").glob("*.md")), *sorted((DOCS / "migration").glob("*.md"))]
with_keras_3 = pytest.mark.skipif(not IS_KERAS_3, reason="the pages' programs import Keras 3")


def programs(page):
    """Returns the Python blocks of a page; not those of an interpreter's session."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)
    return [block for block in blocks if not block.startswith(">>>")]


def run(blocks, **names):
    """Runs blocks one after the other, which share their names; returns these."""
    names |= {"keras": keras, "np": np, "tf": tf, "slipstream": slipstream}
    for block in blocks:
        exec(compile(block, "page", "exec"), names)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_program_is_python_and_names_what_there_is(page):
    for block in programs(page):
        for node in ast.walk(ast.parse(block)):
            if not isinstance(node, ast.Attribute):
                continue
            names = ast.unparse(node).split(".")
            if names[0] == "slipstream" and names[1] != "__version__":
                value = slipstream
                for name in names[1:]:
                    if callable(value):  # a class: what its objects have is not looked up here
                        break
                    value = getattr(value, name)


@with_keras_3
def test_the_quick_start_trains_saves_and_exports(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run(programs("guide/quick_start.md"))
    assert "'native'" in capsys.readouterr().out
    assert (tmp_path / "served" / "saved_model.pb").exists()
    loaded = keras.models.load_model("model.keras")
    items = np.arange(5)
    np.testing.assert_array_equal(loaded.predict(items), names["model"].predict(items))


@with_keras_3
def test_weights_of_pytorch_are_those_of_the_layer():
    (block,) = programs("migration/pytorch.md")
    given = 'np.zeros((1000, 16), "float32")'
    assert given in block
    weight = np.arange(16_000, dtype="float32").reshape(1000, 16)
    layer = run([block.replace(given, "given")], given=weight)["layer"]
    np.testing.assert_array_equal(layer(np.array([7, 999])), weight[[7, 999]])


@with_keras_3
def test_a_collection_takes_the_features_of_keras_rs():
    block = programs("migration/keras_rs.md")[1]
    embeddings = run([block.replace("_000_000", "_000")])["embeddings"]
    rows = embeddings({"user": np.array([3]), "item": np.array([3]), "friend": np.array([3])})
    assert rows["user"].shape == (1, 32)
    np.testing.assert_array_equal(rows["user"], rows["friend"])


@with_keras_3
def test_ids_of_tfra_are_mapped_and_its_rows_carried_over():
    known, hashed, carry = programs("migration/tfra.md")
    raw_ids = np.array([900_000_000_007, 12, 900_000_000_007])
    names = run([known], known_ids=[12, 900_000_000_007], raw_ids=raw_ids)
    assert names["rows"].shape == (3, 32)
    np.testing.assert_array_equal(names["rows"][0], names["rows"][2])
    layer = slipstream.SlipstreamEmbedding(names["lookup"].vocabulary_size(), 2)
    layer.build(None)
    values = np.array([[1, 2], [3, 4]], "float32")
    run(
        [carry], lookup=names["lookup"], layer=layer, keys=np.array([12, raw_ids[0]]), values=values
    )
    np.testing.assert_array_equal(layer(names["lookup"](raw_ids[:2])), values[::-1])
    rows = run([hashed.replace("1_000_000", "1_000")], raw_ids=raw_ids)["rows"]
    np.testing.assert_array_equal(rows[0], rows[2])


@pytest.mark.skipif(IS_KERAS_3, reason="TFRS 0.7.7 refuses Keras 3")
def test_two_towers_of_tfrs_train_on_string_ids():
    pytest.importorskip("tensorflow_recommenders", minversion="0.7.7")
    users, items = [f"u{i}" for i in range(20)], [f"i{i}" for i in range(12)]
    blocks = programs("migration/tensorflow_recommenders.md")
    model = run(blocks, user_names=users, item_names=items)["model"]
    random = np.random.default_rng(0)
    inputs = {"user": random.choice(users, 64), "item": random.choice(items, 64)}
    history = model.fit(tf.data.Dataset.from_tensor_slices(inputs).batch(16), epochs=4, verbose=0)
    assert history.history["total_loss"][-1] < history.history["total_loss"][0]
