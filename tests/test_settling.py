"""What is validated, evaluated, saved and served is one model: what is held is applied before."""

import functools
import tempfile

import numpy as np
import pytest
import tensorflow as tf

from tests.models import (
    assert_all_equal,
    click_data,
    click_model,
    embedding_of,
    fit,
    in_turn,
    num_asleep,
    num_held,
    random_table,
    sleepy,
    train_steps,
    values_of,
)
from tf_slipstream import SlipstreamOptimizer
from tf_slipstream._compat import IS_KERAS_3, keras
from tf_slipstream.engine import tables as engine_tables

INNER = {
    "adagrad": lambda: keras.optimizers.Adagrad(0.25),
    "adam": lambda: keras.optimizers.Adam(0.0625),
    "momentum": lambda: keras.optimizers.SGD(0.25, momentum=0.75),
}
# Policies, and steps until rows sleep under them.
POLICIES = {
    "none": (None, 20),
    "defer": (sleepy(), 20),
    "defer and skip": (sleepy(skip_below=0.7), 20),
    "skip": (sleepy(on_stale="skip"), 20),
    "conservative": ("conservative", 290),
    "balanced": ("balanced", 180),
    "aggressive": ("aggressive", 80),
}
DATA = click_data(16 * 300, num_rows=20)
HELD_OUT = click_data(100, num_rows=20, seed=1)

every_rule = pytest.mark.parametrize("rule", INNER)
every_rule_and_policy = pytest.mark.parametrize("rule, policy", in_turn(INNER, POLICIES))


def make(rule, policy, table=None, **compile_arguments):
    table = random_table(20) if table is None else table
    optimizer = SlipstreamOptimizer(INNER[rule](), policy=POLICIES[policy][0])
    return click_model(embedding_of(table, name="user"), optimizer, **compile_arguments)


def asleep(rule, policy="defer"):
    """Returns a model some of whose rows sleep, and the number of its steps."""
    model, num_steps = make(rule, policy), POLICIES[policy][1]
    train_steps(model, DATA, 0, num_steps)
    if policy != "none":
        assert num_asleep(model.optimizer)
    return model, num_steps


def asleep_and_held(rule, policy="defer"):
    """Returns a model, whose optimizer holds something of its table."""
    model, num_steps = asleep(rule, policy)
    while not num_held(model.optimizer):
        train_steps(model, DATA, num_steps, num_steps + 1)
        num_steps += 1
    return model, num_steps


def predictions(model, ids=HELD_OUT[0]):
    return model.predict(ids, batch_size=len(ids), verbose=0)


def unsettled_predictions(model):
    """Returns predictions of the table as it is, to the bit as `predict` makes them."""
    return np.asarray(tf.function(lambda: model(HELD_OUT[0]))())


class TestValidation:
    @every_rule_and_policy
    def test_what_is_validated_is_what_is_evaluated(self, rule, policy):
        model = make(rule, policy, metrics=[keras.metrics.AUC(name="auc")])
        ids, labels = (part[: 8 * POLICIES[policy][1]] for part in DATA)
        history = model.fit(
            ids,
            labels,
            batch_size=16,
            epochs=2,
            validation_data=HELD_OUT,
            validation_batch_size=24,
            verbose=0,
        ).history
        found = model.evaluate(*HELD_OUT, batch_size=24, verbose=0, return_dict=True)
        assert found == {name: history[f"val_{name}"][-1] for name in ("loss", "auc")}
        assert model.evaluate(*HELD_OUT, batch_size=24, verbose=0, return_dict=True) == found
        stats = model.optimizer.skip_stats()["user"]
        num_stale = stats.num_deferred_lookups + stats.num_skipped_lookups
        assert (num_stale > 0) == (policy != "none")

    @every_rule
    def test_it_wakes_no_row_and_traces_nothing_and_the_end_of_fit_wakes_all(self, rule):
        seen, traces = [], []

        class Look(keras.callbacks.Callback):
            def on_test_begin(self, logs=None):
                seen.append((num_asleep(model.optimizer), num_held(model.optimizer)))

            def on_epoch_end(self, epoch, logs=None):
                seen.append((num_asleep(model.optimizer), num_held(model.optimizer)))

            def on_epoch_begin(self, epoch, logs=None):
                traces.append(len(traced))

        traced = []
        model = make(rule, "defer")
        call = model.layers[1].call
        model.layers[1].call = lambda *args, **kwargs: [traced.append(1), call(*args, **kwargs)][1]
        ids, labels = (part[: 16 * 40] for part in DATA)
        data = {"validation_data": HELD_OUT, "validation_batch_size": 20}
        model.fit(ids, labels, batch_size=16, epochs=4, callbacks=[Look()], verbose=0, **data)
        assert len(seen) == 8
        for (before, _), (after, held) in zip(seen[::2], seen[1::2]):
            assert before == after > 0 and held == 0
        # The first epoch traces the step and the validation.
        assert traces[1:] == traces[1:2] * 3 and traces[1] > 0
        assert num_asleep(model.optimizer) == num_held(model.optimizer) == 0

    def test_training_goes_on_as_if_nobody_had_looked_where_nothing_is_held(self):
        models = [make("adagrad", "skip") for _ in range(2)]
        for epoch in range(3):
            for model in models:
                train_steps(model, DATA, 10 * epoch, 10 * epoch + 10)
            models[0].evaluate(*HELD_OUT, verbose=0)
        assert num_asleep(models[0].optimizer) == num_asleep(models[1].optimizer) > 0
        assert_all_equal(*(model.get_weights() for model in models))


READ = {
    "evaluate": lambda model: model.evaluate(*HELD_OUT, verbose=0),
    "predict": lambda model: model.predict(HELD_OUT[0], verbose=0),
    "test_on_batch": lambda model: model.test_on_batch(*HELD_OUT),
    "predict_on_batch": lambda model: model.predict_on_batch(HELD_OUT[0]),
    "get_weights": lambda model: model.get_weights(),
    "get_weights of the layer": lambda model: model.layers[1].get_weights(),
    "settle": lambda model: model.optimizer.settle(),
}


@pytest.mark.parametrize("rule, way", in_turn(INNER, READ))
def test_whoever_reads_the_model_has_all_applied_and_wakes_nothing(rule, way):
    model, _ = asleep_and_held(rule)
    before, num_before = unsettled_predictions(model), num_asleep(model.optimizer)
    READ[way](model)
    after = unsettled_predictions(model)
    assert num_held(model.optimizer) == 0 and num_asleep(model.optimizer) == num_before
    assert not np.array_equal(before, after)
    model.optimizer.wake_all()
    assert num_asleep(model.optimizer) == 0
    np.testing.assert_array_equal(unsettled_predictions(model), after)


def test_a_model_that_is_not_built_is_read_as_ever():
    asleep("adagrad")  # the methods of models are wrapped
    data = np.ones([4, 2]), np.ones([4, 1])
    for use in (
        lambda model: model.predict(data[0], verbose=0),
        lambda model: model.evaluate(*data, verbose=0),
        lambda model: model.fit(*data, verbose=0).history["loss"],
    ):
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile("sgd", loss="mse")
        assert np.all(np.isfinite(use(model)))


def test_a_model_that_is_not_built_has_its_layers_settled():
    model, _ = asleep_and_held("adam")
    other = keras.Sequential([model.layers[1], keras.layers.Flatten()])
    rows = other.predict(HELD_OUT[0], verbose=0)
    assert num_held(model.optimizer) == 0
    np.testing.assert_array_equal(rows, other.predict(HELD_OUT[0], verbose=0))


def _keras_file(model, folder):
    path = str(folder / "model.keras")
    model.save(path)
    return predictions(keras.models.load_model(path))


def _saving_function(model, folder, name="model.keras"):
    path = str(folder / name)
    keras.saving.save_model(model, path)
    return predictions(keras.models.load_model(path))


def _h5_file(model, folder):
    path = str(folder / "model.h5")
    model.save(path)
    return predictions(keras.models.load_model(path))


def _folder(model, folder):
    path = str(folder / "folder")
    model.save(path, save_format="tf")
    return predictions(keras.models.load_model(path))


def _weights_file(model, folder, suffix=".weights.h5"):
    path = str(folder / f"model{suffix}")
    model.save_weights(path)
    loaded = make("adam", "none", table=random_table(20, seed=9))
    loaded.load_weights(path)
    return predictions(loaded)


def _export(model, folder):
    model.export(str(folder / "exported"))
    return served(folder / "exported")


def _export_archive(model, folder):
    archive = keras.export.ExportArchive()
    archive.track(model)
    signature = [tf.TensorSpec([None, 3], tf.int64)]
    archive.add_endpoint(name="serve", fn=lambda ids: model(ids), input_signature=signature)
    archive.write_out(str(folder / "archive"))
    return served(folder / "archive")


def served(folder):
    loaded = tf.saved_model.load(str(folder))
    return loaded.serve(tf.constant(HELD_OUT[0], tf.int64)).numpy()


WAYS = {
    "keras file": _keras_file,
    "save_model": _saving_function,
    "save_model, h5": functools.partial(_saving_function, name="model.h5"),
    "h5 file": _h5_file,
    "weights file": _weights_file,
    "export": _export,
    "ExportArchive": _export_archive,
}
CHEAP_WAYS = ("keras file", "weights file", "h5 file")
if not IS_KERAS_3:
    WAYS |= {
        "weights checkpoint": functools.partial(_weights_file, suffix=""),
        "saved_model folder": _folder,
    }


class TestSaving:
    def check(self, way, model, folder):
        if "h5" in way and IS_KERAS_3:
            paths = [variable.path for variable in model.optimizer.variables]
            if len(set(paths)) < len(paths):
                pytest.skip("before 3.10 Keras names all Adagrad accumulators alike; .h5 refuses")
        before = unsettled_predictions(model)
        num_before = num_asleep(model.optimizer)
        saved = WAYS[way](model, folder)
        np.testing.assert_array_equal(saved, unsettled_predictions(model))
        np.testing.assert_array_equal(saved, predictions(model))
        assert num_asleep(model.optimizer) == num_before
        return not np.array_equal(before, saved)

    @pytest.mark.parametrize("rule, way", in_turn(INNER, WAYS))
    def test_what_is_saved_is_the_model_as_it_predicts(self, way, rule, tmp_path):
        model, _ = asleep_and_held(rule)
        assert self.check(way, model, tmp_path), "nothing was held"

    @every_rule_and_policy
    def test_so_it_is_under_every_policy(self, rule, policy, tmp_path):
        model, num_steps = asleep(rule, policy)
        for number, way in enumerate(CHEAP_WAYS):
            train_steps(model, DATA, num_steps + number, num_steps + number + 1)
            self.check(way, model, tmp_path)

    def test_saving_changes_no_prediction(self, tmp_path):
        model, _ = asleep("adam")
        expected = predictions(model)
        for name, way in WAYS.items():
            np.testing.assert_array_equal(way(model, tmp_path), expected, err_msg=name)
            np.testing.assert_array_equal(predictions(model), expected, err_msg=name)

    @every_rule
    def test_tensorflow_saves_what_keras_saves(self, rule, tmp_path):
        model, _ = asleep_and_held(rule)
        before = model.optimizer.tables["user"].table.numpy()
        tf.saved_model.save(model, str(tmp_path))
        reader = tf.train.load_checkpoint(str(tmp_path / "variables" / "variables"))
        shapes = reader.get_variable_to_shape_map()
        saved = [
            reader.get_tensor(n) for n, s in shapes.items() if "embeddings" in n and s == [20, 3]
        ]
        assert saved and not np.array_equal(saved[0], before)
        for values in saved:
            np.testing.assert_array_equal(values, model.optimizer.tables["user"].table.numpy())


def _set_weights_of_layer(model, table):
    model.layers[1].set_weights([table])


def _set_weights_of_model(model, table):
    model.set_weights([table, *model.get_weights()[1:]])


def _assign(model, table):
    model.layers[1].embeddings.assign(table)


def _checkpoint(model, table):
    """Reads a checkpoint of a model that was not compiled."""
    other = click_model(embedding_of(table, name="user"))
    with tempfile.TemporaryDirectory() as folder:
        path = tf.train.Checkpoint(other).write(f"{folder}/weights")
        tf.train.Checkpoint(model).read(path)


def _checkpoint_of_the_table(model, table):
    with tempfile.TemporaryDirectory() as folder:
        path = tf.train.Checkpoint(rows=tf.Variable(table)).save(f"{folder}/rows")
        tf.train.Checkpoint(rows=model.layers[1].embeddings).restore(path)


def _load_function(path, model):
    if IS_KERAS_3:
        keras.saving.load_weights(model, path)
    else:
        model.load_weights(path)


# A file's suffix, and what loads it.
LOAD = {"method": (".weights.h5", lambda path, model: model.load_weights(path))}
if IS_KERAS_3:
    LOAD["function"] = (".weights.h5", _load_function)
else:
    LOAD |= {"checkpoint": ("", _load_function), "h5": (".h5", _load_function)}
OVERWRITE = {
    "set_weights": _set_weights_of_model,
    "set_weights of the layer": _set_weights_of_layer,
    "assign": _assign,
    "checkpoint": _checkpoint,
    "checkpoint of the table": _checkpoint_of_the_table,
}


class TestOverwriting:
    """New values stay: no gradient and no momentum of the old ones reaches them."""

    def check_that_they_stay(self, model, table):
        """Fails if anything but coming gradients changes the table."""
        fresh = click_model(embedding_of(table, name="user"))
        fresh.layers[-1].set_weights(model.layers[-1].get_weights())
        expected = predictions(fresh)
        np.testing.assert_array_equal(unsettled_predictions(model), expected)
        np.testing.assert_array_equal(predictions(model), expected)
        # Steps that look up row 0 alone.
        ids = np.zeros([16, 3], np.int64)
        for _ in range(12):
            model.train_on_batch(ids, np.ones([16, 1], np.float32))
        for end in (model.optimizer.settle, model.optimizer.wake_all):
            end()
            np.testing.assert_array_equal(model.layers[1].get_weights()[0][1:], table[1:])

    @pytest.mark.parametrize("rule, way", in_turn(INNER, OVERWRITE))
    def test_values_that_were_set(self, rule, way):
        model, _ = asleep_and_held(rule)
        table = random_table(20, seed=5)
        OVERWRITE[way](model, table)
        assert num_held(model.optimizer) == 0
        self.check_that_they_stay(model, table)

    @pytest.mark.parametrize("rule, way", in_turn(INNER, LOAD))
    def test_weights_that_were_loaded(self, rule, way, tmp_path):
        (suffix, load), table = LOAD[way], random_table(20, seed=5)
        path = str(tmp_path / f"model{suffix}")
        other = click_model(embedding_of(table, name="user"), "sgd")
        other.test_on_batch(*HELD_OUT)  # tf_keras saves metrics as well
        other.save_weights(path)
        model, _ = asleep_and_held(rule)
        load(path, model)
        assert num_held(model.optimizer) == 0
        self.check_that_they_stay(model, table)

    @pytest.mark.parametrize(
        "rule, suffix", in_turn(INNER, [".weights.h5", *([] if IS_KERAS_3 else [""])])
    )
    def test_weights_that_come_with_their_optimizer_go_on_with_it(self, rule, suffix, tmp_path):
        path = str(tmp_path / f"model{suffix}")
        model, num_steps = asleep_and_held(rule)
        model.save_weights(path)
        other, _ = asleep_and_held(rule)
        train_steps(other, DATA, 100, 110)
        other.load_weights(path)
        for one in (model, other):
            train_steps(one, DATA, num_steps, num_steps + 20)
        assert_all_equal(other.get_weights(), model.get_weights())

    @every_rule
    def test_a_checkpoint_of_all_goes_on_as_if_never_stopped(self, rule, tmp_path):
        model, num_steps = asleep_and_held(rule)
        path = tf.train.Checkpoint(model).write(tmp_path / "all")
        other, _ = asleep_and_held(rule)
        train_steps(other, DATA, 100, 110)
        tf.train.Checkpoint(other).read(path).assert_consumed()
        assert num_held(other.optimizer) == num_held(model.optimizer) > 0
        for one in (model, other):
            train_steps(one, DATA, num_steps, num_steps + 20)
        assert_all_equal(other.get_weights(), model.get_weights())

    @pytest.mark.parametrize("is_there", [True, False], ids=["of others", "missing"])
    def test_a_checkpoint_without_the_table_changes_nothing(self, is_there, tmp_path):
        model, _ = asleep_and_held("adam")
        before = values_of([*model.variables, *model.optimizer.variables])
        path = tf.train.Checkpoint(model=tf.Variable(1.0)).write(tmp_path / "other")
        checkpoint = tf.train.Checkpoint(model=model)
        if is_there:
            checkpoint.read(path).expect_partial()
        else:
            with pytest.raises(tf.errors.NotFoundError):
                checkpoint.read(tmp_path / "none")
        assert_all_equal(values_of([*model.variables, *model.optimizer.variables]), before)

    def test_the_best_weights_of_early_stopping_are_restored_exactly(self):
        model = make("adam", "defer")
        best = []

        class Keep(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                logs["val_planted"] = float(epoch)
                if epoch == 0:
                    best.extend(np.array(one) for one in model.get_weights())

        stopping = keras.callbacks.EarlyStopping(
            "val_planted", patience=2, mode="min", restore_best_weights=True
        )
        data = [part[: 16 * 20] for part in DATA]
        fit(model, data, epochs=9, validation_data=HELD_OUT, callbacks=[Keep(), stopping])
        assert_all_equal(model.get_weights(), best)

    def test_values_set_before_the_first_step_are_those_that_train(self):
        models = [make("adam", "defer"), make("adam", "defer", table=random_table(20, seed=5))]
        models[0].layers[1].set_weights([random_table(20, seed=5)])
        for model in models:
            train_steps(model, DATA, 0, 20)
        assert_all_equal(*(model.get_weights() for model in models))


def test_settling_twice_is_settling_once(monkeypatch):
    model, _ = asleep_and_held("adam")
    calls = []
    settle_rows = engine_tables.settle_rows
    monkeypatch.setattr(
        engine_tables, "settle_rows", lambda *args: [calls.append(1), settle_rows(*args)][1]
    )
    model.optimizer.settle()
    once = model.optimizer.tables["user"].table.numpy()
    model.optimizer.settle()
    np.testing.assert_array_equal(model.optimizer.tables["user"].table.numpy(), once)
    assert len(calls) == 2
