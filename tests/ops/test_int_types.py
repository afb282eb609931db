"""Checks tables whose int32 variables are uint32, as on a GPU, where TensorFlow keeps no int32."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.ops import tables
from tests.ops.tables import RULE_CASES
from tf_slipstream.ops import _library
from tf_slipstream.ops.apply_rows import apply_rows
from tf_slipstream.ops.live_slices import live_slices
from tf_slipstream.ops.settle_rows import settle_rows

INT_VARIABLES = ("last_steps", "changed_rows", "row_states")
IDS = ([3, 0, 3, 39], [39, 1, 2, 2], [38, 3, 0, 39])


def with_uint32(state):
    """Returns a state with the same bits in the variables of a GPU's types."""
    return dataclasses.replace(
        state,
        **{
            name: tf.Variable(tf.bitcast(getattr(state, name), tf.uint32))
            for name in INT_VARIABLES
            if getattr(state, name) is not None
        },
    )


@pytest.mark.parametrize("name", ["adagrad", "adam"])
def test_the_fallback_gives_the_same_bits_with_either_type(name):
    rule = RULE_CASES[name].rule
    results = []
    for convert in (lambda state: state, with_uint32):
        state = convert(tables.new_state(rule, np.ones([40, 2])))
        grads, seen = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2), []
        with _library.fallback():
            for step, ids in enumerate(IDS, start=1):
                batch = tables.slices(np.array(ids), grads)
                number = tf.constant(step, tf.int64)
                seen.append(live_slices([state], [batch], number)[0].values.numpy())
                apply_rows(rule, [state], [batch], tables.settings(step))
            settle_rows(rule, [state], tables.settings(len(IDS)), [0.125], wake=False)
        results.append((seen, tables.arrays_of(state)))
    (expected, expected_arrays), (actual, actual_arrays) = results
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    for key, array in expected_arrays.items():
        assert np.asarray(actual_arrays[key]).tobytes() == np.asarray(array).tobytes(), key


def test_variables_of_a_cpu_are_int32():
    assert _library.row_int_dtype("/job:localhost/replica:0/task:0/device:CPU:0") == "int32"


@pytest.mark.parametrize("cuda, expected", [(True, "uint32"), (False, "int32")])
def test_variables_of_a_gpu_are_uint32_where_there_are_kernels_for_it(cuda, expected, monkeypatch):
    monkeypatch.setattr(_library, "_built_for", lambda: ("2.21", ["90"] if cuda else []))
    device = "/job:localhost/replica:0/task:0/device:GPU:0"
    assert _library.row_int_dtype(device) == expected
    assert (_library.native_ops(device) is not None) == cuda
    with _library.fallback():
        assert _library.row_int_dtype(device) == "int32"
