"""Bags are summed by an op of ours in training, and by TensorFlow's in what is exported."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import tf_slipstream as slipstream
from tf_slipstream import _compat
from tf_slipstream.combiner import COMBINERS
from tf_slipstream.export.stock_ops import check_stock_ops
from tf_slipstream.ops import _library
from tf_slipstream.ops.sum_bags import sum_bags

keras = _compat.keras

pytestmark = pytest.mark.skipif(
    _library.native_ops() is None, reason="without native ops TensorFlow's own sum bags"
)

OP = "Slipstream>SumBags"


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 7), max_size=40),
    dim=st.sampled_from([1, 3, 16, 17, 32, 64, 128]),
    dtype=st.sampled_from([np.int32, np.int64]),
    seed=st.integers(0, 2**31),
)
def test_sums_and_gradients_are_those_of_numpy(sizes, dim, dtype, seed):
    rng = np.random.default_rng(seed)
    table = tf.Variable(rng.normal(size=[9, dim]).astype("float32"))
    splits = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    ids = rng.integers(0, 9, splits[-1]).astype(dtype)
    upstream = rng.normal(size=[len(sizes), dim]).astype("float32")
    with tf.GradientTape() as tape:
        sums = sum_bags(table, ids, splits)
    grad = tape.gradient(sums, table, output_gradients=tf.constant(upstream))
    rows = table.numpy().astype(np.float64)
    expected = [rows[ids[begin:end]].sum(axis=0) for begin, end in zip(splits, splits[1:])]
    # Of at most 7 rows below 6, each sum rounded.
    np.testing.assert_allclose(sums, np.reshape(expected, sums.shape), atol=7 * 42 * 6e-8)
    np.testing.assert_array_equal(grad.indices, ids)
    np.testing.assert_array_equal(grad.values, upstream.repeat(sizes, axis=0))
    np.testing.assert_array_equal(grad.dense_shape, [9, dim])


def test_sums_of_a_large_call_have_the_bits_of_those_of_small_ones():
    """Bags are whole in a task: a large call has several, which threads share, a small one one."""
    rng = np.random.default_rng(0)
    table = tf.Variable(rng.normal(size=[1000, 32]).astype("float32"))
    ids = rng.integers(0, 1000, [3000, 20])
    splits = np.arange(0, ids.size + 1, 20)
    sums = sum_bags(table, ids, splits).numpy()
    for begin in range(0, 3000, 500):
        part = sum_bags(table, ids[begin : begin + 500], splits[:501])
        np.testing.assert_array_equal(part, sums[begin : begin + 500])


@pytest.mark.parametrize("bad", [-1, 9, 2**40])
def test_the_first_bad_id_is_named(bad):
    table, ids = tf.Variable(tf.zeros([9, 4])), np.zeros([5000, 2], np.int64)
    ids[3, 1] = ids[4000, 0] = bad
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"\[3,1\] = {bad} .*\[0, 9\)"):
        sum_bags(table, ids, np.arange(0, 10_001, 2))


@pytest.mark.parametrize(
    "splits", [[], [0], [1, 4], [0, 3], [0, 5], [0, 3, 2, 4], [-1, 4], [0, 2**40, 4], [[0, 4]]]
)
def test_splits_that_make_no_sense_are_refused(splits):
    table = tf.Variable(tf.zeros([9, 4]))
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match="splits|rank"):
        sum_bags(table, [0, 1, 2, 3], np.array(splits, np.int64))


def bags_of(kind):
    """Returns ids of a field in the form of that name."""
    if kind == "dense":
        return tf.constant([[3, 0, 5], [7, 7, 2], [0, 0, 0]])
    ragged = tf.ragged.constant([[3, 0, 5, 1], [], [0]])
    if kind == "sparse":
        return ragged.to_sparse()
    if kind == "nested":
        return tf.ragged.constant([[[3, 0], []], [[5, 5, 5]]])
    return ragged


def flat(outputs):
    return outputs.flat_values if isinstance(outputs, tf.RaggedTensor) else outputs


def ops_of(function):
    graph = tf.function(function).get_concrete_function().graph
    return {op.type for op in graph.get_operations()}


def table_of(layer):
    (table,) = layer.trainable_variables
    return _compat.tf_variable(table)


def outputs_and_gradient(layer, ids, training):
    @tf.function
    def run():
        with tf.GradientTape() as tape:
            outputs = [flat(one) for one in tf.nest.flatten(layer(ids, training=training))]
            loss = tf.add_n([tf.reduce_sum(tf.sin(one)) for one in outputs])
        grad = tape.gradient(loss, table_of(layer))
        return outputs, tf.math.unsorted_segment_sum(grad.values, grad.indices, layer.num_rows)

    ops = [op.type for op in run.get_concrete_function().graph.get_operations()]
    return *run(), OP in ops


@pytest.mark.parametrize("mask_zero", [False, True])
@pytest.mark.parametrize("combiner", COMBINERS)
@pytest.mark.parametrize("kind", ["dense", "ragged", "nested", "sparse"])
def test_a_layer_in_training_returns_what_it_returns_elsewhere(kind, combiner, mask_zero):
    layer = slipstream.SlipstreamEmbedding(10, 8, combiner=combiner, mask_zero=mask_zero)
    layer.build()
    outputs, grad, has_op = outputs_and_gradient(layer, bags_of(kind), True)
    expected, expected_grad, stock_has_op = outputs_and_gradient(layer, bags_of(kind), False)
    assert has_op == (kind != "sparse") and not stock_has_op
    for one, other in zip(outputs, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mask_zero", [False, True])
@pytest.mark.parametrize("combiner", COMBINERS)
@pytest.mark.parametrize("kinds", ["array", "dict", "dict with sparse"])
def test_a_collection_in_training_returns_what_it_returns_elsewhere(kinds, combiner, mask_zero):
    layer = slipstream.SlipstreamEmbeddingCollection(
        {"a": 10, "b": 8, "c": 9}, 8, combiner=combiner, mask_zero=mask_zero
    )
    layer.build()
    if kinds == "array":
        ids = tf.constant(np.random.default_rng(0).integers(0, 8, [4, 3, 5]))
    else:
        last = "sparse" if "sparse" in kinds else "nested"
        ids = {"b": bags_of("dense"), "a": bags_of("ragged"), "c": bags_of(last)}
    outputs, grad, has_op = outputs_and_gradient(layer, ids, True)
    expected, expected_grad, _ = outputs_and_gradient(layer, ids, None)
    assert has_op == ("sparse" not in kinds)
    for one, other in zip(outputs, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-6, atol=1e-7)


def test_a_bad_id_in_training_names_the_table():
    layer = slipstream.SlipstreamEmbedding(10, 4, combiner="sum", name="tags")
    layer.build()
    message = r"(?s)tags.*\[0,1\] = 10 is not in \[0, 10\)|\[0,1\] = 10 is not in \[0, 10\).*tags"
    for call in (layer, tf.function(lambda ids, training: layer(ids, training=training))):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            call(tf.constant([[1, 10]]), training=True)


def test_tables_that_the_op_does_not_know_are_summed_by_tensorflow():
    half = slipstream.SlipstreamEmbedding(10, 4, combiner="sum", dtype="bfloat16")
    weighted = slipstream.SlipstreamEmbedding(10, 4, combiner="sum")
    ids, strategy = bags_of("dense"), tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        mirrored = slipstream.SlipstreamEmbedding(10, 4, combiner="sum")
        mirrored.build()
    half.build()
    weights = tf.ones([3, 3])
    assert OP in ops_of(lambda: weighted(ids, training=True))
    assert OP not in ops_of(lambda: weighted(ids, weights=weights, training=True))
    assert OP not in ops_of(lambda: half(ids, training=True))
    assert OP not in ops_of(lambda: strategy.run(lambda: mirrored(ids, training=True)))
    with _library.fallback():
        assert OP not in ops_of(lambda: weighted(ids, training=True))


def click_model():
    ids = keras.Input([4], dtype="int64")
    tags = slipstream.SlipstreamEmbedding(20, 4, combiner="mean", mask_zero=True)(ids)
    model = keras.Model(ids, keras.layers.Dense(1, activation="sigmoid")(tags))
    optimizer = slipstream.SlipstreamOptimizer(keras.optimizers.Adagrad(0.1))
    model.compile(optimizer, "binary_crossentropy")
    return model


def test_fit_sums_bags_by_the_op_and_an_exported_model_by_tensorflows(tmp_path):
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(0, 20, [64, 4]), rng.integers(0, 2, [64, 1]).astype("float32")
    model = click_model()
    model.fit(ids, labels, batch_size=16, verbose=0)
    batch = next(iter(tf.data.Dataset.from_tensor_slices((ids, labels)).batch(16).repeat()))
    step = tf.function(model.train_step).get_concrete_function(batch)
    assert OP in [op.type for op in step.graph.get_operations()]
    path = str(tmp_path / "model")
    model.export(path)
    check_stock_ops(path)
    loaded = tf.saved_model.load(path)
    served = loaded.serve(tf.constant(ids))
    np.testing.assert_allclose(served, model.predict(ids, verbose=0), rtol=1e-6)
    if not _compat.IS_KERAS_3:
        model.save(str(tmp_path / "saved"), save_format="tf")  # traces calls of training too
        check_stock_ops(str(tmp_path / "saved"))
