"""The pure functions, against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from tests.selection import reference
from tf_slipstream._compat import keras
from tf_slipstream.selection import probabilities

LOG_ODDS = np.float32([-9, -3, -1, 0, 0.5, 2, 30, -30])
LABELS = np.float32([0, 1, 0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize("c", [0.01, 0.7, 1.0, 5.0, 1e4])
def test_probabilities_and_offsets_are_those_of_the_paper(c):
    arguments = ("contribution", tf.constant(LOG_ODDS), tf.constant(LABELS), np.log(np.float32(c)))
    kept = probabilities.keep_probabilities(*arguments).numpy()
    offsets = probabilities.offsets(*arguments).numpy()
    expected = [reference.keep_probability(y, z, c) for y, z in zip(LABELS, LOG_ODDS)]
    np.testing.assert_allclose(kept, expected, rtol=1e-5)
    expected = [reference.offset(z, c) for z in LOG_ODDS]
    np.testing.assert_allclose(offsets, expected, rtol=1e-4, atol=1e-5)


def test_a_pilot_that_is_wrong_beyond_float32_leaves_nothing_without_limits():
    log_odds = tf.constant([-200.0, 200.0] * 2)
    arguments = ("contribution", log_odds, tf.constant([0.0, 0.0, 1.0, 1.0]), 0.0)
    kept = probabilities.keep_probabilities(*arguments).numpy()
    np.testing.assert_allclose(kept, np.float32([1e-3, 1, 1, 1e-3]))
    np.testing.assert_allclose(np.abs(probabilities.offsets(*arguments)), np.log(1e3), rtol=1e-5)


def test_negatives_are_left_out_before_any_positive_is():
    log_odds, labels = tf.zeros(2), tf.constant([0.0, 1.0])

    def kept(c):
        log_c = tf.math.log(c)
        return probabilities.keep_probabilities("negatives", log_odds, labels, log_c).numpy()

    np.testing.assert_allclose(kept(0.2), [0.2, 1.0], rtol=1e-6)
    np.testing.assert_allclose(kept(0.02), [0.02, 0.4], rtol=1e-6)


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("num", [1, 2, 1000])
def test_c_keeps_the_share_wanted(keep, num):
    distances = np.random.default_rng(0).beta(0.3, 3, size=num).astype(np.float32)
    log_c = float(probabilities.log_c_for(tf.constant(distances), keep))
    expected = np.log(reference.c_for(distances, keep))
    np.testing.assert_allclose(log_c, min(expected, 15), rtol=1e-3, atol=1e-3)


def test_c_is_finite_where_the_pilot_is_sure_of_everything():
    for distances in (np.zeros(8), np.ones(8), np.float32([1] + 7 * [0])):
        log_c = float(probabilities.log_c_for(tf.constant(distances, tf.float32), 0.5))
        assert np.isfinite(log_c)


@pytest.mark.parametrize("shape", [[4], [4, 1]])
@pytest.mark.parametrize("is_graph", [False, True])
@pytest.mark.parametrize("kind", ["logits", "sigmoid", "probabilities"])
def test_adding_log_odds_adds_them_and_zero_changes_no_bit(shape, is_graph, kind):
    logits = tf.reshape(tf.constant([-3.0, -0.2, 0.4, 2.0]), shape)
    log_odds = tf.constant([0.0, 1.0, -2.0, 0.0])

    def loss_and_grad(log_odds):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            outputs = logits if kind == "logits" else tf.sigmoid(logits)
            outputs = 1.0 * outputs if kind == "probabilities" else outputs
            if log_odds is not None:
                outputs = probabilities.add_log_odds(outputs, log_odds, kind == "logits")
            loss = keras.losses.BinaryCrossentropy(from_logits=kind == "logits")
            value = loss(tf.reshape(tf.constant([1.0, 0, 1, 0]), shape), outputs)
        return outputs, value, tape.gradient(value, logits)

    function = tf.function(loss_and_grad) if is_graph else loss_and_grad
    for one, other in zip(function(tf.zeros(4)), function(None)):
        np.testing.assert_array_equal(one, other)
    outputs = function(log_odds)[0]
    expected = logits + tf.reshape(log_odds, shape)
    expected = expected if kind == "logits" else tf.sigmoid(expected)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)
