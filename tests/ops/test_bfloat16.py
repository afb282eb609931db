"""Checks tables in bfloat16: the stochastic rounding, and steps with it."""

import zlib

import numpy as np
import pytest
import tensorflow as tf

from tests.ops import tables
from tests.ops.tables import RULE_CASES
from tf_slipstream import SlipstreamEmbedding, SlipstreamOptimizer
from tf_slipstream._compat import IS_KERAS_3, keras
from tf_slipstream.ops.apply_rows import apply_rows
from tf_slipstream.ops.rounding import stochastically_rounded

IDS = np.array([0, 1, 31, 2**31 - 1, 2**31, 2**32 - 1, 2**32 + 5, 2**40])


def mixed(x):
    x = (x ^ x >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    x = (x ^ x >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return x ^ x >> 16


def rounded_by_hand(value, seed, step, row, element):
    """Returns the bits of a finite float32 rounded to bfloat16, in Python's whole numbers."""
    key = mixed(seed ^ step & 0xFFFFFFFF)
    key = mixed(key ^ row & 0xFFFFFFFF)
    key = mixed(key ^ row >> 32)
    random_bits = mixed(key + element * 0x9E3779B9 & 0xFFFFFFFF) >> 16
    return int(np.float32(value).view(np.uint32)) + random_bits >> 16


def rounded(rows, seed=7, step=3, ids=None):
    ids = np.arange(len(rows)) if ids is None else ids
    result = stochastically_rounded(
        tf.constant(rows, tf.float32), seed, tf.constant(step, tf.int64), tf.constant(ids)
    )
    assert result.dtype == tf.bfloat16
    return result


def bits_of(values):
    return tf.bitcast(values, tf.uint16).numpy()


@pytest.mark.parametrize("seed, step", [(0, 1), (7, 3), (2**32 - 1, 2**40 + 1)])
def test_it_is_the_hash_that_is_documented(seed, step):
    rows = np.random.default_rng(0).normal(size=[len(IDS), 5]).astype(np.float32)
    expected = [
        [rounded_by_hand(rows[r, d], seed, step, int(row), d) for d in range(5)]
        for r, row in enumerate(IDS)
    ]
    np.testing.assert_array_equal(bits_of(rounded(rows, seed, step, IDS)), expected)


@pytest.mark.parametrize("value", [1 / 3, -1.001, 1e-40, 3e38, 1 + 2**-16])
def test_the_expected_result_is_the_value_itself(value):
    num_rows, dim = 20_000, 16
    value = np.float32(value)
    results = rounded(np.full([num_rows, dim], value)).numpy().astype(np.float64)
    low, high = results.min(), results.max()
    assert low <= value <= high and len(np.unique(results)) == 2
    # Within five standard deviations of the mean of so many draws, along both axes.
    for axis, num in ((None, num_rows * dim), (0, num_rows), (1, dim)):
        error = np.abs(results.mean(axis) - np.float64(value)) / (high - low)
        assert np.max(error) < 5 * 0.5 / np.sqrt(num) + 1e-12


def test_what_bfloat16_has_stays_as_it_is():
    values = np.float32([0.0, -0.0, 1.0, -0.15625, 2.0**-126, np.inf, -np.inf])
    results = rounded(np.tile(values, [500, 1]))
    np.testing.assert_array_equal(bits_of(results), np.tile(values.view(np.uint32) >> 16, [500, 1]))
    # One whose upper half is an infinity's.
    hidden = np.array([[0x7F800001, 0xFF800001]], np.uint32).view(np.float32)
    assert np.isnan(rounded(hidden).numpy().astype(np.float32)).all()


@pytest.mark.parametrize("other", [{"seed": 8}, {"step": 4}, {"ids": np.arange(1, 101)}])
def test_other_seeds_steps_and_rows_round_by_other_bits(other):
    rows = np.full([100, 16], 1 / 3, np.float32)
    differ = bits_of(rounded(rows)) != bits_of(rounded(rows, **other))
    # Independent bits that are up with probability p differ with 2 p (1 - p), here 4/9.
    assert 0.38 < np.mean(differ) < 0.51


def bfloat16_state(rule, name="table", wake_steps=None):
    state = tables.new_state(rule, np.ones([40, 5]), name, wake_steps)
    object.__setattr__(state, "table", tf.Variable(tf.cast(state.table, tf.bfloat16)))
    return state


@pytest.mark.parametrize("name", ["sgd", "adagrad"])
def test_native_and_fallback_round_alike_to_the_bit(name):
    rule, results = RULE_CASES[name].rule, []
    for native in (True, False):
        state = bfloat16_state(rule)
        with tables.native_or_fallback_ops(native):
            for step in range(1, 6):
                random = np.random.default_rng(step)
                ids = random.permutation(40)[:20]
                grads = random.normal(size=[20, 5]).astype(np.float32)
                apply_rows(rule, [state], [tables.slices(ids, grads)], tables.settings(step, 0.1))
        results.append([bits_of(state.table), *(slot.numpy() for slot in state.slots)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (results[0][0] != 0x3F80).any()


def test_native_steps_are_rounded_as_documented():
    state = bfloat16_state(RULE_CASES["sgd"].rule, name="user")
    grads = np.random.default_rng(0).normal(size=[2, 5]).astype(np.float32)
    batch = tables.slices(np.array([39, 4]), grads)
    apply_rows(RULE_CASES["sgd"].rule, [state], [batch], tables.settings(9, 0.5))
    exact = np.float32(1) - grads * np.float32(0.5)
    seed = zlib.crc32(b"user")
    for row, values in zip((39, 4), exact):
        expected = [rounded_by_hand(value, seed, 9, row, d) for d, value in enumerate(values)]
        np.testing.assert_array_equal(bits_of(state.table)[row], expected)


def test_small_updates_are_not_lost(native_or_fallback):
    """Each is a sixteenth of what bfloat16 can tell from 1: rounded to nearest, nothing moved."""
    rule, step = RULE_CASES["sgd"].rule, 2.0**-11
    state = bfloat16_state(rule)
    batch = tables.slices(np.arange(40), np.full([40, 5], -step, np.float32))
    for number in range(1, 65):
        apply_rows(rule, [state], [batch], tables.settings(number))
    moved = state.table.numpy().astype(np.float64).mean() - 1
    # 200 elements, 64 steps, each of which rounds with a deviation below half of 2^-7.
    assert abs(moved - 64 * step) < 5 * np.sqrt(64 / 200) * 2.0**-8


def test_a_layer_trains_a_bfloat16_table_with_float32_slots(tmp_path):
    def compiled():
        layer = SlipstreamEmbedding(50, 4, dtype="bfloat16", name="user")
        inputs = keras.Input((2,), dtype="int64")
        outputs = keras.layers.Dense(1)(keras.layers.Flatten()(layer(inputs)))
        model = keras.Model(inputs, outputs)
        model.compile(SlipstreamOptimizer(keras.optimizers.Adagrad(0.1)), loss="mse")
        return model

    ids = np.random.default_rng(0).integers(0, 50, [256, 2])
    targets = (ids.sum(axis=1) % 2).astype(np.float32)
    model = compiled()
    losses = model.fit(ids, targets, batch_size=32, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    (state,) = model.optimizer.tables.values()
    assert state.table.dtype == tf.bfloat16
    assert [slot.dtype for slot in state.slots] == [tf.float32]

    # tf_keras cannot write bfloat16 to HDF5.
    path = str(tmp_path / ("model.weights.h5" if IS_KERAS_3 else "weights"))
    model.save_weights(path)
    again = compiled()
    again.load_weights(path)
    np.testing.assert_array_equal(
        np.asarray(again.get_layer("user").get_weights()[0], np.float32),
        np.asarray(model.get_layer("user").get_weights()[0], np.float32),
    )
