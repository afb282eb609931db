"""Checks when the native ops are used, and what is said where they cannot be."""

import importlib.resources
import importlib.util
import warnings

import numpy as np
import pytest
import tensorflow as tf

from tests.ops import tables
from tests.ops.tables import RULE_CASES
from tf_slipstream.ops import _library
from tf_slipstream.ops.apply_rows import apply_rows
from tf_slipstream.ops.live_slices import live_slices

SGD = RULE_CASES["sgd"].rule
VERSION = ".".join(tf.__version__.split(".")[:2])


@pytest.fixture
def library_folder(tmp_path, monkeypatch):
    """A folder that the library is looked for in, by a loader that has not loaded it yet."""
    loader = _copy_of_library_module()
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    monkeypatch.setattr(_library, "_load", loader._load)
    return tmp_path


def _copy_of_library_module():
    spec = importlib.util.spec_from_file_location(_library.__name__, _library.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def step_by_step():
    """Returns a table after a step, and the live slices of that step."""
    state = tables.new_state(SGD, np.zeros([3, 2]))
    batch = tables.slices(np.array([2, 0, 2]), np.ones([3, 2], np.float32))
    apply_rows(SGD, [state], [batch], tables.settings())
    (live,) = live_slices([state], [batch], tf.constant(1, tf.int64))
    return state.table.numpy(), live.values.numpy()


def assert_right_results_and_one_warning(match):
    with pytest.warns(RuntimeWarning, match=match) as caught:
        for _ in range(2):
            table, sums = step_by_step()
            np.testing.assert_array_equal(table, [[-1, -1], [0, 0], [-2, -2]])
            np.testing.assert_array_equal(sums, [[2, 2], [1, 1]])
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "pip install --force-reinstall" in message
    assert "slower" in message


def test_without_library_one_warning_says_how_to_build_it_and_results_are_right(library_folder):
    assert_right_results_and_one_warning(
        rf"no native ops for TensorFlow {VERSION} \(built for: none\)"
    )


def test_a_library_of_another_tensorflow_is_named_and_not_loaded(library_folder):
    for version in ("1.0", "99.9"):
        (library_folder / f"_slipstream_ops_tf{version}.so").touch()
    assert_right_results_and_one_warning(
        rf"no native ops for TensorFlow {VERSION} \(built for: 1\.0, 99\.9\)"
    )


def test_a_library_that_does_not_load_is_reported_with_its_error(library_folder):
    name = f"_slipstream_ops_tf{VERSION}.so"
    (library_folder / name).write_text("not a library")
    assert_right_results_and_one_warning(rf"could not load its native ops: .*{name}")


@pytest.mark.parametrize("value", ["0", "false", "False"])
def test_switched_off_by_the_environment_the_library_is_not_looked_for(
    value, library_folder, monkeypatch
):
    monkeypatch.setenv("TF_SLIPSTREAM_NATIVE", value)
    switched_off = _copy_of_library_module()
    monkeypatch.setattr(_library, "native_ops", switched_off.native_ops)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert switched_off.native_ops() is None
        table, _ = step_by_step()
    np.testing.assert_array_equal(table, [[-1, -1], [0, 0], [-2, -2]])


@pytest.mark.parametrize("value", [None, "1", ""])
def test_otherwise_the_library_is_used(value, monkeypatch):
    monkeypatch.delenv("TF_SLIPSTREAM_NATIVE", raising=False)
    if value is not None:
        monkeypatch.setenv("TF_SLIPSTREAM_NATIVE", value)
    native = _copy_of_library_module().native_ops()
    assert native.slipstream_apply_rows and native.slipstream_live_slices


def test_fallback_ends_with_its_block():
    native = _library.native_ops()
    assert native is not None
    with _library.fallback():
        assert _library.native_ops() is None
        with _library.fallback():
            assert _library.native_ops() is None
        assert _library.native_ops() is None
    assert _library.native_ops() is native
    with pytest.raises(KeyError), _library.fallback():
        raise KeyError
    assert _library.native_ops() is native


def test_a_function_keeps_the_ops_that_it_was_traced_with():
    state = tables.new_state(SGD, np.zeros([3, 2]))
    batch = tables.slices(np.array([2]), np.ones([1, 2], np.float32))

    def ops_of(step):
        graph = tf.function(step).get_concrete_function().graph
        return {operation.type for operation in graph.get_operations()}

    def step():
        apply_rows(SGD, [state], [batch], tables.settings())

    native = {"Slipstream>ApplyRows"}
    assert native <= ops_of(step)
    with _library.fallback():
        assert not native & ops_of(step)
