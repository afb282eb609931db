"""Gradients that lookups share are found before they are copied for each."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import tf_slipstream as slipstream
from tf_slipstream import _compat
from tf_slipstream.combiner import COMBINERS, combine_bags
from tf_slipstream.ops.bags import as_bags

keras = _compat.keras


def found_in(function, *specs):
    """Returns a function of arrays: `values`, and `grads` and `bags` of it, or None twice."""

    @tf.function(input_signature=specs)
    def run(*args):
        values = function(*args)
        found = as_bags(values)
        return (values, *found) if found else (values,)

    return run


def gradient_of_sum(sum_bags):
    """Returns a function to the gradients of lookups of a table whose sums `sum_bags` makes."""

    def values(ids, upstream):
        table = tf.zeros([10, upstream.shape[-1]])
        with tf.GradientTape() as tape:
            tape.watch(table)
            loss = tf.reduce_sum(sum_bags(tf.gather(table, ids)) * upstream)
        return tape.gradient(loss, table).values

    return values


@hypothesis_settings(max_examples=25)
@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    bag=st.integers(1, 4),
    dim=st.integers(1, 3),
    is_known=st.booleans(),
)
def test_bags_of_one_size(shape, bag, dim, is_known):
    random = np.random.default_rng(0)
    upstream = random.random([*shape, dim]).astype(np.float32)
    known = shape if is_known else [None] * len(shape)
    specs = tf.TensorSpec([*known, bag], tf.int64), tf.TensorSpec([*known, dim])
    run = found_in(gradient_of_sum(lambda rows: combine_bags(rows, None, "sum")), *specs)
    values, grads, bags = run(random.integers(0, 10, [*shape, bag]), upstream)
    np.testing.assert_array_equal(grads, upstream.reshape(-1, dim))
    np.testing.assert_array_equal(bags, np.arange(np.prod(shape)).repeat(bag))
    np.testing.assert_array_equal(values, grads.numpy()[bags])


@hypothesis_settings(max_examples=25)
@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=5), dim=st.integers(1, 3))
def test_bags_of_different_sizes(sizes, dim):
    random = np.random.default_rng(0)
    upstream = random.random([len(sizes), dim]).astype(np.float32)
    bag_of = np.arange(len(sizes)).repeat(sizes)

    def sum_bags(rows):
        return tf.math.segment_sum(rows, tf.constant(bag_of, tf.int32))

    num_known = bag_of.max(initial=-1) + 1  # bags behind the last lookup
    specs = tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, dim])
    run = found_in(gradient_of_sum(sum_bags), *specs)
    values, grads, bags = run(random.integers(0, 10, len(bag_of)), upstream[:num_known])
    np.testing.assert_array_equal(bags, bag_of)
    np.testing.assert_array_equal(values, upstream[bag_of])
    np.testing.assert_array_equal(values, grads.numpy()[bags])


def test_lookups_of_several_kinds_one_after_another():
    upstream = np.random.default_rng(0).random([3, 2]).astype(np.float32)

    def values(x):
        copies = tf.broadcast_to(x[:, tf.newaxis], [3, 4, 2])
        # In the shapes that the gradient of `tf.split` has.
        return tf.concat([tf.reshape(copies, [-1, 2]), x * 2.0, tf.gather(x, [2, 2])], axis=0)

    values, grads, bags = found_in(values, tf.TensorSpec([None, 2]))(upstream)
    assert len(grads) == 9
    expected = np.concatenate([upstream.repeat(4, axis=0), upstream * 2, upstream[[2, 2]]])
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(grads.numpy()[bags], expected)


def test_what_is_no_copy_of_rows_is_left_alone():
    rows, flat = tf.TensorSpec([4, 3]), tf.TensorSpec([3])
    ids = tf.TensorSpec([2], tf.int64)
    for function, *specs in [
        (lambda x: x * 2.0, rows),
        (lambda x: tf.gather(x, [0, 1, 1], axis=1), rows),
        (lambda x: tf.gather(x, [[0, 1]] * 4, batch_dims=1), rows),
        (lambda x, ids: tf.reshape(tf.gather(x, ids), [2, 1]), tf.TensorSpec([2]), ids),
        (lambda x: tf.broadcast_to(tf.reshape(x, [3, 1]), [3, 4]), flat),
        (lambda x: tf.tile(x, [2, 2]), rows),
        (lambda x: tf.concat([tf.gather(x, [0, 0]), x[:2]], axis=1), rows),
        (lambda x: tf.reshape(tf.gather(tf.reshape(x, [6, 2]), [0, 3, 1]), [2, 3]), rows),
    ]:
        (values,) = found_in(function, *specs)(*(np.ones(s.shape, s.dtype.name) for s in specs))
        assert values.shape.rank == 2
    assert as_bags(tf.ones([3, 2])) is None


class Bags:
    """A layer with a combiner, and a step of its training.

    Args:
        combiner: The layer's.
        training: As Keras gives it to the layer.
        **options: Of the layer.
    """

    def __init__(self, combiner, training, **options):
        self._training = training
        self.layer = slipstream.SlipstreamEmbedding(50, 4, "ones", combiner=combiner, **options)
        self.layer.build()
        self._optimizer = slipstream.SlipstreamOptimizer(keras.optimizers.Adagrad(0.5))
        self._optimizer.build(self.layer.trainable_variables)

    def step(self, ids):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self.layer(ids, training=self._training) * tf.range(4.0))
        (table,) = self.layer.trainable_variables
        grad = tape.gradient(loss, _compat.tf_variable(table))
        self._optimizer.apply_gradients([(grad, table)])


@pytest.mark.parametrize("training", [None, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("combiner", COMBINERS)
def test_a_step_copies_no_gradient_and_does_what_an_eager_one_does(combiner, ragged, training):
    ids = tf.constant(np.random.default_rng(0).integers(0, 50, [6, 5]))
    if ragged:
        ids = tf.RaggedTensor.from_tensor(ids, lengths=[5, 0, 3, 1, 2, 0])
    eager, traced = Bags(combiner, training), Bags(combiner, training)
    step = tf.function(traced.step).get_concrete_function(ids)
    for _ in range(3):
        eager.step(ids)
        step(ids)
    np.testing.assert_array_equal(traced.layer.get_weights()[0], eager.layer.get_weights()[0])
    (apply,) = [op for op in step.graph.get_operations() if op.type == "Slipstream>ApplyRows"]
    (grads,) = [x for x in apply.inputs if x.dtype == tf.float32 and x.shape.rank == 2]
    assert grads.op.type not in ("GatherV2", "BroadcastTo")
    assert apply.get_attr("num_bagged") == 1
