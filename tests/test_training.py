"""Layer and optimizer together: `model.fit`, custom loops, callbacks, precision, failures."""

import functools
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

from tests.models import (
    NUM_IDS,
    assert_all_equal,
    click_data,
    click_model,
    embedding_of,
    fit,
    ids_input,
    random_table,
    values_of,
)
from tf_slipstream import RowWiseAdagrad, SlipstreamEmbedding, SlipstreamOptimizer
from tf_slipstream._compat import IS_KERAS_3, keras, tf_variable

# Four steps of a few dozen roundings each; two programs that sum a batch of 48 terms in
# different orders differ by an epsilon per term.
TOLERANCE = 64 * 4 * np.finfo("float32").eps

INNER = {
    "sgd": lambda **kwargs: keras.optimizers.SGD(0.5, **kwargs),
    "momentum": lambda **kwargs: keras.optimizers.SGD(0.25, momentum=0.5, **kwargs),
    "adagrad": lambda **kwargs: keras.optimizers.Adagrad(0.25, **kwargs),
    "row_wise_adagrad": lambda **kwargs: RowWiseAdagrad(0.25, **kwargs),
    "adam": lambda **kwargs: keras.optimizers.Adam(0.125, epsilon=0.125, **kwargs),
    "adamw": lambda **kwargs: keras.optimizers.AdamW(0.125, epsilon=0.125, **kwargs),
    "rmsprop": lambda **kwargs: keras.optimizers.RMSprop(0.125, epsilon=0.125, **kwargs),
    "ftrl": lambda **kwargs: keras.optimizers.Ftrl(0.125, **kwargs),
}


def slipstream(name, **kwargs):
    return SlipstreamOptimizer(INNER[name](**kwargs))


class DenseEmbedding(keras.layers.Layer):
    """Multiplies one-hot ids by a table: the gradient is dense, and Keras's update exact."""

    def __init__(self, table, **table_arguments):
        super().__init__()
        self.table = self.add_weight(
            name="table",
            shape=table.shape,
            initializer=lambda shape, dtype=None, **kwargs: tf.constant(table),
            **table_arguments,
        )

    def call(self, ids):
        return tf.one_hot(ids, self.table.shape[0]) @ self.table


def stock_embedding(table, **kwargs):
    layer = keras.layers.Embedding(*table.shape, **kwargs)
    layer.build((None,))
    layer.set_weights([table])
    return layer


def all_weights(model):
    return [np.array(weight) for weight in model.get_weights()]


@functools.cache
def weights_fitted_by_adam():
    model = click_model(embedding_of(random_table()), slipstream("adam"))
    fit(model, click_data())
    return all_weights(model)


def assert_close(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE)


class TestFit:
    @pytest.mark.parametrize("name", ["adagrad", "adam"])
    def test_a_plain_keras_optimizer_trains_the_layer_as_keras_embedding(self, name):
        table, data = random_table(), click_data()
        models = [
            click_model(make(table), INNER[name]()) for make in (embedding_of, stock_embedding)
        ]
        for model in models:
            fit(model, data)
        assert_all_equal(*(all_weights(model) for model in models))

    @pytest.mark.parametrize("name", ["adagrad", "row_wise_adagrad"])
    def test_sparse_steps_without_moments_equal_keras_dense_ones(self, name):
        table, data = random_table(), click_data()
        sparse = click_model(embedding_of(table), slipstream(name))
        dense = click_model(DenseEmbedding(table), INNER[name]())
        for model in (sparse, dense):
            fit(model, data)
        assert_close(all_weights(sparse), all_weights(dense))
        assert not np.allclose(all_weights(sparse)[0], table)

    @pytest.mark.parametrize("name", ["adamw", "ftrl"])
    def test_steps_that_touch_every_row_equal_keras_dense_ones(self, name):
        table = random_table(4, 3)
        data = click_data(num_rows=4)
        assert all(len(np.unique(ids)) == 4 for ids in np.split(data[0], 4))
        sparse = click_model(embedding_of(table), slipstream(name))
        dense = click_model(DenseEmbedding(table), INNER[name]())
        for model in (sparse, dense):
            fit(model, data)
        assert_close(all_weights(sparse), all_weights(dense))

    def test_the_loss_falls(self):
        model = click_model(SlipstreamEmbedding(10, 8), SlipstreamOptimizer(INNER["adagrad"]()))
        losses = fit(model, click_data(), epochs=20).history["loss"]
        assert losses[-1] < 0.5 * losses[0]

    @pytest.mark.parametrize("how", [{"run_eagerly": True}, {"steps_per_execution": 2}], ids=str)
    def test_other_ways_of_running_a_step_train_the_same(self, how):
        model = click_model(embedding_of(random_table()), slipstream("adam"), **how)
        fit(model, click_data())
        assert int(model.optimizer.iterations) == 4
        assert_close(all_weights(model), weights_fitted_by_adam())

    def test_features_that_share_a_layer_train_one_table(self):
        table = random_table()
        ids, labels = click_data()

        def model_of(layer, optimizer):
            inputs = [keras.Input([n], dtype="int64") for n in (1, 2)]
            rows = keras.layers.Concatenate(axis=1)([layer(one) for one in inputs])
            output = keras.layers.Dense(1, kernel_initializer="ones", name="output")
            model = keras.Model(inputs, output(keras.layers.Flatten()(rows)))
            model.compile(optimizer, loss="mse")
            return model

        shared = model_of(embedding_of(table, name="item"), slipstream("adagrad"))
        dense = model_of(DenseEmbedding(table), INNER["adagrad"]())
        for model in (shared, dense):
            fit(model, ([ids[:, :1], ids[:, 1:]], labels))
        assert_close(all_weights(shared), all_weights(dense))
        (stats,) = shared.optimizer.skip_stats().values()
        assert stats.num_lookups == ids.size
        assert stats.num_row_updates == sum(len(np.unique(batch)) for batch in np.split(ids, 4))

    @pytest.mark.parametrize("kind", ["ragged", "sparse"])
    def test_multi_hot_features_train(self, kind):
        ids = tf.ragged.constant([[1, 5, 5], [], [9], [0, 3]], dtype=tf.int64)
        labels = np.array([[1.0], [0.0], [1.0], [0.0]])
        table = random_table()
        inputs = ids_input(kind, None)
        layer = embedding_of(table, combiner="mean", name="tags")
        model = keras.Model(inputs, keras.layers.Dense(1)(layer(inputs)))
        model.compile(slipstream("adam"), loss="mse")
        batches = tf.data.Dataset.from_tensors(
            (ids if kind == "ragged" else ids.to_sparse(), labels)
        )
        losses = model.fit(batches.repeat(), steps_per_epoch=10, epochs=3, verbose=0)
        losses = losses.history["loss"]
        assert losses[-1] < losses[0]
        trained = layer.get_weights()[0]
        touched = [0, 1, 3, 5, 9]
        untouched = [2, 4, 6, 7, 8]
        np.testing.assert_array_equal(trained[untouched], table[untouched])
        assert np.all(np.any(trained[touched] != table[touched], axis=1))
        assert model.optimizer.skip_stats()["tags"].num_lookups == 30 * 6

    def test_a_layer_that_is_not_trainable_stays_as_it_is(self):
        table = random_table()
        model = click_model(embedding_of(table, trainable=False), slipstream("adam"))
        before = all_weights(model)
        fit(model, click_data())
        np.testing.assert_array_equal(model.layers[1].get_weights()[0], table)
        assert not np.array_equal(model.layers[-1].get_weights()[0], before[-2])
        assert model.optimizer.skip_stats() == {}

    def test_statistics_are_named_by_layers(self):
        model = click_model(embedding_of(random_table(), name="user"), slipstream("sgd"))
        fit(model, click_data(), epochs=2)
        stats = model.optimizer.skip_stats()["user"]
        assert (stats.num_lookups, stats.num_rows) == (2 * 64 * NUM_IDS, 10)


class TestRegularizersAndConstraints:
    @pytest.mark.parametrize("name", ["adagrad", "adam"])
    def test_a_regularizers_dense_gradient_trains_as_in_keras(self, name):
        table, data = random_table(20), click_data()  # rows 10 to 19 are never looked up
        regularizer = keras.regularizers.L2(0.125)
        models = [
            click_model(embedding_of(table, embeddings_regularizer=regularizer), slipstream(name)),
            click_model(DenseEmbedding(table, regularizer=regularizer), INNER[name]()),
        ]
        for model in models:
            fit(model, data)
        assert_close(*(all_weights(model) for model in models))
        assert np.all(
            np.linalg.norm(all_weights(models[0])[0][10:], axis=1)
            < np.linalg.norm(table[10:], axis=1)
        )

    def test_a_constraint_of_rows_is_applied_to_the_rows_of_a_step(self):
        table, data = random_table(20), click_data()
        constraint = keras.constraints.NonNeg()
        models = [
            click_model(embedding_of(table, embeddings_constraint=constraint), slipstream("sgd")),
            click_model(DenseEmbedding(table, constraint=constraint), INNER["sgd"]()),
        ]
        for model in models:
            fit(model, data)
        trained, expected = (all_weights(model)[0] for model in models)
        np.testing.assert_allclose(trained[:10], expected[:10], rtol=TOLERANCE, atol=TOLERANCE)
        np.testing.assert_array_equal(trained[10:], table[10:])


class TestLearningRate:
    def train(self, optimizer, layer_of, callbacks):
        model = click_model(layer_of(random_table()), optimizer)
        fit(model, click_data(), epochs=3, callbacks=callbacks())
        return model

    @pytest.mark.parametrize(
        "callbacks",
        [
            lambda: [keras.callbacks.LearningRateScheduler(lambda epoch: 0.5 / (1 + epoch))],
            lambda: [
                keras.callbacks.ReduceLROnPlateau(
                    monitor="loss", patience=0, factor=0.5, mode="max", min_delta=0
                )
            ],
        ],
        ids=["LearningRateScheduler", "ReduceLROnPlateau"],
    )
    def test_callbacks_change_it(self, callbacks):
        sparse = self.train(slipstream("sgd"), embedding_of, callbacks)
        dense = self.train(INNER["sgd"](), DenseEmbedding, callbacks)
        rates = [float(model.optimizer.learning_rate) for model in (sparse, dense)]
        assert rates[0] == rates[1] < 0.5
        assert_close(all_weights(sparse), all_weights(dense))

    def test_a_schedule_changes_it(self):
        def inner():
            return keras.optimizers.SGD(
                keras.optimizers.schedules.ExponentialDecay(0.5, decay_steps=2, decay_rate=0.5)
            )

        sparse = self.train(SlipstreamOptimizer(inner()), embedding_of, list)
        dense = self.train(inner(), DenseEmbedding, list)
        assert_close(all_weights(sparse), all_weights(dense))

    def test_it_can_be_set_between_epochs(self):
        model = click_model(embedding_of(random_table()), slipstream("sgd"))
        fit(model, click_data())
        before = all_weights(model)
        model.optimizer.learning_rate = 0.0
        fit(model, click_data())
        assert_all_equal(all_weights(model), before)


class TestPrecision:
    def test_bfloat16_trains_a_float32_table(self):
        layer = embedding_of(random_table(), dtype="mixed_bfloat16")
        model = click_model(layer, slipstream("adagrad"))
        losses = fit(model, click_data(), epochs=10).history["loss"]
        assert losses[-1] < losses[0]
        assert layer.weights[0].dtype == "float32"
        assert type(model.optimizer) is SlipstreamOptimizer

    def test_float16_fit_scales_the_loss(self):
        keras.utils.set_random_seed(0)  # an overflow would leave a step out
        layer = embedding_of(random_table(), dtype="mixed_float16", name="user")
        ids = keras.Input([NUM_IDS], dtype="int64")
        output = keras.layers.Dense(1, activation="sigmoid", dtype="mixed_float16")
        model = keras.Model(ids, output(keras.layers.Flatten()(layer(ids))))
        optimizer = slipstream("adagrad")
        scaling = keras.mixed_precision.LossScaleOptimizer(optimizer)
        model.compile(scaling, loss="binary_crossentropy")
        losses = fit(model, click_data(), epochs=10).history["loss"]
        assert losses[-1] < losses[0]
        assert layer.weights[0].dtype == "float32"
        assert optimizer.skip_stats()["user"].num_lookups == 10 * 64 * NUM_IDS

    def test_under_a_global_float16_policy_keras_wraps_the_optimizer(self):
        mixed_precision = keras.mixed_precision
        set_policy = getattr(
            mixed_precision, "set_dtype_policy" if IS_KERAS_3 else "set_global_policy"
        )
        set_policy("mixed_float16")
        try:
            optimizer = slipstream("adam")
            model = click_model(embedding_of(random_table(), name="user"), optimizer)
            assert isinstance(model.optimizer, mixed_precision.LossScaleOptimizer)
            assert model.optimizer.inner_optimizer is optimizer
            losses = fit(model, click_data(), epochs=10).history["loss"]
        finally:
            set_policy("float32")
        assert losses[-1] < losses[0]
        assert int(optimizer.iterations) == 40


class TestCustomLoop:
    """Keras's guide to writing a training loop."""

    def train(self, in_function, build_before, optimizer):
        model = click_model(embedding_of(random_table(), name="user"))
        variables = model.trainable_variables
        loss_of = keras.losses.BinaryCrossentropy()
        if build_before:
            optimizer.build(variables)

        def step(ids, labels):
            with tf.GradientTape() as tape:
                loss = loss_of(labels, model(ids, training=True))
            grads = tape.gradient(loss, variables)
            if IS_KERAS_3:
                optimizer.apply(grads, variables)
            else:
                optimizer.apply_gradients(zip(grads, variables))
            return loss

        if in_function:
            step = tf.function(step)
        ids, labels = click_data()
        for start in range(0, 64, 16):
            batch = slice(start, start + 16)
            step(tf.constant(ids[batch]), tf.constant(labels[batch]))
        return all_weights(model)

    @pytest.mark.parametrize("build_before", [False, True])
    @pytest.mark.parametrize("in_function", [False, True])
    def test_it_trains_as_fit_does(self, in_function, build_before):
        optimizer = slipstream("adam")
        weights = self.train(in_function, build_before, optimizer)
        assert_close(weights, weights_fitted_by_adam())
        assert optimizer.skip_stats()["user"].num_lookups == 64 * NUM_IDS

    @pytest.mark.parametrize(
        "name, options",
        [
            ("adam", {"weight_decay": 0.25}),
            ("adagrad", {"global_clipnorm": 0.5}),
            ("rmsprop", {"clipnorm": 0.5}),
            ("ftrl", {"clipvalue": 0.5}),
        ],
        ids=str,
    )
    def test_no_op_of_a_step_makes_anything_of_the_tables_size(
        self, name, options, native_or_fallback
    ):
        layer = embedding_of(random_table(11, 3), embeddings_constraint=keras.constraints.NonNeg())
        table = tf_variable(layer.weights[0])
        optimizer = slipstream(name, **options)
        optimizer.build([layer.weights[0]])

        @tf.function
        def step(ids):
            with tf.GradientTape() as tape:
                tape.watch(table)
                loss = tf.reduce_sum(layer(ids))
            optimizer.apply_gradients([(tape.gradient(loss, table), layer.weights[0])])

        graph = step.get_concrete_function(tf.TensorSpec([None, NUM_IDS], tf.int64)).graph
        table_shapes = [[11, 3], [11, 1], [11]]
        large = [
            op
            for op in graph.get_operations()
            if any(output.shape in table_shapes for output in op.outputs)
        ]
        assert not large
        native_ops = [op for op in graph.get_operations() if op.type == "Slipstream>ApplyRows"]
        assert len(native_ops) == (native_or_fallback == "native")


class TestXla:
    """The layer says that XLA does not suit it, which would read the whole table."""

    @pytest.mark.skipif(not IS_KERAS_3, reason="tf_keras has no jit_compile='auto'")
    def test_auto_leaves_the_model_uncompiled(self):
        model = click_model(embedding_of(random_table()), slipstream("adam"), jit_compile="auto")
        assert model.jit_compile is False

    @pytest.mark.skipif(not IS_KERAS_3, reason="tf_keras does not ask layers: see the next test")
    def test_jit_compile_is_declined_with_a_warning(self):
        with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
            model = click_model(embedding_of(random_table()), slipstream("adam"), jit_compile=True)
        fit(model, click_data())
        assert int(model.optimizer.iterations) == 4

    @pytest.mark.skipif(IS_KERAS_3, reason="Keras 3 asks layers: see the test before")
    def test_jit_compile_fails_with_the_name_of_the_op(self):
        model = click_model(embedding_of(random_table()), slipstream("adam"), jit_compile=True)
        with pytest.raises(tf.errors.InvalidArgumentError, match="Slipstream>ApplyRows"):
            fit(model, click_data())

    def test_the_layer_of_the_docs_compiles_the_dense_part_alone(self):
        text = (pathlib.Path(__file__).parents[1] / "docs" / "guide" / "optimizers.md").read_text()
        names = {"keras": keras, "tf": tf}
        exec(re.search(r"```python\n(class Compiled.*?)```", text, re.S).group(1), names)
        histories = []
        for wrap in (names["Compiled"], lambda layer: layer):
            ids = keras.Input([3], dtype="int64")
            rows = keras.layers.Flatten()(embedding_of(random_table(), name="user")(ids))
            hidden = keras.layers.Dense(4, "relu", kernel_initializer="ones")
            last = keras.layers.Dense(1, "sigmoid", kernel_initializer="zeros")
            tower = wrap(keras.Sequential([hidden, last]))
            model = keras.Model(ids, tower(rows))
            model.compile(slipstream("adam"), "binary_crossentropy")
            histories.append(fit(model, click_data()))
            if isinstance(tower, names["Compiled"]):
                compiled = tower.run.experimental_get_compiler_ir(tf.zeros([16, 9]))()
                assert "HloModule" in compiled
        np.testing.assert_allclose(*(one.history["loss"] for one in histories), rtol=1e-5)


class TestSkippedBatches:
    """With a LossScaleOptimizer around it a batch whose gradients are not finite is left out."""

    BAD = slice(16, 32)  # the second of four batches

    def model(self):
        scaling = getattr(keras.mixed_precision, "LossScaleOptimizer", None)
        scaling = scaling or keras.optimizers.LossScaleOptimizer
        layer = embedding_of(random_table(), name="user")
        return click_model(layer, scaling(slipstream("adam"), initial_scale=1.0))

    def test_such_a_batch_changes_no_weight(self):
        ids, labels = click_data()
        model = self.model()
        model.train_on_batch(ids[:16], labels[:16])
        before = values_of(model.variables)
        model.train_on_batch(ids[self.BAD], np.full([16, 1], np.nan, np.float32))
        assert_all_equal(values_of(model.variables), before)
        model.train_on_batch(ids[:16], labels[:16])
        assert not np.array_equal(model.get_weights()[0], before[0])

    @pytest.mark.skipif(not IS_KERAS_3, reason="tf_keras counts the step all the same")
    def test_training_is_that_of_the_other_batches(self):
        ids, labels = click_data()
        expected, model = self.model(), self.model()
        fit(expected, [np.delete(part, np.arange(64)[self.BAD], axis=0) for part in (ids, labels)])
        labels[self.BAD] = np.nan
        fit(model, (ids, labels))
        assert int(model.optimizer.inner_optimizer.iterations) == 3
        assert_all_equal(model.get_weights(), expected.get_weights())

    def test_statistics_tell_how_many_were_left_out(self):
        ids, labels = click_data()
        labels[self.BAD] = np.nan
        model = self.model()
        fit(model, (ids, labels))
        ours = model.optimizer.inner_optimizer
        assert 4 - ours.skip_stats()["user"].num_lookups / (16 * NUM_IDS) == 1

    def test_terminate_on_nan_ends_training(self):
        ids, labels = click_data()
        labels[self.BAD] = np.nan
        model, seen = self.model(), []
        look = keras.callbacks.LambdaCallback(on_batch_end=lambda batch, logs: seen.append(batch))
        fit(model, (ids, labels), callbacks=[keras.callbacks.TerminateOnNaN(), look])
        assert seen == [0, 1]
        assert all(np.isfinite(weights).all() for weights in model.get_weights())


class TestFailures:
    def model(self, **kwargs):
        return click_model(embedding_of(random_table(), name="user"), slipstream("adam"), **kwargs)

    @pytest.mark.parametrize("bad_id", [10, -1])
    def test_a_bad_id_fails_fit_before_any_row_changes(self, bad_id):
        model = self.model()
        ids, labels = click_data()
        fit(model, (ids, labels))
        before = all_weights(model) + values_of(model.optimizer.variables)
        ids[1, 2] = bad_id
        message = rf"(?s)indices\[1,2\] = {bad_id} is not in \[0, 10\).*table_user"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            fit(model, (ids, labels))
        assert_all_equal(all_weights(model) + values_of(model.optimizer.variables), before)
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            model.predict(ids, verbose=0)

    def test_a_gradient_that_is_nan_fails_fit_before_anything_changes(self):
        model = self.model()
        data = click_data()
        fit(model, data)
        before = all_weights(model) + values_of(model.optimizer.variables)
        weights = np.ones([64])
        weights[3] = np.nan
        with pytest.raises(
            tf.errors.InvalidArgumentError,
            match=r"table 'user': the gradient of row \d+ .*is NaN or infinite",
        ):
            model.fit(*data, sample_weight=weights, batch_size=16, shuffle=False, verbose=0)
        assert_all_equal(all_weights(model) + values_of(model.optimizer.variables), before)

    def test_a_dense_gradient_that_is_nan_does_not_pass_into_tables_by_clipping(self):
        layer = embedding_of(random_table())
        dense = (keras if IS_KERAS_3 else tf).Variable(np.ones([1], np.float32), name="dense")
        optimizer = slipstream("sgd", global_clipnorm=1.0)
        grad = tf.IndexedSlices(tf.ones([1, 3]), tf.constant([1]), tf.constant([10, 3]))
        with pytest.raises(tf.errors.InvalidArgumentError, match="global norm.* NaN"):
            optimizer.apply_gradients([(grad, layer.weights[0]), (tf.constant([np.nan]), dense)])
        assert_all_equal(values_of([layer.weights[0], dense]), [random_table(), [1.0]])

    def test_training_goes_on_after_a_failed_step(self):
        model = self.model()
        data = click_data()
        with pytest.raises(tf.errors.InvalidArgumentError):
            fit(model, (data[0] + 5, data[1]))
        fit(model, data)
        fresh = self.model()
        fit(fresh, data)
        assert_all_equal(all_weights(model), all_weights(fresh))
