"""The Keras model: `fit`, what is saved and exported, and how training goes on."""

import numpy as np
import pytest
import tensorflow as tf

import tf_slipstream as slipstream
from tests.models import assert_all_equal, ids_input, in_turn, values_of
from tests.selection.models import (
    BATCH,
    DIMS,
    click_log,
    click_model,
    dataset,
    optimizer,
    selective_model,
)
from tf_slipstream._compat import IS_KERAS_3, keras


def plain_model(log, epochs=2, weights=None, activation="sigmoid", rule="Adam", **arguments):
    model = click_model(activation)
    model.compile(optimizer(rule), **{"loss": "binary_crossentropy"} | arguments)
    history = model.fit(dataset(log, weights=weights), epochs=epochs, verbose=0)
    return model, history.history


# Each two of three choices.
@pytest.mark.parametrize(
    "arguments, batches, rule",
    [
        ({"keep": 1}, "full", "Adam"),
        ({"keep": 1}, "shrunk", "SGD"),
        ({"keep": 0.5, "warm_up": 10_000}, "full", "SGD"),
        ({"keep": 0.5, "warm_up": 10_000}, "shrunk", "Adam"),
    ],
)
def test_with_all_kept_training_is_plain_to_the_bit(arguments, batches, rule):
    log = click_log(1000)  # of which the last batch is smaller
    plain, history = plain_model(log, rule=rule, metrics=["AUC"])
    selective = selective_model(
        batches=batches,
        compile_arguments={"optimizer": optimizer(rule), "metrics": ["AUC"]},
        **arguments,
    )
    found = selective.fit(dataset(log), epochs=2, verbose=0).history
    assert_all_equal(selective.model.get_weights(), plain.get_weights())
    assert int(selective.optimizer.iterations.numpy()) == 2 * 16
    for name, values in history.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5)


@pytest.mark.parametrize("is_weighted, is_eager", [(False, True), (True, False)])
def test_the_same_from_logits_with_weights_and_eagerly(is_weighted, is_eager):
    log = click_log(300)
    weights = np.linspace(0, 2, 300).astype("float32") if is_weighted else None
    loss = {"loss": keras.losses.BinaryCrossentropy(from_logits=True), "run_eagerly": is_eager}
    plain, _ = plain_model(log, weights=weights, activation=None, **loss)
    selective = selective_model(click_model(None), compile_arguments=loss, keep=1)
    selective.fit(dataset(log, weights=weights), epochs=2, verbose=0)
    assert_all_equal(selective.model.get_weights(), plain.get_weights())


class Sizes(keras.layers.Layer):
    """Notes how many inputs there are in each training step; computes nothing."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def call(self, inputs, training=None):
        if training:
            with tf.control_dependencies([tf.py_function(self._note, [tf.shape(inputs)[0]], [])]):
                return tf.identity(inputs)
        return inputs

    def _note(self, size):
        self.seen.append(int(size))

    def compute_output_shape(self, input_shape):
        return input_shape


def model_with_sizes():
    sizes, model = Sizes(), click_model()
    inputs = {name: keras.Input([], dtype="int64", name=name) for name in DIMS}
    return keras.Model(inputs, sizes(model(inputs))), sizes.seen


def test_batches_are_full_and_the_rest_is_trained_on_at_the_end_of_an_epoch():
    log = click_log(20 * BATCH)
    model, sizes = model_with_sizes()
    selective = selective_model(model, keep=0.3)
    kept_before = 0
    for _ in range(3):
        sizes.clear()
        selective.fit(dataset(log), verbose=0)
        kept = selective.selection_stats().num_kept - kept_before
        kept_before += kept
        assert sizes[:-1] == [BATCH] * (kept // BATCH)
        assert sizes[-1] == kept % BATCH


def test_what_is_left_at_the_end_is_trained_on_before_validation_and_callbacks():
    log = click_log(20 * BATCH)
    seen = []

    class Callback(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((selective.model.get_weights(), logs["val_loss"]))

    selective = selective_model(keep=0.3)
    data = dataset(log)
    selective.fit(data, validation_data=data, callbacks=[Callback()], verbose=0)
    weights, val_loss = seen[0]
    assert_all_equal(weights, selective.model.get_weights())
    np.testing.assert_allclose(val_loss, selective.model.evaluate(data, verbose=0), rtol=1e-6)


def test_shrunk_batches_are_a_step_for_each_batch_even_where_nothing_is_kept():
    log = click_log(20 * BATCH)
    model, sizes = model_with_sizes()
    selective = selective_model(model, keep=0.02, batches="shrunk")
    selective.fit(dataset(log), verbose=0)
    assert len(sizes) == 20 and min(sizes) == 1
    kept = selective.selection_stats().num_kept
    assert kept < sum(sizes)  # some steps had an input of weight 0
    assert all(np.isfinite(weight).all() for weight in selective.get_weights())


def test_an_input_that_stands_in_for_none_moves_nothing():
    ids, labels = click_log(BATCH)
    # A pilot that is sure of all keeps 1 in 1000.
    pilot = slipstream.Pilot(DIMS)
    rows = np.zeros([110, 2], "float32")
    rows[:, 0] = -20
    pilot.rows.set_weights([rows])
    selective = selective_model(
        pilot=pilot, keep=0.5, batches="shrunk", compile_arguments={"optimizer": optimizer("SGD")}
    )
    selective.selector.num_batches.assign(1)
    before = values_of(selective.model.trainable_variables)
    selective.fit(dataset((ids, 0 * labels)), verbose=0)
    if selective.selection_stats().num_kept == 0:
        assert_all_equal(values_of(selective.model.trainable_variables), before)
    assert selective.selection_stats().num_kept < 3


@pytest.mark.parametrize(
    "method, wide", in_turn(["contribution", "negatives", "random"], [True, False])
)
def test_probabilities_stay_those_of_all_inputs(method, wide):
    log = click_log(30_000)
    selective = selective_model(method=method, wide=wide, compile_arguments={"metrics": ["AUC"]})
    history = selective.fit(dataset(log, 256), epochs=2, verbose=0).history
    mean = selective.predict(dataset(log, 2048), verbose=0).mean()
    assert abs(mean / log[1].mean() - 1) < 0.08
    # What training reports is what it would be over all inputs.
    loss, auc = selective.evaluate(dataset(log, 2048), verbose=0)
    reported = [value for name, value in history.items() if "auc" in name.lower()][0]
    assert abs(history["loss"][-1] - loss) < 0.02
    assert abs(reported[-1] - auc) < 0.03
    assert abs(selective.selection_stats().share_kept - 0.5) < 0.03


def test_evaluate_and_predict_are_the_models_to_the_bit():
    log = click_log(500)
    selective = selective_model(compile_arguments={"metrics": ["AUC"]})
    selective.fit(dataset(log), verbose=0)
    np.testing.assert_array_equal(
        selective.predict(dataset(log), verbose=0), selective.model.predict(dataset(log), verbose=0)
    )
    found = selective.evaluate(dataset(log), verbose=0)
    assert found == selective.model.evaluate(dataset(log), verbose=0) and len(found) == 2


@pytest.mark.parametrize("wide", [False, True])
def test_what_is_saved_and_exported_is_the_served_model(wide, tmp_path):
    log = click_log(500)
    selective = selective_model(wide=wide)
    selective.fit(dataset(log), verbose=0)
    expected = selective.predict(dataset(log, 500), verbose=0)
    inputs = {name: tf.constant(ids) for name, ids in log[0].items()}
    served = selective.served_model
    assert (served is selective.model) is not wide
    path = str(tmp_path / "model.keras")
    selective.save(path)
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(loaded.predict(dataset(log, 500), verbose=0), expected)
    assert type(loaded) is type(served)
    selective.export(str(tmp_path / "served"))
    exported = tf.saved_model.load(str(tmp_path / "served"))
    (found,) = exported.signatures["serving_default"](**inputs).values()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    graph = (tmp_path / "served" / "saved_model.pb").read_bytes()
    assert b"lipstreamApply" not in graph and b"SlipstreamApplyRows" not in graph
    if not wide:
        assert b"pilot" not in graph


def test_a_wide_model_is_the_sum_of_its_parts():
    log = click_log(2000)
    loss = {"loss": keras.losses.BinaryCrossentropy(from_logits=True)}
    selective = selective_model(click_model(None), compile_arguments=loss, wide=True)
    selective.fit(dataset(log), verbose=0)
    inputs = {name: tf.constant(ids) for name, ids in log[0].items()}
    parts = selective.model(inputs)[:, 0] + selective.selector.pilot.call(inputs)
    np.testing.assert_allclose(selective.predict(inputs, verbose=0)[:, 0], parts, rtol=1e-4)
    # A pilot that is as good as the model: it is not learned twice.
    assert np.std(selective.selector.pilot.call(inputs)) > 0.3


def test_a_wide_model_trains_with_what_the_pilot_said_before_it_learned():
    log = click_log(BATCH)
    loss = {"loss": keras.losses.BinaryCrossentropy(from_logits=True)}
    loss["optimizer"] = optimizer("SGD", 0.1)
    plain = click_model(None)
    plain.compile(optimizer("SGD", 0.1), loss=loss["loss"])
    plain.fit(dataset(log), verbose=0)
    selective = selective_model(click_model(None), compile_arguments=loss, wide=True, keep=1)
    selective.fit(dataset(log), verbose=0)
    # In the first batch the pilot says 0 of each.
    assert_all_equal(selective.model.get_weights(), plain.get_weights())
    assert np.abs(selective.selector.pilot.rows.get_weights()[0]).sum() > 1


@pytest.mark.parametrize("batches, wide", [("full", False), ("shrunk", True)])
def test_training_goes_on_from_a_checkpoint_to_the_bit(batches, wide, tmp_path):
    ids, labels = click_log(60 * 30)

    def train(selective, first, last):
        for step in range(first, last):
            part = slice(30 * step, 30 * step + 30)
            selective.train_on_batch(
                {n: tf.constant(v[part]) for n, v in ids.items()}, labels[part]
            )

    def state(selective):
        selector = selective.selector
        variables = [*selective.variables, *selective.optimizer.variables]
        return values_of([*variables, *selector.pilot.weights, *selector.pilot_optimizer.variables])

    never_stopped = selective_model(batches=batches, wide=wide)
    train(never_stopped, 0, 60)
    stopped = selective_model(batches=batches, wide=wide)
    train(stopped, 0, 25)
    path = tf.train.Checkpoint(model=stopped).save(str(tmp_path / "it"))
    restored = selective_model(click_model(seed=5), batches=batches, wide=wide)
    restored.optimizer.build(restored.trainable_variables)
    tf.train.Checkpoint(model=restored).restore(path)
    train(restored, 25, 60)
    assert_all_equal(state(restored), state(never_stopped))
    assert restored.selection_stats() == never_stopped.selection_stats()


def test_weights_files_have_the_pilot(tmp_path):
    log = click_log(640)
    selective = selective_model(keep=0.4)
    selective.fit(dataset(log), verbose=0)
    path = str(tmp_path / "it.weights.h5")
    selective.save_weights(path)
    restored = selective_model(click_model(seed=5), keep=0.4)
    restored.train_on_batch({n: tf.constant(v[:8]) for n, v in log[0].items()}, log[1][:8])
    restored.load_weights(path)
    assert restored.selection_stats() == selective.selection_stats()
    for name in ("selector", "model"):
        assert_all_equal(
            getattr(restored, name).get_weights(), getattr(selective, name).get_weights()
        )
    # The same are chosen next.
    chosen = [
        one.selector.select({n: tf.constant(v) for n, v in log[0].items()}, log[1]).positions
        for one in (selective, restored)
    ]
    assert_all_equal(*chosen)


def test_logs_have_the_share_kept_of_each_batch():
    shares = []

    class Callback(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            shares.append(float(logs["share_kept"]))

    selective = selective_model(keep=0.5)
    history = selective.fit(dataset(click_log(1280)), callbacks=Callback(), verbose=0).history
    assert len(shares) == 20 and abs(np.mean(shares) - 0.5) < 0.1
    assert np.sum(np.round(np.array(shares) * BATCH)) == selective.selection_stats().num_kept
    assert history["share_kept"] == shares[-1:]


def test_the_users_weights_are_kept():
    """A click of weight 3 is worth three: predictions are right in the weighted mean."""
    log = click_log(30_000, -1.0)
    weights = np.where(log[1] > 0.5, 3.0, 1.0).astype("float32")
    selective = selective_model(keep=0.5)
    selective.fit(dataset(log, 256, weights), epochs=2, verbose=0)
    found = selective.predict(dataset(log, 2048), verbose=0)[:, 0]
    assert abs(np.average(found, weights=weights) - np.average(log[1], weights=weights)) < 0.03


@pytest.mark.parametrize("is_dict", [True, False])
def test_of_several_outputs_one_decides_and_the_others_are_weighted(is_dict):
    ids, clicks = click_log(20_000)
    rng = np.random.default_rng(1)
    buys = clicks * (rng.random(len(clicks)) < 0.5)
    stars = np.where(clicks, 5.0, 2.0).astype("float32")
    model = click_model(activation=None, num_outputs=3)
    bce = keras.losses.BinaryCrossentropy(from_logits=True)
    losses = {"click": bce, "buy": bce, "stars": "mse"}
    labels = {"click": clicks, "buy": buys.astype("float32"), "stars": stars}
    output = "click"
    if not is_dict:
        inputs = {name: keras.Input([], dtype="int64", name=name) for name in DIMS}
        outputs = model(inputs)
        model = keras.Model(inputs, [outputs[name] for name in losses])
        losses, labels, output = list(losses.values()), tuple(labels.values()), 0
    selective = slipstream.SelectiveModel(model, slipstream.Pilot(DIMS), output=output)
    selective.compile(optimizer(rate=0.02), loss=losses)
    selective.fit(dataset((ids, labels), 256), epochs=2, verbose=0)
    found = selective.predict(dataset((ids, labels), 2048), verbose=0)
    click, buy, star = list(found.values()) if is_dict else found
    assert abs(selective.selection_stats().share_kept - 0.5) < 0.02
    for logits, expected in ((click, clicks), (buy, buys)):
        # Without weights the mean of either would be about twice as high.
        assert abs(np.mean(1 / (1 + np.exp(-logits))) / expected.mean() - 1) < 0.25
    assert abs(star.mean() / stars.mean() - 1) < 0.05


@pytest.mark.parametrize("kind", ["ragged", "sparse", "dense"])
def test_inputs_of_every_kind_wait_and_are_trained_on(kind):
    rng = np.random.default_rng(0)
    bags = [rng.integers(20, size=1 + n % 3).tolist() for n in range(640)]
    labels = np.float32([min(bag) < 5 for bag in bags])
    ids = tf.ragged.constant(bags, tf.int64)
    inputs = ids_input(kind, 3 if kind == "dense" else None)
    if kind != "ragged":
        ids = ids.to_tensor() if kind == "dense" else ids.to_sparse()
    rows = slipstream.SlipstreamEmbedding(20, 4, combiner="mean")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(rows))
    pilot = slipstream.Pilot([20], ids=lambda ids: [ids])
    selective = slipstream.SelectiveModel(model, pilot, keep=0.5)
    selective.compile(optimizer(), loss="binary_crossentropy")
    data = tf.data.Dataset.from_tensor_slices((ids, labels)).batch(64)
    first = selective.fit(data, epochs=3, verbose=0).history["loss"]
    assert first[-1] < first[0]
    assert abs(selective.selection_stats().share_kept - 0.5) < 0.06


def test_the_readers_of_click_logs_feed_it():
    log = slipstream.data.SyntheticClickLog(cardinalities=[50, 20], num_dense=3, seed=0)
    dense, ids = keras.Input([3]), keras.Input([2], dtype="int32")
    rows = keras.layers.Flatten()(slipstream.SlipstreamEmbedding(50, 4)(ids))
    hidden = keras.layers.Concatenate()([dense, rows])
    model = keras.Model((dense, ids), keras.layers.Dense(1, activation="sigmoid")(hidden))
    pilot = slipstream.Pilot(
        log.cardinalities, ids=lambda inputs: inputs[1], dense=lambda inputs: inputs[0], num_dense=3
    )
    selective = slipstream.SelectiveModel(model, pilot, keep=0.5)
    selective.compile(optimizer(), loss="binary_crossentropy")
    selective.fit(log.dataset(5000, 100), verbose=0)
    assert selective.selection_stats().num_inputs == 5000
    assert abs(selective.selection_stats().share_kept - 0.5) < 0.05


class OwnStep(keras.Model):
    def train_step(self, data):
        return {}


def smoothed():
    return keras.losses.BinaryCrossentropy(label_smoothing=0.1)


@pytest.mark.parametrize("loss", ["mse", "hinge", smoothed, keras.losses.MeanSquaredError, None])
def test_another_loss_is_refused(loss):
    model = slipstream.SelectiveModel(click_model(), slipstream.Pilot(DIMS))
    with pytest.raises(ValueError, match="binary cross-entropy"):
        model.compile("sgd", loss=loss() if callable(loss) else loss)


def test_what_cannot_work_is_refused():
    pilot = slipstream.Pilot(DIMS)
    with pytest.raises(ValueError, match="train_step"):
        slipstream.SelectiveModel(OwnStep(), pilot)
    with pytest.raises(ValueError, match="Keras model"):
        slipstream.SelectiveModel(lambda x: x, pilot)
    with pytest.raises(ValueError, match="batches"):
        slipstream.SelectiveModel(click_model(), pilot, batches="half")
    several = slipstream.SelectiveModel(click_model(num_outputs=2), pilot)
    with pytest.raises(ValueError, match="`output`"):
        several.compile("sgd", loss={"click": "mse", "buy": "mse"})
    with pytest.raises(ValueError, match="`output`"):
        several.compile("sgd", loss="binary_crossentropy")


def test_data_without_labels_is_refused():
    selective = selective_model()
    with pytest.raises(ValueError, match="labels"):
        selective.fit(dataset((click_log(64)[0],)), verbose=0)


def test_a_subclassed_model_is_built_in_fit():
    class Clicks(keras.Model):
        def __init__(self):
            super().__init__()
            self.rows = slipstream.SlipstreamEmbedding(80, 4)
            self.output_layer = keras.layers.Dense(1, activation="sigmoid")

        def call(self, inputs):
            return self.output_layer(self.rows(inputs["item"]) + self.rows(inputs["user"]))

    log = click_log(1000)
    for wide in (False, True):
        selective = selective_model(Clicks(), wide=wide)
        history = selective.fit(dataset(log), epochs=3, verbose=0).history["loss"]
        assert history[-1] < history[0]


def test_steps_per_execution_changes_nothing():
    log = click_log(20 * BATCH)
    found = []
    for steps in (1, 5):
        selective = selective_model(compile_arguments={"steps_per_execution": steps})
        selective.fit(dataset(log), epochs=2, verbose=0)
        found.append(selective.get_weights())
    assert_all_equal(*found)


def test_nothing_is_said_of_a_build(recwarn):
    selective = selective_model()
    selective.fit(dataset(click_log(200)), verbose=0)
    assert not [w for w in recwarn if "build" in str(w.message)]
    assert IS_KERAS_3 or selective.built
