"""Private names of Keras 3."""

import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.replicas import strategy_of
from tf_slipstream import _compat

if not _compat.IS_KERAS_3:
    pytest.skip("these are of Keras 3", allow_module_level=True)

import keras


def optimizer_of(*variables):
    optimizer = keras.optimizers.Adam(0.5)
    optimizer.build(list(variables))
    return optimizer


def variable(*shape):
    return keras.Variable(np.ones(shape, "float32"))


def test_the_embeddings_attribute_of_an_embedding_is_its_table():
    """`_embeddings`: the layer's own methods read it."""

    class Embedding(keras.layers.Embedding):
        def build(self, input_shape=None):
            self._embeddings = self.add_weight(shape=(3, 2), initializer="ones")

    layer = Embedding(3, 2)
    layer.build()
    assert layer.embeddings is layer._embeddings
    np.testing.assert_array_equal(layer(np.array([1])), np.ones([1, 2]))


def test_in_stateless_scope_is_true_while_an_unbuilt_model_is_traced():
    """`keras.src.backend.common.stateless_scope.in_stateless_scope`."""
    from keras.src.backend.common.stateless_scope import in_stateless_scope

    seen = []

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1, kernel_initializer=self.initialize)

        def initialize(self, shape, dtype=None):
            seen.append((in_stateless_scope(), tf.executing_eagerly()))
            return tf.ones(shape, dtype)

        def call(self, inputs):
            return self.dense(inputs)

    model = Model()
    model.compile("sgd", loss="mse")
    model.fit(np.ones([2, 3]), np.ones([2, 1]), verbose=0)
    assert set(seen) == {(True, False), (False, True)}
    assert not in_stateless_scope()


def test_all_reduce_sum_gradients_is_what_sums_over_replicas():
    """`_all_reduce_sum_gradients`: it is replaced by `list`, so it gets and gives pairs."""
    weight = variable(2)
    optimizer = optimizer_of(weight)
    given = []

    def note(pairs):
        given.extend(pairs)
        return given

    optimizer._all_reduce_sum_gradients = note
    gradient = tf.constant([1.0, 2.0])
    optimizer.apply([gradient], [weight])
    ((noted, its_variable),) = given
    np.testing.assert_array_equal(noted, gradient)
    assert its_variable is weight.value
    assert optimizer.iterations == 1


def test_tf_trackable_of_an_archive_has_the_variables_it_writes():
    """`_tf_trackable.variables` of an `ExportArchive`."""
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
    archive = keras.export.ExportArchive()
    archive.track(model)
    found = {id(_compat.tf_variable(v)) for v in archive._tf_trackable.variables}
    assert found == {id(v.value) for v in model.variables}


def test_trainable_variables_and_their_indices_are_those_it_was_built_for():
    """`_trainable_variables`, `_trainable_variables_indices` and `_var_key`."""
    weights = [variable(2), variable(3)]
    optimizer = optimizer_of(*weights)
    assert [v is w for v, w in zip(optimizer._trainable_variables, weights)] == [True, True]
    for number, weight in enumerate(weights):
        assert optimizer._trainable_variables_indices[optimizer._var_key(weight)] == number


def test_learning_rate_is_what_the_constructor_was_given():
    """`_learning_rate`: a schedule as it is, a number as a variable."""
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.5)
    assert keras.optimizers.SGD(schedule)._learning_rate is schedule
    assert float(keras.optimizers.SGD(0.25)._learning_rate) == 0.25


def test_use_weight_decay_knows_what_is_excluded():
    """`_use_weight_decay`."""
    weights = [variable(2), variable(3)]
    optimizer = keras.optimizers.AdamW(0.5)
    optimizer.exclude_from_weight_decay(var_list=weights[:1])
    optimizer.build(weights)
    assert [optimizer._use_weight_decay(v) for v in weights] == [False, True]


def test_distribution_strategy_is_that_of_the_constructor():
    """`_distribution_strategy`."""
    strategy = strategy_of(2)
    with strategy.scope():
        assert keras.optimizers.SGD()._distribution_strategy is strategy
    assert keras.optimizers.SGD()._distribution_strategy is not strategy


@pytest.mark.parametrize("make", [lambda: keras.layers.Embedding(3, 2), keras.optimizers.SGD])
def test_trackable_children_is_asked_by_a_checkpoint_and_told_its_kind(make, tmp_path):
    """`_trackable_children(save_type)`."""
    made, asked = make(), []
    made.build(*([[variable(2)]] if isinstance(made, keras.optimizers.Optimizer) else []))
    children = made._trackable_children
    made._trackable_children = lambda save_type="checkpoint", **kwargs: (
        asked.append(save_type) or children(save_type, **kwargs)
    )
    tf.train.Checkpoint(made=made).write(str(tmp_path / "checkpoint"))
    assert set(asked) == {"checkpoint"}


def test_compiled_metrics_may_take_weights_that_they_were_not_given_for():
    """`_compile_metrics`, `_flat_metrics`, `_flat_weighted_metrics`, and `build` of it."""
    inputs = keras.Input([1])
    model = keras.Model(inputs, inputs)
    mean, weighted = keras.metrics.MeanAbsoluteError(), keras.metrics.MeanAbsoluteError("weighted")
    model.compile(loss="mse", metrics=[mean], weighted_metrics=[weighted])
    y, y_pred = tf.zeros([2, 1]), tf.constant([[1.0], [3.0]])
    _compat.update_metrics(model, y, y_pred, tf.constant([1.0, 0.0]), tf.constant([0.0, 1.0]))
    assert float(mean.result()) == 1 and float(weighted.result()) == 3
    for metric in (mean, weighted):
        metric.reset_state()
    model.compute_metrics(None, y, y_pred, tf.constant([0.0, 1.0]))
    assert float(mean.result()) == 2 and float(weighted.result()) == 3


def test_logits_are_found_behind_a_sigmoid():
    """`_keras_logits`, by which a loss finds them too."""
    logits = tf.constant([0.5])
    probabilities = keras.activations.sigmoid(logits)
    assert probabilities._keras_logits is _compat.logits_behind(probabilities)
    assert _compat.logits_behind(1 * probabilities) is None


def test_a_store_of_weights_has_an_h5py_group(tmp_path):
    """`_h5_entry_group` of the store that a layer is given; it was `group` before 3.9."""

    class Layer(keras.layers.Layer):
        def save_own_variables(self, store):
            dataset = _compat.new_dataset(store, "0", (3, 2), np.float32)
            dataset[1:] = 7

        def load_own_variables(self, store):
            self.found = _compat.dataset_of(store, "0")[:]

    model = keras.Sequential([keras.Input((1,)), Layer()])
    model.save_weights(tmp_path / "model.weights.h5")
    model.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(model.layers[0].found, [[0, 0], [7, 7], [7, 7]])
