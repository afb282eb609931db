"""Lookups in tables of more rows than 32 bits count, as far as a small one shows."""

import numpy as np
import pytest
import tensorflow as tf

import tf_slipstream as slipstream
from tf_slipstream import table_layer
from tf_slipstream.ops.gather_rows import gather_from_many


@pytest.mark.parametrize("in_graph", [False, True])
def test_the_gradient_of_a_large_table_is_that_of_any(in_graph):
    table = tf.Variable(np.arange(12, dtype="float32").reshape(4, 3))
    ids = tf.constant([[1, 3], [3, 0]], tf.int64)
    upstream = tf.reshape(tf.range(12.0), [2, 2, 3])

    def gradient(gather):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(gather(table, ids, name="table") * upstream)
        grad = tape.gradient(loss, table)
        return loss, grad.values, grad.indices, grad.dense_shape

    if in_graph:
        gradient = tf.function(gradient)
    for one, other in zip(gradient(gather_from_many), gradient(tf.gather)):
        np.testing.assert_array_equal(one, other)


def test_a_layer_looks_up_alike_in_a_large_table(monkeypatch):
    layer = slipstream.SlipstreamEmbedding(5, 2)
    ids = tf.constant([[4, 0]], tf.int64)
    expected = layer(ids)
    called = []

    def gather(*args, **kwargs):
        called.append(args)
        return gather_from_many(*args, **kwargs)

    monkeypatch.setattr(table_layer, "gather_from_many", gather)
    monkeypatch.setattr(table_layer, "MOST_INT32_ROWS", 4)
    np.testing.assert_array_equal(layer(ids), expected)
    assert called
