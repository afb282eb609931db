"""Private names of tf_keras."""

import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.replicas import strategy_of
from tf_slipstream import _compat
from tf_slipstream._compat import IS_KERAS_3

if IS_KERAS_3:
    pytest.skip("these are of tf_keras", allow_module_level=True)

import tf_keras as keras


def variable(*shape, name=None):
    return tf.Variable(tf.ones(shape), name=name)


def test_trainable_weights_are_there_before_a_model_is_built():
    """`_trainable_weights` and `_non_trainable_weights` of the layers of a model without any."""
    shared = keras.layers.BatchNormalization()
    shared.build([None, 3])

    model = keras.Sequential([shared, keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="not yet"):
        model.variables  # noqa: B018
    assert shared in model.submodules
    assert len(shared._trainable_weights) == len(shared._non_trainable_weights) == 2


def test_build_learning_rate_makes_what_learning_rate_reads():
    """`_build_learning_rate`, `_learning_rate` and `_serialize_hyperparameter`."""
    optimizer = keras.optimizers.SGD(0.5)
    optimizer._learning_rate = optimizer._build_learning_rate(0.25)
    assert float(optimizer.learning_rate) == 0.25
    optimizer.learning_rate = 0.125
    assert float(optimizer._learning_rate) == 0.125
    assert optimizer._serialize_hyperparameter(optimizer._learning_rate) == 0.125
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.5)
    optimizer = keras.optimizers.SGD(schedule)
    assert optimizer._learning_rate is schedule
    serialized = optimizer._serialize_hyperparameter(schedule)
    assert serialized["config"] == schedule.get_config()


def test_built_keeps_an_optimizer_from_building_again():
    """`_built`: a subclass sets it at the end of `build`."""
    optimizer, weight = keras.optimizers.Adam(), variable(2)
    assert not getattr(optimizer, "_built", False)
    optimizer.build([weight])
    assert optimizer._built
    num_variables = len(optimizer.variables)
    optimizer.build([weight])
    assert len(optimizer.variables) == num_variables


def test_index_dict_has_the_place_of_each_variable():
    """`_index_dict` and `_var_key`."""
    weights = [variable(2, name="a"), variable(3, name="b")]
    optimizer = keras.optimizers.Adam()
    optimizer.build(weights)
    assert [optimizer._index_dict[optimizer._var_key(v)] for v in weights] == [0, 1]


def test_iterations_is_among_the_variables_and_called_iteration():
    """`_iterations`."""
    optimizer = keras.optimizers.SGD()
    optimizer.build([variable(2)])
    assert optimizer._iterations is optimizer.iterations
    assert any(v is optimizer._iterations for v in optimizer.variables)
    assert optimizer._iterations.name == "iteration:0"


def test_use_weight_decay_knows_what_is_excluded():
    """`_use_weight_decay`."""
    weights = [variable(2, name="a"), variable(3, name="b")]
    optimizer = keras.optimizers.AdamW(0.5)
    optimizer.exclude_from_weight_decay(var_list=weights[:1])
    assert [optimizer._use_weight_decay(v) for v in weights] == [False, True]


def test_distribution_strategy_is_that_of_the_constructor():
    """`_distribution_strategy`."""
    strategy = strategy_of(2)
    with strategy.scope():
        assert keras.optimizers.SGD()._distribution_strategy is strategy
    assert keras.optimizers.SGD()._distribution_strategy is not strategy


def test_is_legacy_optimizer_in_a_config_chooses_the_class():
    """`is_legacy_optimizer`: without it a config is one of `keras.optimizers.legacy`."""
    config = {"class_name": "SGD", "config": {"learning_rate": 0.5}}
    assert isinstance(keras.optimizers.get(config), keras.optimizers.legacy.SGD)
    config["config"]["is_legacy_optimizer"] = False
    assert isinstance(keras.optimizers.get(config), keras.optimizers.SGD)


def test_a_table_is_the_embeddings_attribute():
    """`embeddings` is a plain attribute, which `add_weight` of the caller may set."""
    layer = keras.layers.Embedding(3, 2)
    layer.build(None)
    layer.embeddings = layer.add_weight(
        shape=(3, 2), initializer="ones", experimental_autocast=False
    )
    np.testing.assert_array_equal(layer(np.array([1])), np.ones([1, 2]))


@pytest.mark.parametrize("make", [lambda: keras.layers.Embedding(3, 2), keras.optimizers.SGD])
def test_trackable_children_is_asked_by_a_checkpoint_and_told_its_kind(make, tmp_path):
    """`_trackable_children(save_type)`."""
    made, asked = make(), []
    made.build([variable(2)] if isinstance(made, keras.optimizers.Optimizer) else None)
    children = made._trackable_children
    object.__setattr__(
        made,
        "_trackable_children",
        lambda save_type="checkpoint", **kwargs: (
            asked.append(save_type) or children(save_type, **kwargs)
        ),
    )
    tf.train.Checkpoint(made=made).write(str(tmp_path / "checkpoint"))
    assert set(asked) == {"checkpoint"}


def test_compiled_metrics_may_take_weights_that_they_were_not_given_for():
    """`_metrics` and `_weighted_metrics` of `compiled_metrics`, and `build` of it."""
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


def test_a_loss_may_be_the_mean_over_replicas_once_compile_has_seen_it():
    """`_allow_sum_over_batch_size`, which `compile` sets."""
    loss, other = keras.losses.BinaryCrossentropy(), keras.losses.BinaryCrossentropy()
    assert not loss._allow_sum_over_batch_size
    inputs = keras.Input([1])
    model = keras.Model(inputs, inputs)
    model.compile("sgd", loss=loss)
    model.evaluate(np.ones([2, 1]), np.ones([2, 1]), verbose=0)
    assert loss._allow_sum_over_batch_size
    _compat.allow_mean_over_replicas(other, loss)
    assert other._allow_sum_over_batch_size


def test_logits_are_found_behind_a_sigmoid():
    """`_keras_logits`, by which a loss finds them too."""
    logits = tf.constant([0.5])
    probabilities = keras.activations.sigmoid(logits)
    assert probabilities._keras_logits is _compat.logits_behind(probabilities)
    assert _compat.logits_behind(1 * probabilities) is None


def test_a_model_knows_that_its_calls_are_traced_to_be_saved(tmp_path):
    """`call_context().saving` and `tracing_enabled`: one of them is set then, and never else."""
    seen = []

    class Seeing(keras.layers.Layer):
        def call(self, inputs, training=None):
            seen.append((bool(training), _compat.is_training_step(training)))
            return inputs

    model = keras.Sequential([Seeing()])
    model(tf.ones([2, 1]), training=True)
    assert (True, True) in seen and (True, False) not in seen
    seen.clear()
    tf.saved_model.save(model, str(tmp_path))
    assert (True, False) in seen and (True, True) not in seen


def test_a_store_of_weights_is_an_h5py_group(tmp_path):
    """`_h5_entry_group` is Keras 3's; here the store itself is one."""

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
