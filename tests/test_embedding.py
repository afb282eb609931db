"""The layer by itself: lookups, combiners, dtypes, refusals, and what its graph holds."""

import types

import numpy as np
import pytest
import tensorflow as tf

from tests.models import embedding_of, ids_input, random_table
from tests.test_combiner import TOLERANCE, combine_bag
from tf_slipstream import SlipstreamEmbedding, _compat, table_layer
from tf_slipstream._compat import IS_KERAS_3, keras, tf_variable
from tf_slipstream.combiner import COMBINERS
from tf_slipstream.engine.registry import table_spec

BAGS = [[1, 5, 5], [], [9], [0, 3]]
BAG_WEIGHTS = [[0.5, 2.0, 1.0], [], [3.0], [0.25, 1.5]]
NESTED_BAGS = [[[1, 5], []], [], [[9], [0, 3, 3], [2]]]
MIXED_POLICIES = ["mixed_bfloat16", "mixed_float16"]


def combine_all(table, bags, weights, combiner):
    """Returns `[num_bags, dim]`, the rows of each bag of ids combined in NumPy."""
    return np.stack([combine_bag(table[bag], w, combiner) for bag, w in zip(bags, weights)])


def dense(tensor):
    return tensor.to_tensor() if isinstance(tensor, tf.RaggedTensor) else tensor


def ones_like(bags):
    return [np.ones(len(bag)) for bag in bags]


def ops_of(function, *specs):
    """Returns every op of a traced function, which calls no other."""
    graph = tf.function(function).get_concrete_function(*specs).graph
    assert not graph.as_graph_def().library.function
    return graph.get_operations()


def compiled_graphs(monkeypatch):
    """Returns a list of the graphs that the layer's module compiles from here on."""
    graphs, function = [], tf.function

    def traced(*args, **kwargs):
        made = function(*args, **kwargs)
        graphs.append(made.get_concrete_function().graph)
        return made

    monkeypatch.setattr(table_layer.tf, "function", traced)
    return graphs


class TestLookup:
    @pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", "float32"])
    @pytest.mark.parametrize(
        "ids",
        [3, [], [9], [[0, 9], [4, 4]], np.zeros([2, 0]), np.zeros([0, 3]), [[[1, 2]], [[3, 0]]]],
        ids=str,
    )
    def test_rows_are_those_of_keras_embedding(self, ids, dtype):
        table = random_table()
        stock = keras.layers.Embedding(10, 3)
        stock.build((None,))
        stock.set_weights([table])
        ids = tf.cast(np.array(ids), dtype)
        rows = embedding_of(table)(ids)
        assert rows.dtype == "float32"
        assert rows.shape == (*ids.shape, 3)
        np.testing.assert_array_equal(rows, stock(ids))

    @pytest.mark.parametrize("num_rows, dim", [(1, 1), (1, 5), (7, 1), (64, 33)])
    def test_tables_of_any_size(self, num_rows, dim):
        table = random_table(num_rows, dim)
        ids = [0, num_rows - 1, 0]
        np.testing.assert_array_equal(embedding_of(table)(np.array(ids)), table[ids])

    def test_float_ids_are_truncated(self):
        table = random_table()
        np.testing.assert_array_equal(embedding_of(table)(tf.constant([2.9, 0.4])), table[[2, 0]])

    def test_ragged_ids_give_ragged_rows(self):
        table = random_table()
        for bags in (BAGS, NESTED_BAGS):
            ids = tf.ragged.constant(bags, dtype=tf.int64)
            rows = embedding_of(table)(ids)
            assert isinstance(rows, tf.RaggedTensor)
            np.testing.assert_array_equal(rows.flat_values, table[ids.flat_values.numpy()])
            for splits, expected in zip(rows.nested_row_splits, ids.nested_row_splits):
                np.testing.assert_array_equal(splits, expected)

    def test_an_id_absent_from_a_sparse_tensor_is_0(self):
        table = random_table()
        ids = tf.sparse.from_dense(np.array([[1, 0, 9], [0, 0, 0]], np.int64))
        rows = embedding_of(table)(ids)
        np.testing.assert_array_equal(rows, table[tf.sparse.to_dense(ids).numpy()])

    def test_shapes_are_known_before_there_are_values(self):
        layer = SlipstreamEmbedding(10, 3)
        assert tuple(layer.compute_output_shape((None, 4))) == (None, 4, 3)
        summed = SlipstreamEmbedding(10, 3, combiner="sum")
        assert tuple(summed.compute_output_shape((None, None))) == (None, 3)
        assert tuple(summed.compute_output_shape((None, 2, 4))) == (None, 2, 3)

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.int32)])
        def shapes(ids):
            assert layer(ids).shape.as_list() == [None, 4, 3]
            assert summed(ids).shape.as_list() == [None, 3]
            return tf.shape(layer(ids))

        np.testing.assert_array_equal(shapes(np.zeros([2, 4], np.int32)), [2, 4, 3])


class TestCombiner:
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("combiner", COMBINERS)
    @pytest.mark.parametrize("kind", ["ragged", "sparse"])
    def test_bags_equal_numpy_and_tf_nn(self, kind, combiner, weighted):
        table = random_table()
        ids = tf.ragged.constant(BAGS, dtype=tf.int64)
        weights = tf.ragged.constant(BAG_WEIGHTS)
        arguments = [ids, weights] if weighted else [ids]
        if kind == "sparse":
            arguments = [argument.to_sparse() for argument in arguments]
        bags = embedding_of(table, combiner=combiner)(*arguments)
        assert bags.shape == (4, 3)

        expected = combine_all(table, BAGS, BAG_WEIGHTS if weighted else ones_like(BAGS), combiner)
        np.testing.assert_allclose(bags, expected, rtol=TOLERANCE, atol=TOLERANCE)
        of_tf = tf.nn.safe_embedding_lookup_sparse(
            table, ids.to_sparse(), weights.to_sparse() if weighted else None, combiner=combiner
        )
        np.testing.assert_allclose(bags, of_tf, rtol=TOLERANCE, atol=TOLERANCE)

    @pytest.mark.parametrize("combiner", COMBINERS)
    def test_weights_of_any_sign_equal_tf_nn(self, combiner):
        # Without the pruning of weights that are not positive in safe_embedding_lookup_sparse.
        table = random_table()
        ids = tf.sparse.from_dense([[1, 5, 2], [9, 0, 4]])
        weights = ids.with_values([0.5, -2.0, 0.0, 4.0, -1.0])
        np.testing.assert_allclose(
            embedding_of(table, combiner=combiner)(ids, weights),
            tf.nn.embedding_lookup_sparse(table, ids, weights, combiner=combiner),
            rtol=TOLERANCE,
            atol=TOLERANCE,
        )

    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("combiner", COMBINERS)
    @pytest.mark.parametrize("shape", [(2, 4), (3, 1), (2, 3, 2)], ids=str)
    def test_dense_ids_are_combined_along_their_last_axis(self, shape, combiner, weighted):
        rng = np.random.default_rng(1)
        table = random_table()
        ids = rng.integers(10, size=shape)
        weights = rng.uniform(0.5, 2, size=shape).astype("float32")
        arguments = [tf.constant(ids), tf.constant(weights)]
        bags = embedding_of(table, combiner=combiner)(*arguments[: 1 + weighted])
        expected = combine_all(
            table,
            ids.reshape(-1, shape[-1]),
            (weights if weighted else np.ones(shape)).reshape(-1, shape[-1]),
            combiner,
        )
        assert bags.shape == (*shape[:-1], 3)
        np.testing.assert_allclose(
            bags, expected.reshape(bags.shape), rtol=TOLERANCE, atol=TOLERANCE
        )

    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("combiner", COMBINERS)
    def test_nested_ragged_bags_are_combined_along_their_last_axis(self, combiner, weighted):
        table = random_table()
        ids = tf.ragged.constant(NESTED_BAGS)
        weights = tf.ragged.map_flat_values(lambda x: tf.cast(x, tf.float32) + 0.5, ids)
        bags = embedding_of(table, combiner=combiner)(*[ids, weights][: 1 + weighted])
        inner_weights = weights.values.to_list() if weighted else ones_like(ids.values.to_list())
        expected = combine_all(table, ids.values.to_list(), inner_weights, combiner)
        assert bags.row_lengths().numpy().tolist() == [2, 0, 3]
        np.testing.assert_allclose(bags.values, expected, rtol=TOLERANCE, atol=TOLERANCE)

    def test_a_ragged_tensor_of_equal_bags_is_combined_along_its_last_axis(self):
        table = random_table()
        pairs = np.array([[1, 2], [3, 3], [9, 0]])
        ids = tf.RaggedTensor.from_row_lengths(pairs, [2, 0, 1])
        bags = embedding_of(table, combiner="sum")(ids)
        assert bags.row_lengths().numpy().tolist() == [2, 0, 1]
        np.testing.assert_allclose(bags.values, table[pairs].sum(axis=1), rtol=TOLERANCE)

    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("combiner", COMBINERS)
    def test_sparse_bags_of_rank_3_are_combined_along_their_last_axis(self, combiner, weighted):
        table = random_table()
        # An explicit id 0, an empty bag, and an example with empty bags only.
        indices = [[0, 0, 0], [0, 0, 2], [0, 2, 1], [2, 1, 0]]
        ids = tf.SparseTensor(indices, tf.constant([4, 0, 7, 7], tf.int64), [3, 3, 3])
        weights = ids.with_values(tf.constant([0.5, 2.0, 3.0, 0.25]))
        bags = embedding_of(table, combiner=combiner)(*[ids, weights][: 1 + weighted])
        expected = np.zeros([3, 3, 3])
        first = [0.5, 2.0] if weighted else [1, 1]
        expected[0, 0] = combine_bag(table[[4, 0]], first, combiner)
        expected[0, 2] = combine_bag(table[[7]], [3.0 if weighted else 1], combiner)
        expected[2, 1] = combine_bag(table[[7]], [0.25 if weighted else 1], combiner)
        np.testing.assert_allclose(bags, expected, rtol=TOLERANCE, atol=TOLERANCE)

    @pytest.mark.parametrize("combiner", COMBINERS)
    @pytest.mark.parametrize("kind", ["dense", "ragged", "sparse"])
    def test_padding_is_left_out_of_its_bag(self, kind, combiner):
        table = random_table()
        ids = tf.constant([[3, 0, 7, 0], [0, 0, 0, 0]])
        if kind == "ragged":
            ids = tf.RaggedTensor.from_tensor(ids)
        elif kind == "sparse":
            indices = tf.where(tf.ones_like(ids, tf.bool))
            ids = tf.SparseTensor(indices, tf.reshape(ids, [-1]), ids.shape)
        bags = embedding_of(table, combiner=combiner, mask_zero=True)(ids)
        expected = [combine_bag(table[[3, 7]], [1, 1], combiner), np.zeros(3)]
        np.testing.assert_allclose(bags, expected, rtol=TOLERANCE, atol=TOLERANCE)

    @pytest.mark.parametrize("combiner", COMBINERS)
    def test_empty_batches_give_no_bags(self, combiner):
        layer = SlipstreamEmbedding(10, 3, combiner=combiner)
        assert layer(tf.zeros([0, 4], tf.int64)).shape == (0, 3)
        assert layer(tf.RaggedTensor.from_row_splits(tf.zeros([0], tf.int64), [0])).shape == (0, 3)
        nothing = tf.zeros([0, 3], tf.int64), tf.zeros([0], tf.int64)
        assert layer(tf.SparseTensor(*nothing, [0, 2, 4])).shape == (0, 2, 3)

    @pytest.mark.parametrize("kind", ["dense", "scalar", "sparse", "functional"])
    def test_ids_of_one_axis_are_refused_with_a_combiner(self, kind):
        ids = {
            "dense": tf.constant([1, 2]),
            "scalar": tf.constant(1),
            "sparse": tf.SparseTensor([[0], [2]], [1, 2], [3]),
            "functional": keras.Input([], dtype="int32"),
        }[kind]
        layer = SlipstreamEmbedding(10, 3, combiner="sum", name="tags")
        with pytest.raises(ValueError, match="'tags' has combiner 'sum'.*at least two axes"):
            layer(ids)

    def test_a_subclass_may_have_a_combiner_of_its_own(self):
        class Summed(SlipstreamEmbedding):
            def __init__(self, *args, combiner="sum", **kwargs):
                super().__init__(*args, **kwargs)
                self.combiner = combiner

            def call(self, inputs):
                return tf.reduce_sum(super().call(inputs), axis=-2)

            def compute_output_shape(self, input_shape):
                return (*input_shape[:-1], self.output_dim)

        layer, table = Summed(10, 3, mask_zero=True), random_table()
        layer.build(None)
        layer.set_weights([table])
        ids = np.array([[1, 2], [3, 3]])
        np.testing.assert_allclose(layer(ids), table[ids].sum(axis=1), rtol=TOLERANCE)
        assert layer.combiner == "sum"
        assert layer.get_config()["combiner"] is None
        # What it does is that of a layer without combiner.
        np.testing.assert_array_equal(layer.compute_mask(ids), np.ones([2, 2], bool))

    def test_weights_without_combiner_are_refused(self):
        with pytest.raises(ValueError, match="Construct it with `combiner`"):
            SlipstreamEmbedding(10, 3)(tf.constant([[1]]), tf.constant([[1.0]]))

    @pytest.mark.parametrize(
        "ids, weights",
        [
            (tf.ragged.constant([[1], [2, 3]]), tf.ones([3])),
            (tf.constant([[1, 2]]), tf.ragged.constant([[1.0, 2.0]])),
            (tf.sparse.from_dense([[1, 2]]), tf.ones([1, 2])),
            (tf.constant([[1, 2]]), tf.ones([1, 3])),
            (tf.constant([[1, 2]]), tf.ones([2])),
        ],
        ids=["dense for ragged", "ragged for dense", "dense for sparse", "other dim", "other rank"],
    )
    def test_weights_unlike_their_ids_are_refused(self, ids, weights):
        with pytest.raises(ValueError, match="of the kind and shape of its ids"):
            SlipstreamEmbedding(10, 3, combiner="sum")(ids, weights)


class TestMask:
    def test_mask_zero_masks_as_keras_does(self):
        ids = tf.constant([[3, 0, 7], [0, 0, 1]])
        table = random_table()
        expected = [[True, False, True], [False, False, True]]
        masking = embedding_of(table, mask_zero=True)
        np.testing.assert_array_equal(masking.compute_mask(ids), expected)
        pooled = keras.layers.GlobalAveragePooling1D()(masking(ids))
        np.testing.assert_allclose(pooled[1], table[1], rtol=1e-6)
        assert embedding_of(table).compute_mask(ids) is None

    def test_ragged_and_sparse_ids_have_masks(self):
        layer = embedding_of(random_table(), mask_zero=True)
        ragged = tf.ragged.constant([[3, 0], [1]])
        assert layer.compute_mask(ragged).to_list() == [[True, False], [True]]
        sparse = tf.sparse.from_dense([[3, 0], [1, 2]])
        np.testing.assert_array_equal(layer.compute_mask(sparse), [[True, False], [True, True]])
        assert layer(sparse).shape == (2, 2, 3)

    @pytest.mark.parametrize("kind", ["dense", "ragged", "sparse"])
    def test_a_functional_model_masks_as_the_layer_does(self, kind):
        layer = embedding_of(random_table(), mask_zero=True)
        batch = tf.ragged.constant([[3, 0], [1]], dtype=tf.int64)
        if kind != "ragged":
            batch = batch.to_tensor() if kind == "dense" else batch.to_sparse()
        ids = ids_input(kind, 2)
        np.testing.assert_array_equal(
            dense(keras.Model(ids, layer(ids))(batch)), dense(layer(batch))
        )
        if kind == "sparse" and not IS_KERAS_3:
            return  # tf_keras has no symbolic operation that makes a sparse input dense.
        mask = layer.compute_mask(ids)
        assert tuple(mask.shape) == tuple(ids.shape)
        found, expected = keras.Model(ids, mask)(batch), layer.compute_mask(batch)
        assert type(found) is type(expected)
        np.testing.assert_array_equal(dense(found), dense(expected))

    def test_layers_after_a_functional_input_see_the_mask(self):
        table = random_table()
        ids = keras.Input([3], dtype="int32")
        rows = embedding_of(table, mask_zero=True)(ids)
        model = keras.Model(ids, keras.layers.GlobalAveragePooling1D()(rows))
        mean = model.predict(np.array([[3, 0, 7], [0, 0, 1]]), verbose=0)
        np.testing.assert_allclose(mean, [table[[3, 7]].mean(axis=0), table[1]], rtol=1e-6)

    def test_float_ids_are_masked_after_they_are_truncated(self):
        layer = embedding_of(random_table(), mask_zero=True)
        ids = keras.Input([2])
        batch = tf.constant([[0.5, 1.5]])
        for mask in (layer.compute_mask(batch), keras.Model(ids, layer.compute_mask(ids))(batch)):
            np.testing.assert_array_equal(mask, [[False, True]])

    def test_combined_bags_have_no_mask(self):
        layer = embedding_of(random_table(), mask_zero=True, combiner="sum")
        assert layer.compute_mask(tf.constant([[3, 0]])) is None


class TestArguments:
    def test_the_initializer_gives_what_it_gives_keras(self):
        tables = []
        for layer_class in (keras.layers.Embedding, SlipstreamEmbedding):
            initializer = keras.initializers.RandomNormal(stddev=2.0, seed=7)
            layer = layer_class(20, 4, embeddings_initializer=initializer)
            layer.build((None,))
            tables.append(layer.get_weights()[0])
        np.testing.assert_array_equal(*tables)

    def test_a_large_table_starts_alike_in_every_run_and_in_the_same_distribution(
        self, monkeypatch
    ):
        monkeypatch.setattr(table_layer, "_LARGE_TABLE_BYTES", 0)
        tables = []
        for _ in range(2):
            initializer = keras.initializers.RandomNormal(stddev=2.0, seed=7)
            layer = SlipstreamEmbedding(500, 40, embeddings_initializer=initializer)
            layer.build(None)
            tables.append(layer.get_weights()[0])
        np.testing.assert_array_equal(*tables)
        # Five standard errors of 20,000 numbers.
        assert abs(tables[0].mean()) < 5 * 2 / np.sqrt(20_000)
        assert abs(tables[0].std() - 2) < 5 * 2 / np.sqrt(40_000)
        assert len(np.unique(tables[0])) > 19_000

    @pytest.mark.parametrize("name", ["glorot_uniform", "truncated_normal", "zeros", "ones"])
    def test_a_large_table_is_initialised_in_the_memory_of_its_result(self, name, monkeypatch):
        monkeypatch.setattr(table_layer, "_LARGE_TABLE_BYTES", 0)
        graphs = compiled_graphs(monkeypatch)
        SlipstreamEmbedding(3, 2, embeddings_initializer=name).build(None)
        assert len(graphs) == 1

    def test_a_large_table_is_initialised_without_xla_too(self, monkeypatch):
        monkeypatch.setattr(table_layer, "_LARGE_TABLE_BYTES", 0)

        def without_xla(*args, **kwargs):
            raise tf.errors.UnimplementedError(None, None, "no XLA")

        monkeypatch.setattr(table_layer.tf, "function", without_xla)
        layer = SlipstreamEmbedding(3, 2, embeddings_initializer="ones")
        layer.build(None)
        np.testing.assert_array_equal(layer.get_weights()[0], np.ones([3, 2]))

    @pytest.mark.skipif(not IS_KERAS_3, reason="in tf_keras the strategy divides tables")
    def test_shards_have_their_rows_of_a_constant_array(self, monkeypatch):
        monkeypatch.setattr("tf_slipstream._compat.keras3._LEAST_SHARD_BYTES", 1)
        table = random_table(7, 3)
        initializer = keras.initializers.Constant(table)
        layer = SlipstreamEmbedding(7, 3, embeddings_initializer=initializer)
        strategy = types.SimpleNamespace(extended=None)
        shards = _compat.add_table_shards(
            layer, strategy, 3, (7, 3), layer._initialize_table, name="embeddings"
        )
        assert len(shards) == 3
        np.testing.assert_array_equal(np.concatenate([s.numpy() for s in shards]), table)

    @pytest.mark.parametrize("kind", ["array", "tensor", "list", "user's function", "user's class"])
    @pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
    def test_no_graph_holds_the_values_of_an_initializer(self, large, kind, monkeypatch):
        if large:
            monkeypatch.setattr(table_layer, "_LARGE_TABLE_BYTES", 0)
        table = random_table(500, 40)

        class Rows(keras.initializers.RandomNormal):
            def __call__(self, shape, dtype=None, **kwargs):
                return tf.constant(table)

        initializer = {
            "array": lambda: keras.initializers.Constant(table),
            "tensor": lambda: keras.initializers.Constant(tf.constant(table)),
            "list": lambda: keras.initializers.Constant(table.tolist()),
            "user's function": lambda: lambda shape, dtype=None: table,
            "user's class": Rows,
        }[kind]()
        graphs = compiled_graphs(monkeypatch)
        layer = SlipstreamEmbedding(500, 40, embeddings_initializer=initializer)
        layer.build(None)
        np.testing.assert_array_equal(layer.get_weights()[0], table)
        assert not graphs

    def test_a_constant_array_is_cast_to_the_dtype_of_the_table(self):
        table = random_table().astype("float64")
        initializer = keras.initializers.Constant(table)
        layer = SlipstreamEmbedding(10, 3, embeddings_initializer=initializer)
        layer.build(None)
        np.testing.assert_array_equal(layer.get_weights()[0], table.astype("float32"))

    def test_a_model_built_in_fit_has_a_constant_array_in_no_graph(self, monkeypatch):
        """Keras 3 traces a subclassed model that is not built yet, to know its shapes."""
        table = random_table(500, 40)

        class Model(keras.Model):
            def __init__(self):
                super().__init__()
                initializer = keras.initializers.Constant(table)
                self.user = SlipstreamEmbedding(500, 40, embeddings_initializer=initializer)

            def call(self, ids):
                return tf.reduce_sum(self.user(ids), axis=-1, keepdims=True)

        made, initialize = [], SlipstreamEmbedding._initialize_table

        def initialize_and_note(*args, **kwargs):
            made.append(initialize(*args, **kwargs))
            return made[-1]

        monkeypatch.setattr(SlipstreamEmbedding, "_initialize_table", initialize_and_note)
        model = Model()
        model.compile("sgd", loss="mse")
        model.fit(np.array([1, 2]), np.zeros([2, 1]), verbose=0)
        untouched = np.arange(3, 500)
        np.testing.assert_array_equal(model.user.get_weights()[0][untouched], table[untouched])
        graphs = [value.graph for value in made if not hasattr(value, "numpy")]
        assert bool(graphs) == IS_KERAS_3
        assert all(graph.as_graph_def().ByteSize() < table.nbytes for graph in graphs)

    def test_the_default_initializer_is_small_and_uniform(self):
        layer = SlipstreamEmbedding(1000, 4)
        layer.build(None)
        (table,) = layer.get_weights()
        assert 0.04 < table.max() <= 0.05
        assert -0.05 <= table.min() < -0.04

    def test_weights_are_the_table(self):
        table = random_table()
        layer = SlipstreamEmbedding(10, 3, weights=[table])
        np.testing.assert_array_equal(layer(tf.range(10)), table)
        np.testing.assert_array_equal(layer.embeddings, table)

    def test_the_regularizer_adds_its_loss(self):
        table = random_table()
        layer = embedding_of(table, embeddings_regularizer=keras.regularizers.L2(0.5))
        layer(tf.constant([1]))
        np.testing.assert_allclose(layer.losses[0], 0.5 * np.sum(table**2), rtol=1e-5)

    def test_the_activity_regularizer_adds_its_loss(self):
        layer = embedding_of(np.ones([10, 3]), activity_regularizer=keras.regularizers.L2(0.5))
        model = keras.Sequential([layer])
        model(tf.constant([[1, 2]]))
        assert [float(loss) for loss in model.losses] == [3.0]

    def test_a_layer_that_is_not_trainable_has_no_trainable_weights(self):
        layer = embedding_of(random_table(), trainable=False)
        assert not layer.trainable_weights
        assert len(layer.weights) == 1

    def test_the_constraint_and_names_are_the_variables(self):
        layer = embedding_of(
            random_table(), name="user", embeddings_constraint=keras.constraints.NonNeg()
        )
        (variable,) = layer.weights
        assert isinstance(variable.constraint, keras.constraints.NonNeg)
        assert "embeddings" in variable.name
        assert table_spec(variable).name == table_spec(tf_variable(variable)).name == "user"
        assert table_spec(tf.Variable(1.0)) is None

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"lora_rank": 2}, "does not take `lora_rank`: LoRA"),
            ({"lora_alpha": 2}, "does not take `lora_alpha`: LoRA"),
            ({"quantization_config": {"mode": "int8"}}, "a quantized table cannot be trained"),
            ({"sparse": True}, "does not take `sparse`"),
            ({"combiner": "max"}, r"None or one of \('sum', 'mean', 'sqrtn'\), got 'max'"),
            ({"policy": "often"}, "got 'often'"),
        ],
        ids=str,
    )
    def test_arguments_that_make_no_sense_are_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            SlipstreamEmbedding(10, 3, **arguments)

    @pytest.mark.parametrize("dim", [0, -1, True, 2.5, None])
    def test_dimensions_must_be_positive(self, dim):
        with pytest.raises(ValueError, match="positive"):
            SlipstreamEmbedding(dim, 3)
        with pytest.raises(ValueError, match="positive"):
            SlipstreamEmbedding(3, dim)

    def test_lora_and_quantization_are_refused_later_too(self):
        layer = embedding_of(random_table())
        with pytest.raises(ValueError, match="does not support LoRA"):
            layer.enable_lora(2)
        with pytest.raises(NotImplementedError, match="cannot be quantized"):
            layer.quantize("int8")

    @pytest.mark.skipif(not IS_KERAS_3, reason="tf_keras has no quantization")
    def test_quantizing_a_model_leaves_the_layer_alone(self):
        table = random_table()
        model = keras.Sequential([embedding_of(table), keras.layers.Dense(2)])
        model.build((None, 4))
        with pytest.warns(UserWarning, match="cannot be quantized"):
            model.quantize("int8")
        np.testing.assert_array_equal(model.layers[0].embeddings, table)
        with pytest.raises(
            ValueError, match="must be float32 or bfloat16, got dtype 'int8_from_float32'"
        ):
            SlipstreamEmbedding(10, 3, dtype="int8_from_float32")

    @pytest.mark.parametrize("dtype", ["float64", "float16"])
    def test_tables_must_be_float32(self, dtype):
        with pytest.raises(
            ValueError, match=f"'user' must be float32 or bfloat16, got dtype '{dtype}'"
        ):
            SlipstreamEmbedding(10, 3, dtype=dtype, name="user")


class TestMixedPrecision:
    @pytest.mark.parametrize("combiner", [None, "mean"])
    @pytest.mark.parametrize("policy", MIXED_POLICIES)
    def test_outputs_are_cast_and_the_table_is_not(self, policy, combiner):
        table = random_table()
        layer = embedding_of(table, dtype=policy, combiner=combiner)
        outputs = layer(tf.constant([[1, 2], [3, 3]]))
        assert outputs.dtype == policy.removeprefix("mixed_")
        assert layer.weights[0].dtype == "float32"
        expected = embedding_of(table, combiner=combiner)(tf.constant([[1, 2], [3, 3]]))
        np.testing.assert_array_equal(outputs, tf.cast(expected, outputs.dtype))

    def test_the_global_policy_counts(self):
        before = keras.mixed_precision.dtype_policy() if IS_KERAS_3 else None
        set_policy = (
            keras.mixed_precision.set_dtype_policy
            if IS_KERAS_3
            else keras.mixed_precision.set_global_policy
        )
        set_policy("mixed_bfloat16")
        try:
            assert SlipstreamEmbedding(10, 3)(tf.constant([1])).dtype == "bfloat16"
            set_policy("float64")
            with pytest.raises(ValueError, match="got dtype 'float64'"):
                SlipstreamEmbedding(10, 3)
        finally:
            set_policy(before or "float32")

    @pytest.mark.parametrize("combiner", [None, "sum", "sqrtn"])
    @pytest.mark.parametrize("policy", ["float32", *MIXED_POLICIES])
    def test_no_op_makes_anything_of_the_tables_size(self, policy, combiner):
        layer = embedding_of(random_table(), dtype=policy, combiner=combiner)
        variable = tf_variable(layer.weights[0])

        def step(ids):
            with tf.GradientTape() as tape:
                tape.watch(variable)
                loss = tf.reduce_sum(layer(ids))
            grad = tape.gradient(loss, variable)
            assert isinstance(grad, tf.IndexedSlices)
            return grad.values, grad.indices

        ops = ops_of(step, tf.TensorSpec([None, 4], tf.int64))
        assert "ResourceGather" in {op.type for op in ops}
        assert "ReadVariableOp" not in {op.type for op in ops}
        assert not [op for op in ops if any(out.shape == [10, 3] for out in op.outputs)]


class TestBadIds:
    @pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
    @pytest.mark.parametrize("bad_id", [10, -1])
    def test_eager_errors_name_table_id_position_and_range(self, bad_id, dtype):
        layer = embedding_of(random_table(), name="user")
        message = rf"table 'user'.*indices\[1,0\] = {bad_id} is not in \[0, 10\)"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            layer(tf.constant([[1, 2], [bad_id, 3]], dtype))

    @pytest.mark.parametrize("bad_id", [10, -1])
    def test_graph_errors_name_table_id_position_and_range(self, bad_id):
        layer = embedding_of(random_table(), name="user")
        message = rf"(?s)indices\[1,0\] = {bad_id} is not in \[0, 10\).*table_user"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            tf.function(lambda ids: layer(ids))(tf.constant([[1, 2], [bad_id, 3]]))

    def test_predict_errors_name_table_id_position_and_range(self):
        model = keras.Sequential([embedding_of(random_table(), name="user")])
        message = r"(?s)indices\[1,0\] = 10 is not in \[0, 10\).*table_user"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            model.predict(np.array([[1, 2], [10, 3]]), verbose=0)

    @pytest.mark.parametrize("kind", ["ragged", "sparse"])
    def test_bags_are_checked_too(self, kind):
        ids = tf.ragged.constant([[1], [], [2, 12]])
        layer = embedding_of(random_table(), name="tags", combiner="mean")
        message = r"table 'tags'.*indices\[2\] = 12 is not in \[0, 10\)"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            layer(ids if kind == "ragged" else ids.to_sparse())

    @pytest.mark.parametrize("dtype", [tf.int64, tf.uint32, tf.uint64])
    def test_ids_past_32_bits_do_not_wrap_around(self, dtype):
        bad_id = 2**32 - 1 if dtype == tf.uint32 else 2**32 + 5
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"= {bad_id} is not in"):
            embedding_of(random_table())(tf.constant([bad_id], dtype))


class TestModels:
    def test_functional_models_take_dense_ids(self):
        table = random_table()
        ids = keras.Input([4], dtype="int64")
        outputs = embedding_of(table)(ids)
        assert tuple(outputs.shape) == (None, 4, 3)
        batch = np.array([[1, 2, 3, 9]])
        predicted = keras.Model(ids, outputs).predict(batch, verbose=0)
        np.testing.assert_array_equal(predicted, table[batch])

    def test_functional_models_take_weights(self):
        table = random_table()
        ids, weights = keras.Input([4], dtype="int64"), keras.Input([4])
        outputs = embedding_of(table, combiner="sum")(ids, weights=weights)
        assert tuple(outputs.shape) == (None, 3)
        batch, batch_weights = np.array([[1, 2, 3, 9]]), np.array([[1.0, 0.0, 0.0, 2.0]])
        predicted = keras.Model([ids, weights], outputs).predict([batch, batch_weights], verbose=0)
        np.testing.assert_allclose(predicted, table[[1]] + 2 * table[[9]], rtol=TOLERANCE)

    @pytest.mark.parametrize("combiner", [None, "mean"])
    @pytest.mark.parametrize("kind", ["ragged", "sparse"])
    def test_functional_models_take_ragged_and_sparse_ids(self, kind, combiner):
        layer = embedding_of(random_table(), combiner=combiner)
        ids = ids_input(kind, 3)
        outputs = layer(ids)
        # Under tf_keras a sparse input's length is known only to its values.
        expected_length = () if combiner else (ids.shape[1] if IS_KERAS_3 else None,)
        assert tuple(outputs.shape) == (None, *expected_length, 3)
        batch = tf.ragged.constant(BAGS, dtype=tf.int64)
        if kind == "sparse":
            batch = batch.to_sparse()
        predicted = keras.Model(ids, outputs)(batch)
        expected = layer(batch)
        if isinstance(expected, tf.RaggedTensor):
            assert predicted.to_list() == expected.to_list()
        else:
            np.testing.assert_array_equal(predicted, expected)

    def test_sequential_models_take_the_layer(self):
        model = keras.Sequential(
            [
                keras.Input([4], dtype="int32"),
                SlipstreamEmbedding(10, 3),
                keras.layers.Flatten(),
                keras.layers.Dense(2),
            ]
        )
        assert model.predict(np.ones([5, 4]), verbose=0).shape == (5, 2)

    @pytest.mark.skipif(IS_KERAS_3, reason="Keras 3 ignores `input_length`")
    def test_input_length_fixes_the_shape_of_the_ids(self):
        model = keras.Sequential(
            [SlipstreamEmbedding(10, 3, input_length=4), keras.layers.Flatten()]
        )
        assert model.output_shape == (None, 12)

    def test_subclassed_models_take_the_layer(self):
        class Model(keras.Model):
            def __init__(self):
                super().__init__()
                self.user = SlipstreamEmbedding(10, 3, name="user")
                self.tags = SlipstreamEmbedding(20, 3, combiner="mean", name="tags")

            def call(self, inputs):
                return self.user(inputs["user"]) + self.tags(inputs["tags"])

        model = Model()
        batch = {"user": np.array([1, 2]), "tags": np.array([[1, 19], [3, 3]])}
        predicted = model.predict(batch, verbose=0)
        assert sorted(w.shape[0] for w in model.trainable_weights) == [10, 20]
        # A custom loop may give an optimizer either kind of variable.
        for weight in model.trainable_weights:
            assert table_spec(weight) is table_spec(tf_variable(weight)) is not None
        user, tags = (layer.get_weights()[0] for layer in (model.user, model.tags))
        np.testing.assert_allclose(
            predicted, user[batch["user"]] + tags[batch["tags"]].mean(axis=1), rtol=TOLERANCE
        )

    def test_gradients_of_features_that_share_a_layer_sum_up(self):
        layer = embedding_of(random_table())
        variable = tf_variable(layer.trainable_weights[0])
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(tf.constant([1, 2]))) + 3 * tf.reduce_sum(
                layer(tf.constant([[2, 2]]))
            )
        grad = tape.gradient(loss, variable)
        assert isinstance(grad, tf.IndexedSlices)
        expected = np.zeros([10, 3])
        expected[1], expected[2] = 1, 7
        np.testing.assert_array_equal(tf.convert_to_tensor(grad), expected)


class TestConfig:
    ARGUMENTS = {
        "embeddings_initializer": "ones",
        "embeddings_regularizer": "l2",
        "embeddings_constraint": "non_neg",
        "mask_zero": True,
        "combiner": "mean",
        "policy": None,
        "name": "user",
        "dtype": "mixed_bfloat16",
        "trainable": False,
    }

    def test_a_layer_is_made_again_from_its_config(self):
        config = SlipstreamEmbedding(10, 3, **self.ARGUMENTS).get_config()
        again = SlipstreamEmbedding.from_config(config)
        assert again.get_config() == config
        assert (again.input_dim, again.output_dim) == (10, 3)
        assert (again.combiner, again.policy, again.mask_zero) == ("mean", None, True)
        assert (again.name, again.trainable, again.compute_dtype) == ("user", False, "bfloat16")
        assert isinstance(again.embeddings_initializer, keras.initializers.Ones)
        assert isinstance(again.embeddings_constraint, keras.constraints.NonNeg)

    def test_a_config_of_keras_embedding_makes_the_layer(self):
        arguments = {k: v for k, v in self.ARGUMENTS.items() if k not in ("combiner", "policy")}
        stock = keras.layers.Embedding(10, 3, **arguments)
        layer = SlipstreamEmbedding.from_config(stock.get_config())
        assert (layer.combiner, layer.policy) == (None, "default")
        assert stock.get_config().items() <= layer.get_config().items()

    def test_a_model_with_the_layer_is_cloned(self):
        model = keras.Sequential(
            [SlipstreamEmbedding(10, 3, combiner="sum", name="user"), keras.layers.Dense(1)]
        )
        model.build((None, 4))
        clone = keras.models.clone_model(model)
        clone.build((None, 4))
        assert type(clone.layers[0]) is SlipstreamEmbedding
        assert clone.layers[0] is not model.layers[0]
        assert clone.layers[0].get_config() == model.layers[0].get_config()
        clone.set_weights(model.get_weights())
        batch = np.array([[1, 2, 3, 9]])
        np.testing.assert_array_equal(
            clone.predict(batch, verbose=0), model.predict(batch, verbose=0)
        )
