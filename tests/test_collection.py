"""The collection by itself: lookups, bags, masks, ranges, first values, configs, refusals."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests.models import ids_input, random_table
from tests.test_combiner import TOLERANCE, combine_bag
from tf_slipstream import SlipstreamEmbedding, SlipstreamEmbeddingCollection
from tf_slipstream._compat import keras, tf_variable
from tf_slipstream.combiner import COMBINERS
from tf_slipstream.engine.registry import table_spec

DIMS = {"user": 10, "item": 4, "friend": "user", "shop": 1}
OWN_DIMS = {"user": 10, "item": 4, "shop": 1}
OWNER = {"user": "user", "item": "item", "friend": "user", "shop": "shop"}
IDS = np.array([[1, 2, 3, 0], [9, 3, 0, 0], [9, 0, 9, 0]])


def collection_of(tables, input_dims=None, **kwargs):
    """Returns a collection with these values: a dict from field to `[num_rows, dim]`."""
    dims = input_dims or {name: len(table) for name, table in tables.items()}
    dim = next(iter(tables.values())).shape[1]
    layer = SlipstreamEmbeddingCollection(dims, dim, **{"name": "fields"} | kwargs)
    layer.build(None)
    layer.set_weights([np.concatenate([*tables.values()])])
    return layer


def random_tables(dims=None, dim=3):
    """Returns a dict from field to random values."""
    dims = OWN_DIMS if dims is None else dims
    return {name: random_table(n, dim, seed) for seed, (name, n) in enumerate(dims.items())}


def shared(**kwargs):
    """Returns a collection of `DIMS`, and the tables that it has."""
    tables = random_tables()
    return collection_of(tables, DIMS, **kwargs), tables


class TestArrays:
    @pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", "float32"])
    def test_each_column_reads_its_fields_rows(self, dtype):
        layer, tables = shared()
        rows = layer(tf.cast(IDS, dtype))
        assert rows.shape == (3, 4, 3) and rows.dtype == "float32"
        for column, owner in enumerate(OWNER.values()):
            np.testing.assert_array_equal(rows[:, column], tables[owner][IDS[:, column]])

    def test_lists_of_dims_are_fields_in_order(self):
        tables = random_tables({"0": 5, "1": 2})
        layer = collection_of(tables, [5, 2])
        ids = np.array([[4, 1], [0, 0]])
        np.testing.assert_array_equal(layer(ids)[:, 1], tables["1"][ids[:, 1]])
        assert layer.input_dims == [5, 2]

    @pytest.mark.parametrize("shape", [(4,), (0, 4), (2, 3, 4), (2, 1, 2, 4)], ids=str)
    def test_ids_have_any_axes_before_that_of_the_fields(self, shape):
        layer, tables = shared()
        ids = np.random.default_rng(1).integers([10, 4, 10, 1], size=shape)
        rows = layer(ids)
        assert rows.shape == (*shape, 3)
        np.testing.assert_array_equal(rows[..., 2, :], tables["user"][ids[..., 2]])

    @pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 5)], ids=str)
    def test_another_number_of_fields_is_refused(self, shape):
        layer, _ = shared()
        with pytest.raises(ValueError, match=r"'fields' has 4 fields.*\[batch, 4\].*got a Tensor"):
            layer(np.zeros(shape, int))

    @pytest.mark.parametrize("ids", [tf.ragged.constant([[1], [2, 3]]), tf.sparse.eye(4)], ids=str)
    def test_ragged_and_sparse_arrays_are_refused(self, ids):
        layer, _ = shared()
        with pytest.raises(ValueError, match="a dict from fields to their ids"):
            layer(ids)

    @pytest.mark.parametrize("combiner", COMBINERS)
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("mask_zero", [False, True])
    @pytest.mark.parametrize("bag", [None, 3])
    def test_a_combiner_takes_bags_or_one_id_a_field(self, combiner, weighted, mask_zero, bag):
        layer, tables = shared(combiner=combiner, mask_zero=mask_zero)
        rng = np.random.default_rng(2)
        ids = rng.integers(np.array([10, 4, 10, 1])[:, None], size=(5, 4, bag or 1))
        weights = rng.uniform(0.5, 2, size=ids.shape).astype("float32")
        given = [ids, weights] if bag else [ids[..., 0], weights[..., 0]]
        rows = layer(*given[: 1 + weighted])
        assert rows.shape == (5, 4, 3)
        weights = weights if weighted else np.ones(ids.shape)
        weights = weights * (ids != 0) if mask_zero else weights
        for example in range(5):
            for column, owner in enumerate(OWNER.values()):
                bag_ids, bag_weights = ids[example, column], weights[example, column]
                expected = combine_bag(tables[owner][bag_ids], bag_weights, combiner)
                np.testing.assert_allclose(
                    rows[example, column], expected, rtol=TOLERANCE, atol=TOLERANCE
                )

    def test_a_combiner_takes_no_other_axes(self):
        layer, _ = shared(combiner="sum")
        with pytest.raises(ValueError, match=r"\[batch, 4\] or \[batch, 4, bag\]"):
            layer(np.zeros([2, 3, 4, 1], int))


class TestDicts:
    def test_each_field_is_like_a_layer_of_its_own(self):
        layer, tables = shared()
        inputs = {
            "item": tf.constant([3, 0]),
            "user": tf.ragged.constant([[1], [2, 9, 9]], dtype=tf.int64),
            "friend": tf.sparse.from_dense([[0, 5], [1, 0]]),
            "shop": np.zeros([2, 2, 2], "uint8"),
        }
        outputs = layer(inputs)
        assert [*outputs] == [*inputs]
        for name, ids in inputs.items():
            single = SlipstreamEmbedding(len(tables[OWNER[name]]), 3)
            single.build(None)
            single.set_weights([tables[OWNER[name]]])
            expected = single(ids)
            if name == "user":
                assert outputs[name].to_list() == expected.to_list()
            else:
                np.testing.assert_array_equal(outputs[name], expected)

    def test_fields_may_be_absent_and_have_batches_of_their_own(self):
        layer, tables = shared()
        outputs = layer({"item": np.array([1, 2, 3]), "user": np.array([[7]])})
        np.testing.assert_array_equal(outputs["item"], tables["item"][[1, 2, 3]])
        np.testing.assert_array_equal(outputs["user"], tables["user"][[[7]]])
        np.testing.assert_array_equal(layer({"shop": np.array([0])})["shop"], tables["shop"])

    def test_empty_ids_give_no_rows(self):
        layer, _ = shared()
        outputs = layer({"item": np.zeros([0], int), "user": np.zeros([2, 0], int)})
        assert outputs["item"].shape == (0, 3) and outputs["user"].shape == (2, 0, 3)

    def test_of_a_list_fields_are_a_list_or_a_dict_by_place_or_name(self):
        tables = random_tables({"0": 5, "1": 2})
        layer = collection_of(tables, [5, 2])
        first, second = layer([np.array([4, 4]), np.array([[1]])])
        np.testing.assert_array_equal(first, tables["0"][[4, 4]])
        np.testing.assert_array_equal(second, tables["1"][[[1]]])
        for key in (1, "1"):
            np.testing.assert_array_equal(layer({key: np.array([1])})[key], tables["1"][[1]])
        with pytest.raises(ValueError, match="ids of its 2 fields, got a list of 1"):
            layer([np.array([4, 4])])

    @pytest.mark.parametrize("combiner", COMBINERS)
    @pytest.mark.parametrize("weighted", [False, True])
    def test_bags_of_any_kind_are_combined(self, combiner, weighted):
        layer, tables = shared(combiner=combiner, mask_zero=True)
        inputs = {
            "user": tf.ragged.constant([[1, 5, 5], [], [0, 9]], dtype=tf.int64),
            "item": tf.sparse.from_dense([[1, 2], [0, 3], [0, 0]]),
            "friend": tf.constant([[1, 2], [3, 4], [0, 0]]),
            "shop": tf.constant([0, 0, 0]),
        }
        weights = {
            "user": inputs["user"].with_values(tf.constant([0.5, 2.0, 1.0, 3.0, 4.0])),
            "item": inputs["item"].with_values(tf.constant([0.5, 2.0, 1.5])),
            "friend": tf.constant([[0.5, 1.0], [2.0, 3.0], [1.0, 1.0]]),
            "shop": tf.constant([1.0, 2.0, 3.0]),
        }
        outputs = layer(inputs, weights) if weighted else layer(inputs)
        for name, ids in inputs.items():
            assert outputs[name].shape == (3, 3)
            if name == "shop":
                np.testing.assert_array_equal(outputs[name], np.zeros([3, 3]))
                continue
            single = SlipstreamEmbedding(
                len(tables[OWNER[name]]), 3, combiner=combiner, mask_zero=True
            )
            single.build(None)
            single.set_weights([tables[OWNER[name]]])
            expected = single(ids, weights[name] if weighted else None)
            np.testing.assert_array_equal(outputs[name], expected)

    def test_other_fields_are_refused(self):
        layer, _ = shared()
        with pytest.raises(ValueError, match="no field 'users'; there are .*'user'"):
            layer({"users": np.array([1])})
        with pytest.raises(ValueError, match="empty dict"):
            layer({})

    def test_weights_must_be_like_their_ids(self):
        layer, _ = shared(combiner="sum")
        ids = {"user": np.array([[1]]), "item": np.array([[1]])}
        with pytest.raises(ValueError, match=r"with the fields \['user', 'item'\]"):
            layer(ids, {"user": np.array([[1.0]])})
        with pytest.raises(ValueError, match="Field 'item' of .*of the kind and shape of its ids"):
            layer(ids, {"user": np.array([[1.0]]), "item": np.array([[1.0, 2.0]])})
        with pytest.raises(ValueError, match="Construct it with `combiner`"):
            shared()[0]({"user": np.array([1])}, {"user": np.array([1.0])})


FIELDS = st.dictionaries(
    st.text("abc", min_size=1, max_size=2), st.integers(1, 6), min_size=1, max_size=5
)


class TestProperties:
    @hypothesis.given(
        dims=FIELDS,
        dim=st.integers(1, 9),
        batch=st.integers(0, 4),
        index_dtype=st.sampled_from(["int32", "int64"]),
        data=st.data(),
    )
    @hypothesis.settings(max_examples=30)
    def test_rows_and_gradients_are_those_of_numpy(self, dims, dim, batch, index_dtype, data):
        tables = random_tables(dims, dim)
        layer = collection_of(tables)
        rng = np.random.default_rng(data.draw(st.integers(0, 99)))
        ids = rng.integers([*dims.values()], size=(batch, len(dims))).astype(index_dtype)
        upstream = rng.normal(size=(batch, len(dims), dim)).astype("float32")
        variable = tf_variable(layer.trainable_weights[0])
        starts = np.cumsum([0, *dims.values()][:-1])
        expected = np.zeros(variable.shape)
        np.add.at(expected, ids + starts, upstream)
        columns = {name: ids[:, column] for column, name in enumerate(dims)}
        for inputs in (ids, columns):
            with tf.GradientTape() as tape:
                rows = layer(inputs)
                if isinstance(rows, dict):
                    rows = tf.stack([*rows.values()], axis=1)
                loss = tf.reduce_sum(rows * upstream)
            for column, name in enumerate(dims):
                np.testing.assert_array_equal(rows[:, column], tables[name][ids[:, column]])
            grad = tape.gradient(loss, variable)
            assert isinstance(grad, tf.IndexedSlices)
            np.testing.assert_allclose(tf.convert_to_tensor(grad), expected, rtol=1e-5, atol=1e-6)

    @hypothesis.given(dims=FIELDS, data=st.data())
    @hypothesis.settings(max_examples=20)
    def test_any_id_outside_its_field_is_an_error(self, dims, data):
        layer = collection_of(random_tables(dims))
        column = data.draw(st.integers(0, len(dims) - 1))
        name = [*dims][column]
        far = st.integers(-(2**63), 2**63 - 1)
        near = st.integers(-8, 8)
        bad = data.draw((far | near).filter(lambda one: not 0 <= one < dims[name]))
        ids = np.zeros([3, len(dims)], "int64")
        ids[1, column] = bad
        message = rf"field {name}: id {bad} is not in \[0, {dims[name]}\)"
        for inputs in (ids, {name: ids[:, column]}):
            with pytest.raises(tf.errors.InvalidArgumentError, match=message):
                layer(inputs)


class TestBadIds:
    @pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
    @pytest.mark.parametrize("bad_id", [4, -1])
    @pytest.mark.parametrize("in_graph", [False, True])
    @pytest.mark.parametrize("as_dict", [False, True])
    @pytest.mark.parametrize("training", [False, True])
    def test_errors_name_layer_field_id_and_range(self, dtype, bad_id, in_graph, as_dict, training):
        layer, _ = shared()
        call = tf.function(layer.__call__) if in_graph else layer
        ids = tf.constant([[1, bad_id, 3, 0]], dtype)
        inputs = dict(zip(DIMS, tf.unstack(ids, axis=1))) if as_dict else ids
        message = rf"fields: field item: id {bad_id} is not in \[0, 4\)"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            call(inputs, training=training)

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("kind", ["ragged", "sparse"])
    def test_bags_are_checked_too(self, kind, training):
        layer, _ = shared(combiner="mean")
        ids = tf.ragged.constant([[1], [], [2, 4]])
        ids = ids if kind == "ragged" else ids.to_sparse()
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"field item: id 4 is not in"):
            layer({"item": ids, "user": ids}, training=training)

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("dtype", [tf.int64, tf.uint32, tf.uint64])
    def test_ids_past_32_bits_do_not_wrap_around(self, dtype, training):
        bad_id = 2**32 - 1 if dtype == tf.uint32 else 2**32 + 1
        layer = SlipstreamEmbeddingCollection([10, 10], 3)
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"field 1: id {bad_id} is not in"):
            layer(tf.constant([[1, bad_id]], dtype), training=training)

    def test_no_variable_changes_in_a_step_with_one(self):
        from tf_slipstream import SlipstreamOptimizer

        layer, tables = shared()
        ids = keras.Input([4], dtype="int64")
        model = keras.Model(ids, keras.layers.Dense(1)(keras.layers.Flatten()(layer(ids))))
        model.compile(SlipstreamOptimizer("adam"), loss="mse")
        before = model.get_weights()
        with pytest.raises(tf.errors.InvalidArgumentError, match="field shop: id 1 is not in"):
            model.train_on_batch(np.array([[1, 1, 1, 1]]), np.ones([1, 1]))
        for one, other in zip(before, model.get_weights()):
            np.testing.assert_array_equal(one, other)


class TestGraph:
    @pytest.mark.parametrize("as_dict", [False, True])
    def test_there_is_one_gather_and_nothing_of_the_tables_size(self, as_dict):
        layer, _ = shared()
        variable = tf_variable(layer.weights[0])

        def step(ids):
            with tf.GradientTape() as tape:
                tape.watch(variable)
                rows = layer(dict(zip(DIMS, tf.unstack(ids, axis=1))) if as_dict else ids)
                loss = tf.add_n([tf.reduce_sum(one) for one in tf.nest.flatten(rows)])
            grad = tape.gradient(loss, variable)
            assert isinstance(grad, tf.IndexedSlices)
            return grad.values, grad.indices

        graph = tf.function(step).get_concrete_function(tf.TensorSpec([None, 4], tf.int64)).graph
        ops = graph.get_operations()
        assert [op.type for op in ops].count("ResourceGather") == 1
        assert "ReadVariableOp" not in {op.type for op in ops}
        assert not [op for op in ops if any(out.shape == [15, 3] for out in op.outputs)]

    def test_shapes_are_known_before_there_are_values(self):
        layer, _ = shared()

        def call(ids, user):
            assert layer(ids).shape.as_list() == [None, 4, 3]
            assert layer({"user": user})["user"].shape.as_list() == [None, 7, 3]
            return layer(ids)

        ids, user = tf.TensorSpec([None, 4], tf.int32), tf.TensorSpec([None, 7], tf.int64)
        tf.function(call).get_concrete_function(ids, user)
        assert layer.compute_output_shape((None, 4)) == (None, 4, 3)
        shapes = layer.compute_output_shape({"user": (None, 7), "item": (None,)})
        assert shapes == {"user": (None, 7, 3), "item": (None, 3)}
        summed = SlipstreamEmbeddingCollection([5, 2], 3, combiner="sum")
        assert summed.compute_output_shape((None, 2)) == (None, 2, 3)
        assert summed.compute_output_shape((None, 2, 9)) == (None, 2, 3)
        shapes = summed.compute_output_shape([(None, 7), (None,)])
        assert shapes == [(None, 3), (None, 3)]

    @pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
    def test_mixed_precision_casts_the_rows_alone(self, policy):
        layer, tables = shared(dtype=policy)
        rows = layer(IDS)
        assert rows.dtype == layer.compute_dtype and layer.weights[0].dtype == "float32"
        outputs = layer({"user": IDS[:, 0]})
        np.testing.assert_array_equal(outputs["user"], rows[:, 0])

    def test_a_bfloat16_table_has_half_the_size(self):
        layer = SlipstreamEmbeddingCollection(DIMS, 3, dtype="bfloat16")
        assert layer(IDS).dtype == "bfloat16"
        assert tf_variable(layer.weights[0]).dtype == "bfloat16"
        assert layer.rows("item").shape == (4, 3)
        with pytest.raises(ValueError, match="got dtype 'float64'"):
            SlipstreamEmbeddingCollection(DIMS, 3, dtype="float64")

    def test_the_variable_is_a_table(self):
        layer, _ = shared()
        assert len(layer.weights) == 1 and tuple(layer.weights[0].shape) == (15, 3)
        assert table_spec(tf_variable(layer.weights[0])).name == "fields"


class TestMask:
    def test_id_0_of_each_field_is_masked(self):
        layer, _ = shared(mask_zero=True)
        np.testing.assert_array_equal(layer.compute_mask(IDS), IDS != 0)
        ragged = tf.ragged.constant([[3, 0], [1]])
        masks = layer.compute_mask({"user": ragged, "item": np.array([0, 1])})
        assert masks["user"].to_list() == [[True, False], [True]]
        np.testing.assert_array_equal(masks["item"], [False, True])
        assert shared()[0].compute_mask(IDS) is None
        assert shared(mask_zero=True, combiner="sum")[0].compute_mask(IDS) is None

    def test_layers_after_it_get_the_mask(self):
        layer, tables = shared(mask_zero=True)
        pooled = keras.layers.GlobalAveragePooling1D()(layer(np.array([[1, 0, 3, 0]])))
        np.testing.assert_allclose(pooled[0], tables["user"][[1, 3]].mean(axis=0), rtol=1e-6)

    @pytest.mark.parametrize("as_dict", [False, True])
    def test_a_functional_model_masks_as_the_layer_does(self, as_dict):
        layer, tables = shared(mask_zero=True)
        pool = keras.layers.GlobalAveragePooling1D()
        if as_dict:
            ids = {"user": keras.Input([3], dtype="int64", name="user")}
            model = keras.Model(ids, pool(layer(ids)["user"]))
            batch = {"user": np.array([[1, 0, 3]])}
        else:
            ids = keras.Input([4], dtype="int64")
            model, batch = keras.Model(ids, pool(layer(ids))), np.array([[1, 0, 3, 0]])
        expected = tables["user"][[1, 3]].mean(axis=0)
        np.testing.assert_allclose(model(batch)[0], expected, rtol=1e-6)


class TestModels:
    @pytest.mark.parametrize("combiner", [None, "mean"])
    def test_functional_models_take_dicts_of_any_kind(self, combiner):
        layer, _ = shared(combiner=combiner)
        inputs = {
            "user": ids_input("ragged", None, name="user"),
            "item": keras.Input([2], dtype="int32", name="item"),
            "shop": keras.Input([], dtype="int64", name="shop"),
        }
        outputs = layer(inputs)
        assert [*outputs] == [*inputs]
        assert tuple(outputs["item"].shape) == ((None, 3) if combiner else (None, 2, 3))
        assert tuple(outputs["shop"].shape) == (None, 3)
        batch = {
            "user": tf.ragged.constant([[1, 2], [3]], dtype=tf.int64),
            "item": tf.constant([[1, 2], [3, 3]]),
            "shop": tf.constant([0, 0], tf.int64),
        }
        predicted, expected = keras.Model(inputs, outputs)(batch), layer(batch)
        for name in batch:
            ours, theirs = predicted[name], expected[name]
            if isinstance(theirs, tf.RaggedTensor):
                ours, theirs = ours.to_tensor(), theirs.to_tensor()
            np.testing.assert_array_equal(ours, theirs)

    def test_functional_models_take_weights(self):
        layer, tables = shared(combiner="sum")
        ids = {"user": keras.Input([2], dtype="int64", name="user")}
        weights = {"user": keras.Input([2], name="weights")}
        outputs = layer(ids, weights=weights)["user"]
        model = keras.Model([ids["user"], weights["user"]], outputs)
        predicted = model.predict([np.array([[1, 9]]), np.array([[1.0, 2.0]])], verbose=0)
        expected = tables["user"][[1]] + 2 * tables["user"][[9]]
        np.testing.assert_allclose(predicted, expected, rtol=TOLERANCE)

    def test_subclassed_models_find_the_table(self):
        class Model(keras.Model):
            def __init__(self):
                super().__init__()
                self.fields = SlipstreamEmbeddingCollection(DIMS, 3, name="fields")

            def call(self, inputs):
                return tf.add_n([*self.fields(inputs).values()])

        model = Model()
        batch = {"user": np.array([1, 2]), "item": np.array([3, 3])}
        predicted = model.predict(batch, verbose=0)
        (weight,) = model.trainable_weights
        assert table_spec(weight) is table_spec(tf_variable(weight)) is not None
        rows = {name: model.fields.rows(name) for name in batch}
        expected = rows["user"][batch["user"]] + rows["item"][batch["item"]]
        np.testing.assert_allclose(predicted, expected, rtol=TOLERANCE)


class TestFirstValues:
    @pytest.mark.parametrize("name", ["RandomUniform", "RandomNormal", "GlorotUniform"])
    def test_a_fields_values_do_not_depend_on_the_others(self, name):
        def rows(dims, seed=3):
            initializer = getattr(keras.initializers, name)(seed=seed)
            layer = SlipstreamEmbeddingCollection(dims, 3, embeddings_initializer=initializer)
            layer.build(None)
            return layer.rows("item")

        first = rows({"user": 10, "item": 4})
        np.testing.assert_array_equal(first, rows({"item": 4}))
        np.testing.assert_array_equal(first, rows({"a": 2, "item": 4, "b": "a"}))
        assert not np.array_equal(first, rows({"item": 4}, seed=4))

    def test_fields_of_one_size_differ(self):
        initializer = keras.initializers.RandomUniform(seed=3)
        layer = SlipstreamEmbeddingCollection([4, 4], 3, embeddings_initializer=initializer)
        layer.build(None)
        assert not np.array_equal(layer.rows(0), layer.rows(1))

    def test_random_seeds_repeat_the_values(self):
        def rows(dims):
            keras.utils.set_random_seed(5)
            layer = SlipstreamEmbeddingCollection(dims, 3)
            layer.build(None)
            return layer.rows("item")

        np.testing.assert_array_equal(rows({"item": 4}), rows({"user": 10, "item": 4}))

    def test_a_fields_own_initializer_gives_the_values_of_a_layer_of_its_own(self):
        def initializer():
            return keras.initializers.RandomNormal(seed=7)

        layer = SlipstreamEmbeddingCollection(
            DIMS, 3, embeddings_initializer={"item": initializer(), "shop": "ones"}
        )
        layer.build(None)
        single = SlipstreamEmbedding(4, 3, embeddings_initializer=initializer())
        single.build(None)
        np.testing.assert_array_equal(layer.rows("item"), single.get_weights()[0])
        np.testing.assert_array_equal(layer.rows("shop"), np.ones([1, 3]))
        assert abs(layer.rows("user")).max() <= 0.05  # "uniform"

    def test_constants_are_of_a_field_or_of_the_whole_table(self):
        tables = random_tables()
        constants = {n: keras.initializers.Constant(table) for n, table in tables.items()}
        whole = keras.initializers.Constant(np.concatenate([*tables.values()]))
        for given in (constants, whole):
            layer = SlipstreamEmbeddingCollection(DIMS, 3, embeddings_initializer=given)
            layer.build(None)
            for name, table in tables.items():
                np.testing.assert_array_equal(layer.rows(name), table)

    def test_initializers_of_no_field_are_refused(self):
        with pytest.raises(ValueError, match=r"has one for \['friend'\]"):
            SlipstreamEmbeddingCollection(DIMS, 3, embeddings_initializer={"friend": "ones"})


class TestRows:
    def test_rows_are_those_of_the_field(self):
        layer, tables = shared()
        for place, (name, owner) in enumerate(OWNER.items()):
            np.testing.assert_array_equal(layer.rows(name), tables[owner])
            np.testing.assert_array_equal(layer.rows(place), tables[owner])
        with pytest.raises(ValueError, match="no field 'x'"):
            layer.rows("x")
        with pytest.raises(ValueError, match="has no rows yet"):
            SlipstreamEmbeddingCollection(DIMS, 3).rows("user")


class TestConfig:
    ARGUMENTS = {
        "embeddings_regularizer": "l2",
        "embeddings_constraint": "non_neg",
        "mask_zero": True,
        "combiner": "mean",
        "policy": None,
        "name": "fields",
        "dtype": "mixed_bfloat16",
        "trainable": False,
    }

    @pytest.mark.parametrize("dims", [DIMS, [10, 4]], ids=["dict", "list"])
    @pytest.mark.parametrize("initializer", ["ones", {"user": "zeros", "item": "ones"}], ids=str)
    def test_a_layer_is_made_again_from_its_config(self, dims, initializer):
        if isinstance(dims, list) and isinstance(initializer, dict):
            initializer = {"1": "ones"}
        layer = SlipstreamEmbeddingCollection(
            dims, 3, embeddings_initializer=initializer, **self.ARGUMENTS
        )
        config = layer.get_config()
        again = SlipstreamEmbeddingCollection.from_config(config)
        assert again.get_config() == config
        assert again.input_dims == dims and [*again.layout.names] == [*layer.layout.names]
        assert (again.combiner, again.policy, again.mask_zero) == ("mean", None, True)
        assert (again.name, again.trainable, again.compute_dtype) == ("fields", False, "bfloat16")
        assert isinstance(again.embeddings_constraint, keras.constraints.NonNeg)
        again.build(None)
        np.testing.assert_array_equal(again.rows(1), np.ones([4, 3]))

    @pytest.mark.parametrize(
        "dims, message",
        [
            ([], "must be a list of the number of rows"),
            (10, "must be a list of the number of rows"),
            ([3, 0], r"`input_dims\['1'\]` must be a positive integer"),
            ({"a": 2.5}, "must be a positive integer"),
            ({"a": True}, "must be a positive integer"),
            ({1: 3}, "must have a string for its name"),
            ({"a": "b"}, "shares the rows of 'b', which must be a field with rows of its own"),
            ({"a": 3, "b": "a", "c": "b"}, "'c' of `input_dims` shares the rows of 'b'"),
        ],
        ids=str,
    )
    def test_dims_that_are_none_are_refused(self, dims, message):
        with pytest.raises(ValueError, match=message):
            SlipstreamEmbeddingCollection(dims, 3)

    def test_other_arguments_that_make_no_sense_are_refused(self):
        with pytest.raises(ValueError, match="`output_dim` must be a positive integer"):
            SlipstreamEmbeddingCollection([3], 0)
        with pytest.raises(ValueError, match="`combiner` must be None or one of"):
            SlipstreamEmbeddingCollection([3], 2, combiner="max")

    def test_a_field_may_be_shared_before_it_is_named(self):
        layer = SlipstreamEmbeddingCollection({"friend": "user", "user": 10}, 3)
        rows = layer(np.array([[1, 1]]))
        np.testing.assert_array_equal(rows[:, 0], rows[:, 1])
        assert layer.num_rows == 10
