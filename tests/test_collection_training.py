"""A collection in training, against layers of their own; saved, resized, copied, exported."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.field_models import (
    DIMS,
    NUM_ROWS,
    SHARED_DIMS,
    as_columns,
    collection_model,
    collection_of,
    dict_model,
    field_data,
    first_tables,
    layers_model,
    layers_of,
    pool_by_field,
    rows_of,
    state_by_field,
)
from tests.models import (
    assert_all_equal,
    fit,
    in_turn,
    num_asleep,
    num_held,
    sleepy,
    train_steps,
    values_of,
)
from tests.test_resizing import INNER, check_pool
from tf_slipstream import (
    SkipGuard,
    SkipHistory,
    SlipstreamEmbeddingCollection,
    SlipstreamOptimizer,
    copy_training,
    export,
    resize,
    swap_out,
)
from tf_slipstream._compat import IS_KERAS_3, keras, tf_variable
from tf_slipstream.delta.apply import apply_delta
from tf_slipstream.export.stock_ops import check_stock_ops
from tf_slipstream.ops import _library
from tf_slipstream.state import schema
from tf_slipstream.state import table as table_state

DATA = field_data()
POLICY = sleepy(first_sleep=2, max_sleep=8)
FORMATS = ["keras", "weights", "checkpoint"]


def dense_weights(model):
    return model.get_layer("output").get_weights()


def assert_same_training(model, other):
    """Asserts that two models, of either kind, are one to the bit, their optimizers too."""
    for name in rows_of(model):
        np.testing.assert_array_equal(rows_of(model)[name], rows_of(other)[name])
        assert_all_equal(state_by_field(model)[name], state_by_field(other)[name])
    assert_all_equal(dense_weights(model), dense_weights(other))
    inner = [values_of(one.optimizer.inner_optimizer.variables) for one in (model, other)]
    assert_all_equal(*inner)


class TestTraining:
    @pytest.mark.parametrize("name", INNER)
    def test_it_trains_as_a_layer_for_each_field(self, name):
        models = [
            make(SlipstreamOptimizer(INNER[name]())) for make in (collection_model, layers_model)
        ]
        for model in models:
            fit(model, DATA)
        assert_same_training(*models)
        for owner, table in first_tables().items():
            assert not np.array_equal(rows_of(models[0])[owner], table)
        counts = [model.optimizer.skip_stats() for model in models]
        (of_all,), of_each = counts[0].values(), counts[1].values()
        assert of_all.num_lookups == sum(one.num_lookups for one in of_each) == 4 * len(DATA[0])
        assert of_all.num_row_updates == sum(one.num_row_updates for one in of_each)

    def test_it_trains_on_plain_tensorflow_too(self):
        with _library.fallback():
            models = [
                make(SlipstreamOptimizer(INNER["adam"]()))
                for make in (collection_model, layers_model)
            ]
            for model in models:
                fit(model, DATA)
        assert_same_training(*models)

    def test_stats_are_those_of_a_layer_for_each_field(self, native_or_fallback):
        models = [
            make(SlipstreamOptimizer(INNER["adagrad"]()))
            for make in (collection_model, layers_model)
        ]
        layer = models[0].get_layer("fields")
        assert layer.skip_stats() == {}
        for model in models:
            fit(model, DATA)
        assert layer.skip_stats() == models[1].optimizer.skip_stats()
        assert [*layer.skip_stats()] == [*DIMS]

    def test_stats_of_fields_add_up_while_rows_sleep(self):
        model = collection_model(SlipstreamOptimizer(INNER["adagrad"](), policy=POLICY))
        train_steps(model, DATA, 0, 8)
        of_all = vars(model.optimizer.skip_stats()["fields"])
        of_each = [vars(one) for one in model.get_layer("fields").skip_stats().values()]
        for name in set(of_all) - {"drift_threshold"}:
            assert of_all[name] == sum(one[name] for one in of_each), name
        assert of_all["num_deferred_lookups"] > 0 and of_all["num_stale_rows"] > 0
        assert [one["num_lookups"] for one in of_each] == [len(DATA[0])] * 4
        assert {one["drift_threshold"] for one in of_each} == {of_all["drift_threshold"]}

    def test_fields_that_share_rows_share_their_stats(self):
        model = collection_model(SlipstreamOptimizer("sgd"), collection_of(SHARED_DIMS))
        train_steps(model, (DATA[0] % 1, DATA[1]), 0, 2)
        stats = model.get_layer("fields").skip_stats()
        assert [*stats] == [*SHARED_DIMS] and stats["user"] == stats["friend"]
        assert [stats[name].num_lookups for name in ("user", "item", "shop")] == [64, 32, 32]
        assert [stats[name].num_row_updates for name in ("user", "item", "shop")] == [2, 2, 2]
        assert stats["friend"].num_rows == 40

    def test_a_plain_keras_optimizer_trains_it_too(self):
        models = [make(keras.optimizers.SGD(0.5)) for make in (collection_model, layers_model)]
        for model in models:
            fit(model, DATA)
        for owner in DIMS:
            np.testing.assert_allclose(
                rows_of(models[0])[owner], rows_of(models[1])[owner], rtol=1e-5, atol=1e-6
            )

    def test_dicts_train_as_arrays(self):
        models = [
            make(SlipstreamOptimizer(INNER["adam"]()), collection_of())
            for make in (collection_model, dict_model)
        ]
        fit(models[0], DATA)
        fit(models[1], (as_columns(DATA[0]), DATA[1]))
        assert_same_training(*models)

    @pytest.mark.parametrize("name", ["sgd", "adam"])
    def test_fields_that_share_rows_train_as_a_layer_that_is_shared(self, name):
        ids = DATA[0].copy()
        ids[:, 2] = (ids[:, 2] * 7) % 40
        optimizers = [SlipstreamOptimizer(INNER[name]()) for _ in range(3)]
        by_dict = dict_model(optimizers[0], collection_of(SHARED_DIMS))
        fit(by_dict, (as_columns(ids, SHARED_DIMS), DATA[1]))
        by_layers = layers_model(optimizers[1], layers_of(SHARED_DIMS))
        by_array = collection_model(optimizers[2], collection_of(SHARED_DIMS))
        for model in (by_layers, by_array):
            fit(model, (ids, DATA[1]))
        assert_same_training(by_dict, by_layers)
        for name, rows in rows_of(by_dict).items():
            np.testing.assert_allclose(rows_of(by_array)[name], rows, rtol=1e-4, atol=1e-5)

    def test_rows_sleep_as_many_as_in_layers_of_their_own(self):
        """Not the same ones at the same time: which step a row wakes in goes by its number."""
        models = [
            make(SlipstreamOptimizer(INNER["adagrad"](), policy=POLICY))
            for make in (collection_model, layers_model)
        ]
        for model in models:
            train_steps(model, DATA, 0, 8)
        asleep = [num_asleep(model.optimizer) for model in models]
        assert asleep[0] > 10 and abs(asleep[0] - asleep[1]) <= 0.3 * asleep[1]
        assert num_held(models[0].optimizer) > 0

    def test_rows_settles_first(self):
        model = collection_model(SlipstreamOptimizer(INNER["adagrad"](), policy=POLICY))
        train_steps(model, DATA, 0, 6)
        assert num_held(model.optimizer) > 0
        rows = model.get_layer("fields").rows("user")
        assert num_held(model.optimizer) == 0
        table = tf_variable(model.get_layer("fields").weights[0])
        np.testing.assert_array_equal(rows, table[:40])

    @pytest.mark.parametrize("name", ["regularizer", "constraint"])
    def test_regularizers_and_constraints_act_as_on_layers(self, name):
        argument = {
            "regularizer": {"embeddings_regularizer": keras.regularizers.L2(0.01)},
            "constraint": {"embeddings_constraint": "non_neg"},
        }[name]
        models = [
            collection_model(SlipstreamOptimizer(INNER["sgd"]()), collection_of(**argument)),
            layers_model(SlipstreamOptimizer(INNER["sgd"]()), layers_of(**argument)),
        ]
        for model in models:
            fit(model, DATA)
        for owner in DIMS:
            np.testing.assert_allclose(
                rows_of(models[0])[owner], rows_of(models[1])[owner], rtol=1e-5, atol=1e-6
            )

    def test_callbacks_know_it_by_its_name(self):
        model = collection_model(SlipstreamOptimizer(INNER["adam"](), policy=POLICY))
        history, guard = SkipHistory(every=2), SkipGuard(monitor=None)
        fit(model, DATA, callbacks=[history, guard])
        assert [*history.history] == ["fields"]
        assert history.history["fields"][-1]["num_lookups"] == DATA[0].size
        assert len(guard.history) == 1

    def test_a_bfloat16_table_trains(self):
        layer = collection_of(dtype="bfloat16")
        before = rows_of(collection_model(None, layer))
        model = collection_model(SlipstreamOptimizer(INNER["adagrad"]()), layer)
        fit(model, DATA)
        assert all(not np.array_equal(before[name], rows_of(model)[name]) for name in DIMS)

    def test_swap_out_leaves_it_as_it_is(self):
        model = collection_model()
        copy = swap_out(model)
        assert type(copy.get_layer("fields")) is SlipstreamEmbeddingCollection
        for name in DIMS:
            np.testing.assert_array_equal(rows_of(copy)[name], rows_of(model)[name])


class TestSaving:
    @pytest.mark.parametrize("kind, policy", in_turn(FORMATS, [POLICY, None]))
    def test_training_goes_on_as_if_it_had_not_been_saved(self, kind, policy, tmp_path):
        def model():
            return collection_model(SlipstreamOptimizer(INNER["adam"](), policy=policy))

        trained = model()
        fit(trained, DATA)
        if kind == "keras":
            trained.save(tmp_path / "model.keras")
            loaded = keras.models.load_model(tmp_path / "model.keras")
        elif kind == "weights":
            trained.save_weights(tmp_path / "model.weights.h5")
            loaded = model()
            loaded.optimizer.build(loaded.trainable_variables)
            loaded.load_weights(tmp_path / "model.weights.h5")
        else:
            path = tf.train.Checkpoint(model=trained).save(str(tmp_path / "model"))
            loaded = model()
            loaded.optimizer.build(loaded.trainable_variables)
            tf.train.Checkpoint(model=loaded).restore(path).expect_partial()
        assert loaded.get_layer("fields").input_dims == DIMS
        if kind == "weights" and not IS_KERAS_3:
            # tf_keras's file has no optimizer.
            for name in DIMS:
                np.testing.assert_array_equal(rows_of(loaded)[name], rows_of(trained)[name])
            return
        for one in (trained, loaded):
            fit(one, DATA)
        assert_same_training(trained, loaded)

    def test_a_model_is_loaded_where_a_field_was_added(self, tmp_path):
        """By the rows of each field: `load_weights` needs the same table."""
        model = collection_model()
        more = SlipstreamEmbeddingCollection(DIMS | {"hour": 24}, 3, name="more")
        more.build(None)
        hours = more.rows("hour")
        ids = keras.Input([5], dtype="int64")
        names = {name: name for name in DIMS}
        output = keras.layers.Dense(1, name="output")
        new = keras.Model(ids, output(keras.layers.Flatten()(more(ids))))
        with pytest.raises(ValueError, match="the same weights in the same order"):
            copy_training(model, new, fields=names | {"hour": None})
        features = keras.Model(ids, more(ids))
        layers = keras.Model(model.inputs, model.get_layer("fields").output)
        copy_training(layers, features, fields={"hour": None})
        for name in DIMS:
            np.testing.assert_array_equal(more.rows(name), rows_of(model)[name])
        np.testing.assert_array_equal(more.rows("hour"), hours)


class TestResizing:
    @pytest.mark.parametrize(
        "sizes", [{"user": 60}, {"user": 45, "item": 20}, {"item": 5}], ids=str
    )
    def test_training_on_is_as_with_layers_of_these_sizes(self, sizes):
        ids, labels = DATA
        ids = ids.copy()
        ids[:, 1] %= 5
        models = [
            make(SlipstreamOptimizer(INNER["adam"]())) for make in (collection_model, layers_model)
        ]
        for model in models:
            fit(model, (ids, labels))
        layer = models[0].get_layer("fields")
        assert resize(layer, models[0].optimizer, sizes) is layer
        for name, size in sizes.items():
            resize(models[1].get_layer(name), models[1].optimizer, size)
        assert layer.input_dims == DIMS | sizes
        assert tuple(layer.weights[0].shape)[0] == layer.num_rows
        for model in models:
            model.compile(model.optimizer, loss="binary_crossentropy")
            fit(model, (ids, labels))
        for name, rows in rows_of(models[1]).items():
            num_kept = min(len(rows), DIMS[name])  # new rows start with values of their own
            np.testing.assert_array_equal(layer.rows(name)[:num_kept], rows[:num_kept])

    def test_rows_sleep_on_with_what_they_hold(self):
        model = collection_model(SlipstreamOptimizer(INNER["adagrad"](), policy=POLICY))
        train_steps(model, DATA, 0, 8)
        asleep, held = num_asleep(model.optimizer), num_held(model.optimizer)
        assert asleep > 0 and held > 0
        layer, row = model.get_layer("fields"), schema.POOL_INTS.index("row")

        def now():
            state = model.optimizer.tables["fields"]
            num_entries = check_pool(state)
            ints = state.pool_ints.numpy()[:num_entries]
            order = np.argsort(ints[:, row])
            return state.table.numpy(), ints[order], state.pool_floats.numpy()[:num_entries][order]

        table, ints, floats = now()
        stats = layer.skip_stats()
        resize(layer, model.optimizer, {"user": 50})
        assert (num_asleep(model.optimizer), num_held(model.optimizer)) == (asleep, held)
        resized, new_ints, new_floats = now()
        np.testing.assert_array_equal(resized[:40], table[:40])
        np.testing.assert_array_equal(resized[50:], table[40:])
        ints[:, row] += np.where(ints[:, row] < 40, 0, 10)
        np.testing.assert_array_equal(new_ints, ints)
        stats["user"] = dataclasses.replace(stats["user"], num_rows=50)
        assert layer.skip_stats() == stats
        np.testing.assert_array_equal(new_floats, floats)

    def test_another_field_or_size_is_refused(self):
        layer = collection_of()
        optimizer = SlipstreamOptimizer("adam")
        for sizes, message in (
            (60, "must be a dict from the names of fields"),
            ({"users": 60}, "no field 'users'"),
            ({"user": 0.5}, "must be a positive integer"),
            ({"user": 0}, "must be a positive integer"),
        ):
            with pytest.raises(ValueError, match=message):
                resize(layer, optimizer, sizes)
        assert resize(layer, optimizer, {"user": 40}) is layer
        with pytest.raises(ValueError, match="shares the rows of 'user': resize that one"):
            resize(collection_of(SHARED_DIMS), optimizer, {"friend": 60})
        assert layer.num_rows == NUM_ROWS

    def test_an_array_of_the_new_range_is_looked_up(self):
        layer = collection_of()
        before = layer.rows("item")
        resize(layer, SlipstreamOptimizer("adam"), {0: 41})
        rows = layer(np.array([[40, 11, 4, 0]]))
        np.testing.assert_array_equal(rows[0, 1], before[11])
        np.testing.assert_array_equal(rows[0, 0], layer.rows("user")[40])


class TestCopying:
    @pytest.mark.parametrize(
        "name, joins",
        in_turn(["momentum", "row_wise_adagrad", "adam", "ftrl"], [True, False]),
    )
    def test_training_goes_on_as_it_would_have(self, joins, name):
        makes = [layers_model, collection_model]
        first, second = makes if joins else makes[::-1]
        model = first(SlipstreamOptimizer(INNER[name]()))
        fit(model, DATA)
        new = second(SlipstreamOptimizer(INNER[name]()))
        assert copy_training(model, new) is new
        assert_same_training(model, new)
        for one in (model, new):
            fit(one, DATA)
        assert_same_training(model, new)

    @pytest.mark.parametrize("joins, on_stale", [(True, "skip"), (False, "defer")])
    def test_rows_sleep_on(self, joins, on_stale):
        policy = sleepy(first_sleep=2, max_sleep=8, on_stale=on_stale)
        makes = [layers_model, collection_model]
        first, second = makes if joins else makes[::-1]
        model = first(SlipstreamOptimizer(INNER["adam"](), policy=policy))
        train_steps(model, DATA, 0, 8)
        new = second(SlipstreamOptimizer(INNER["adam"](), policy=policy))
        copy_training(model, new)
        assert num_asleep(new.optimizer) == num_asleep(model.optimizer) > 0
        assert num_held(model.optimizer) == num_held(new.optimizer) == 0
        for state in new.optimizer.tables.values():
            check_pool(state)
        assert_same_training(model, new)
        pools = [pool_by_field(one) for one in (model, new)]
        for name in DIMS:
            assert_all_equal(pools[0][name], pools[1][name])
        counts = [one.optimizer.skip_stats() for one in (model, new)]
        lookups = [sum(stats.num_lookups for stats in one.values()) for one in counts]
        assert lookups == [DATA[0].size] * 2
        of_collection, of_layers = (new, counts[0]) if joins else (model, counts[1])
        assert of_collection.get_layer("fields").skip_stats() == of_layers
        train_steps(new, DATA, 0, 8)
        assert num_asleep(new.optimizer) > 0

    def test_a_pool_that_is_too_small_keeps_the_most_popular(self, monkeypatch):
        monkeypatch.setattr(table_state, "_MIN_CAPACITY", 8)
        policy = sleepy(first_sleep=2, max_sleep=8, popular_share=0.01)
        model = layers_model(SlipstreamOptimizer(INNER["adagrad"](), policy=policy))
        train_steps(model, DATA, 0, 8)
        new = collection_model(SlipstreamOptimizer(INNER["adagrad"](), policy=policy))
        copy_training(model, new)
        assert check_pool(new.optimizer.tables["fields"]) == 8
        assert_same_training(model, new)
        place = schema.POOL_INTS.index("num_updates")
        before = [one[0][:, place] for one in pool_by_field(model).values()]
        after = [one[0][:, place] for one in pool_by_field(new).values()]
        best = np.sort(np.concatenate(before))[-8:]
        np.testing.assert_array_equal(np.sort(np.concatenate(after)), best)

    def test_weights_alone_without_an_optimizer(self):
        model, new = layers_model(), collection_model()
        model.get_layer("item").set_weights([np.ones([12, 3])])
        copy_training(model, new)
        np.testing.assert_array_equal(rows_of(new)["item"], np.ones([12, 3]))
        assert_all_equal(dense_weights(model), dense_weights(new))

    def test_names_that_differ_are_given(self):
        layer = SlipstreamEmbeddingCollection([40, 12, 20, 1], 3, name="other")
        layer.build(None)
        ids = keras.Input([4], dtype="int64")
        output = keras.layers.Dense(1, name="output")
        new = keras.Model(ids, output(keras.layers.Flatten()(layer(ids))))
        model = layers_model()
        with pytest.raises(ValueError, match=r"no rows named \['0', '1', '2', '3'\]"):
            copy_training(model, new)
        copy_training(model, new, {"0": "user", "1": "item", "other/2": "brand", "3": "shop"})
        np.testing.assert_array_equal(layer.rows(2), rows_of(model)["brand"])
        with pytest.raises(ValueError, match=r"`fields` has names \['5'\]"):
            copy_training(model, new, {"5": "user"})

    def test_what_does_not_fit_is_refused_and_nothing_changes(self):
        model = layers_model(SlipstreamOptimizer(INNER["adam"]()))
        fit(model, DATA)
        new = collection_model(SlipstreamOptimizer(INNER["sgd"]()))
        before = new.get_weights()
        with pytest.raises(ValueError, match="must have the same rule"):
            copy_training(model, new)
        other = SlipstreamEmbeddingCollection(DIMS | {"item": 13}, 3, name="fields")
        with pytest.raises(ValueError, match=r"\(12, 3\), and 'item' of the new model has \(13, 3"):
            copy_training(model, collection_model(None, other))
        with pytest.raises(ValueError, match="0 of the new one: compile it"):
            copy_training(model, collection_model())
        assert_all_equal(new.get_weights(), before)


class TestExport:
    @pytest.mark.parametrize("as_dict", [False, True])
    def test_stock_ops_serve_it_and_refuse_a_bad_id(self, as_dict, tmp_path):
        model = (dict_model if as_dict else collection_model)(None, collection_of())
        batch = as_columns(DATA[0][:5]) if as_dict else DATA[0][:5]
        expected = model.predict(batch, verbose=0)
        path = str(tmp_path / "served")
        model.export(path, **({"verbose": False} if IS_KERAS_3 else {}))
        check_stock_ops(path)
        serve = tf.saved_model.load(path).signatures["serving_default"]
        specs = serve.structured_input_signature[1]

        def answer(inputs):
            # The order of a dict is not kept by every Keras; its names are.
            names = [*specs] if not as_dict else [n for n in specs]
            values = inputs if as_dict else {names[0]: inputs}
            (found,) = serve(**{name: tf.constant(values[name]) for name in names}).values()
            return found

        np.testing.assert_allclose(answer(batch), expected, rtol=1e-6)
        bad = {**batch} if as_dict else batch.copy()
        if as_dict:
            bad["item"] = np.array([3, 12, 0, 0, 0])
        else:
            bad[1, 1] = 12
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=r"field item: id 12 is not in \[0"
        ):
            answer(bad)

    def test_a_delta_has_the_rows_that_changed(self, tmp_path):
        model = collection_model(SlipstreamOptimizer(INNER["adagrad"]()))
        tracker = export.DeltaTracker(model, tmp_path / "marks")
        train_steps(model, DATA, 0, 2)
        export.save_version(model, tmp_path / "1")
        ids = DATA[0][32:48]
        model.train_on_batch(ids, DATA[1][32:48])
        starts = np.cumsum([0, *DIMS.values()])[:-1]
        changed = np.unique(ids + starts)
        np.testing.assert_array_equal(tracker.changed_rows(1)["fields"], changed)
        saved = export.save_delta(model, 1, tmp_path / "delta")
        assert saved.num_rows == {"fields/embeddings": len(changed)}
        apply_delta(str(tmp_path / "1"), str(tmp_path / "delta"), str(tmp_path / "2"))
        serve = tf.saved_model.load(str(tmp_path / "2")).signatures["serving_default"]
        (name,) = serve.structured_input_signature[1]
        (answer,) = serve(**{name: tf.constant(DATA[0])}).values()
        np.testing.assert_allclose(answer, model.predict(DATA[0], verbose=0), rtol=1e-5)
