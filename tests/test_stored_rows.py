"""Rows in a file of weights: written and read in parts, and the same file as Keras's own."""

import h5py
import numpy as np
import pytest
import tensorflow as tf

from tf_slipstream import (
    SlipstreamEmbedding,
    SlipstreamOptimizer,
    _compat,
    stored_rows,
    table_layer,
)
from tf_slipstream.state.schema_version import variables_in, write_version

keras = _compat.keras


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of three rows of 4, in tables that count as large."""
    monkeypatch.setattr(stored_rows, "_PART_BYTES", 48)
    monkeypatch.setattr(table_layer, "_LARGE_TABLE_BYTES", 1)


def model_of(num_rows=10):
    model = keras.Sequential([SlipstreamEmbedding(num_rows, 4, name="item")])
    model(tf.constant([[1]]))
    return model, model.layers[0]._table()


def values_in(path):
    """Returns a dict from the place of each value in a file to its array."""
    found = {}

    def note(place, one):
        if isinstance(one, h5py.Dataset):
            found[place] = one[()]

    with h5py.File(path) as file:
        file.visititems(note)
    return found


def test_a_file_that_is_written_in_parts_is_keras_own(tmp_path, small_parts, monkeypatch):
    model, table = model_of()
    model.save_weights(tmp_path / "parts.weights.h5")
    monkeypatch.setattr(table_layer, "_LARGE_TABLE_BYTES", 1 << 30)
    model.save_weights(tmp_path / "whole.weights.h5")
    values = [values_in(tmp_path / f"{name}.weights.h5") for name in ("parts", "whole")]
    assert values[0].keys() == values[1].keys() and len(values[0]) == 1
    for key, value in values[0].items():
        np.testing.assert_array_equal(value, values[1][key])
        np.testing.assert_array_equal(value, table.numpy())


def test_a_table_that_was_read_in_parts_is_not_copied_by_who_reads_it(tmp_path, small_parts):
    model, table = model_of()
    model.save_weights(tmp_path / "model.weights.h5")
    model.load_weights(tmp_path / "model.weights.h5")
    one, other = table.read_value(), table.read_value()
    places = [np.frombuffer(memoryview(read), np.float32).ctypes.data for read in (one, other)]
    assert places[0] == places[1]


@pytest.mark.parametrize("name", ["model.weights.h5", "model.keras"])
def test_what_was_written_in_parts_is_read_in_parts(name, tmp_path, small_parts, monkeypatch):
    model, table = model_of()
    (model.save if name.endswith("keras") else model.save_weights)(tmp_path / name)
    other, other_table = model_of()
    other_table.assign(tf.zeros_like(other_table))
    num_read = []
    read = _compat.dataset_of
    monkeypatch.setattr(_compat, "dataset_of", lambda *args: num_read.append(1) or read(*args))
    if name.endswith("keras"):
        other_table = keras.models.load_model(tmp_path / name).layers[0]._table()
    else:
        other.load_weights(tmp_path / name)
    np.testing.assert_array_equal(other_table.numpy(), table.numpy())
    assert num_read


def test_a_dict_takes_the_whole_value(small_parts):
    store, tables = {}, [tf.Variable(tf.random.uniform([num, 4])) for num in (5, 2, 8)]
    stored_rows.save_rows(tables, store, "0")
    whole = np.concatenate([table.numpy() for table in tables])
    np.testing.assert_array_equal(store["0"], whole)
    others = [tf.Variable(tf.zeros([num, 4])) for num in (7, 8)]
    stored_rows.load_rows("it", others, store, "0")
    np.testing.assert_array_equal(np.concatenate([table.numpy() for table in others]), whole)


def test_another_shape_is_refused_and_changes_nothing(small_parts):
    table = tf.Variable(tf.ones([4, 4]))
    with pytest.raises(ValueError, match=r"has \[5, 4\] for what is \[4, 4\] in it"):
        stored_rows.load_rows("it", [table], {"0": np.zeros([5, 4], np.float32)}, "0")
    assert np.all(table.numpy() == 1)


@pytest.mark.parametrize("rule", ["Adam", "Adagrad"])
def test_an_optimizers_variables_are_written_and_read_in_parts(rule, tmp_path, monkeypatch):
    """As on servers."""
    monkeypatch.setattr(stored_rows, "_PART_BYTES", 48)
    monkeypatch.setattr(stored_rows, "_is_on_servers", lambda optimizer: True)

    def trained():
        model, _ = model_of(50)
        optimizer = SlipstreamOptimizer(getattr(keras.optimizers, rule)(0.1), policy="default")
        model.compile(optimizer, "mse")
        model.fit(np.arange(50)[:, None], np.ones([50, 1, 4]), verbose=0)
        return optimizer

    one = trained()
    with h5py.File(tmp_path / "file", "w") as file:
        one.save_own_variables(file)
        values = [np.array(_compat.tf_variable(v)) for v in one.variables]
        other = trained()
        other.load_own_variables(file)
    for variable, value in zip(other.variables, values, strict=True):
        np.testing.assert_array_equal(np.array(_compat.tf_variable(variable)), value)


def test_a_link_is_left_to_keras(tmp_path):
    with h5py.File(tmp_path / "other", "w") as other:
        other["0"] = np.ones([3])
    with h5py.File(tmp_path / "file", "w") as file:
        file["0"] = h5py.ExternalLink(str(tmp_path / "other"), "0")
        file["1"] = np.ones([3])
        assert _compat.dataset_of(file, "0") is None and _compat.dataset_of(file, "2") is None
        assert _compat.dataset_of(file, "1").shape == (3,)


def test_an_optimizers_values_are_read_when_they_are_asked_for():
    class Store(dict):
        def __getitem__(self, key):
            if key == "1":
                raise AssertionError("it was read")
            return super().__getitem__(key)

    store = Store({"0": np.zeros([2]), "1": np.zeros([3])})
    write_version(store)
    saved = variables_in(store, 3)
    assert list(saved.keys()) == ["0", "1"] and saved["0"].shape == (2,)
