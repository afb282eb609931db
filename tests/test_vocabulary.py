"""`DynamicVocabulary` in models: what tables learn, saving, serving, growing, replicas."""

import gc

import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.replicas import strategy_of
from tests.models import assert_all_equal, sleepy, values_of
from tests.vocabulary_oracle import DictionaryVocabulary
from tf_slipstream import (
    DynamicVocabulary,
    SlipstreamEmbedding,
    SlipstreamEmbeddingCollection,
    SlipstreamOptimizer,
    export,
)
from tf_slipstream._compat import IS_KERAS_3, keras
from tf_slipstream.delta.apply import apply_delta
from tf_slipstream.state import schema
from tf_slipstream.state.vocabulary import NAMES

CAPACITY, DIM, RATE = 20, 3, 0.5


def stream(num_steps, seed=0, size=12):
    """Returns batches of ids of which new ones come and old ones go."""
    random = np.random.default_rng(seed)
    return [
        2 * step + (40 * random.random(size) ** 3).astype(np.int64) for step in range(num_steps)
    ]


class Training:
    """A vocabulary and a table in training with given gradients, beside dictionaries.

    Args:
        inner: Keras optimizer.
        make: Makes `rows -> vectors` and its variable, of a table of ones.
        policy: Of the table.
        options: Of the vocabulary.
    """

    def __init__(self, make, inner=None, policy=None, capacity=CAPACITY, **options):
        self.vocabulary = DynamicVocabulary(capacity, name="ids", **options)
        self.vocabulary.build()
        self.look_up, self.variable = make()
        inner = keras.optimizers.Adagrad(RATE) if inner is None else inner
        self.optimizer = SlipstreamOptimizer(inner, policy=policy)
        self.optimizer.build([self.variable()])
        self.oracle = DictionaryVocabulary(
            capacity, options.get("admit_after", 1), options.get("forget_after")
        )
        self.learned, self.sums = {}, {}

    def step(self, ids, grads):
        with tf.GradientTape() as tape:
            vectors = self.look_up(self.vocabulary(tf.convert_to_tensor(ids), training=True))
            loss = tf.reduce_sum(vectors * grads)
        variable = self.variable()
        self.optimizer.apply_gradients([(tape.gradient(loss, variable), variable)])

    def do(self, batches, seed=1, in_graph=False):
        """Does steps, and the same with a dictionary of what each id has learned."""
        random = np.random.default_rng(seed)
        step = tf.function(self.step, reduce_retracing=True) if in_graph else self.step
        for ids in batches:
            grads = random.normal(size=[len(ids), DIM]).astype(np.float32)
            step(ids, grads)
            before = dict(self.oracle.row_of)
            rows = self.oracle.train(ids.tolist())
            for one, row in before.items():
                if row in self.oracle.taken_back:
                    self.learned.pop(one, None), self.sums.pop(one, None)
            sums = {}
            for row, one, grad in zip(rows, ids.tolist(), grads, strict=True):
                if row >= 2:
                    sums[one] = sums.get(one, 0) + grad
            initial = keras.optimizers.Adagrad().initial_accumulator_value
            for one, grad in sums.items():
                square = self.sums.get(one, np.full(DIM, initial)) + grad**2
                moved = RATE * grad / np.sqrt(square + 1e-7)
                self.learned[one], self.sums[one] = self.learned.get(one, 1) - moved, square


def with_embedding():
    layer = SlipstreamEmbedding(CAPACITY, DIM, "ones", name="table")
    layer.build(None)
    return layer, lambda: layer.embeddings


def with_field():
    layer = SlipstreamEmbeddingCollection({"other": 5, "item": CAPACITY}, DIM, name="table")
    layer = SlipstreamEmbeddingCollection.from_config(
        layer.get_config() | {"embeddings_initializer": "ones"}
    )
    layer.build(None)
    return lambda rows: layer({"item": rows})["item"], lambda: layer.trainable_variables[0]


def check_rows(training, first_row=0):
    """Fails unless each id has what it has learned, and free rows are as at first."""
    state = training.optimizer.tables["table"]
    table, (sums,) = state.table.numpy()[first_row:], values_of(state.slots)
    sums = sums[first_row:]
    free = set(range(2, CAPACITY))
    for one, row in training.oracle.row_of.items():
        np.testing.assert_allclose(table[row], training.learned[one], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(sums[row], training.sums[one], rtol=1e-5, atol=1e-5)
        free.discard(row)
    assert (table[[*free]] == 1).all()
    assert (sums[[*free]] == sums[0]).all()
    return len(free)


@pytest.mark.parametrize(
    "make, forget_after, in_graph",
    [(with_embedding, None, True), (with_embedding, 3, False), (with_field, 3, True)],
)
def test_an_id_learns_as_with_a_row_of_its_own(make, forget_after, in_graph, native_or_fallback):
    training = Training(make, forget_after=forget_after)
    training.do(stream(25, size=12 if forget_after is None else 4), in_graph=in_graph)
    num_free = check_rows(training, 5 if make is with_field else 0)
    stats = training.vocabulary.stats()
    assert stats.num_evicted > 10 if forget_after is None else stats.num_forgotten > 10
    assert num_free == CAPACITY - 2 - stats.num_ids
    changed = training.optimizer.tables["table"].changed_rows.numpy()
    assert changed[0] != 0


@pytest.mark.parametrize("on_stale", ["defer", "skip"])
def test_a_row_that_is_taken_back_leaves_the_pool(on_stale):
    policy = sleepy(on_stale=on_stale, min_updates=2, first_sleep=2)
    training = Training(with_embedding, keras.optimizers.Adam(0.1), policy, forget_after=4)
    slept = False
    for step, ids in enumerate(stream(40)):
        popular = np.arange(1000, 1004) if step < 30 else np.zeros(0, np.int64)
        ids = np.concatenate([ids, popular])
        training.step(ids, np.full([len(ids), DIM], 0.125, np.float32))
        state = training.optimizer.tables["table"]
        columns = dict(zip(schema.POLICY_STATE, state.policy_state.numpy()))
        num = int(columns["num_entries"])
        ints = state.pool_ints.numpy()
        rows = ints[:num, schema.POOL_INTS.index("row")]
        wake = ints[:num, schema.POOL_INTS.index("wake_step")]
        np.testing.assert_array_equal(state.row_states.numpy()[rows], -1 - np.arange(num))
        assert (state.row_states.numpy() < 0).sum() == num
        assert columns["num_sleeping"] == (wake > 0).sum()
        assert not ints[num:].any() and not state.pool_floats.numpy()[num:].any()
        slept |= columns["num_sleeping"] > 0
        _, known = training.vocabulary.ids()
        free = np.setdiff1d(np.arange(2, CAPACITY), known)
        assert not state.row_states.numpy()[free].any()
        assert not state.last_steps.numpy()[free].any()
        assert (state.table.numpy()[free] == 1).all()
    assert slept
    ids, _ = training.vocabulary.ids()
    assert not np.isin(np.arange(1000, 1004), ids).any()


def test_an_optimizer_that_is_made_while_a_step_is_traced_has_its_slots_reset():
    vocabulary = DynamicVocabulary(6)
    layer = SlipstreamEmbedding(6, 2, "zeros", name="table")
    model = keras.Sequential([vocabulary, layer, keras.layers.Flatten()])
    model.compile(SlipstreamOptimizer(keras.optimizers.Adagrad(1.0)), loss="mse")
    for begin in (0, 4, 8):
        ids = np.arange(begin, begin + 4)[:, None]
        model.train_on_batch(ids, np.ones([4, 2], np.float32))
    (slot,) = model.optimizer.tables["table"].slots
    np.testing.assert_allclose(slot.numpy()[2:], np.full([4, 2], slot.numpy()[2, 0]))
    assert vocabulary.stats().num_evicted == 8


def test_new_values_are_of_the_initializers_distribution():
    layer = SlipstreamEmbedding(3000, 4, keras.initializers.GlorotNormal(seed=1), name="table")
    vocabulary = DynamicVocabulary(3000, forget_after=1)
    layer(vocabulary(np.arange(2998), training=True))
    before = layer.embeddings.numpy()
    for _ in range(3):
        layer(vocabulary(tf.constant([5]), training=True))
    after = layer.embeddings.numpy()[3:]
    assert vocabulary.stats().num_forgotten > 2900
    assert (after != before[3:]).mean() > 0.95
    assert after.std() == pytest.approx(before.std(), rel=0.05)
    assert len(np.unique(after)) > 0.99 * after.size


class _Own(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None, **kwargs):
        return tf.zeros(shape, dtype)


def test_an_initializer_of_an_unknown_distribution_is_an_error():
    layer = SlipstreamEmbedding(4, 2, _Own(), name="table")
    vocabulary = DynamicVocabulary(4)
    layer(vocabulary(tf.constant([1, 2]), training=True))
    with pytest.raises(ValueError, match="'table' has the initializer .* give one of Keras's"):
        layer(vocabulary(tf.constant([3]), training=True))


KINDS = {
    "dense": (tf.constant([[7, -1], [9, 7]], tf.int32), [[2, 0], [3, 2]]),
    "ragged": (tf.ragged.constant([[7], [], [9, 7]], dtype=tf.int64), [[2], [], [3, 2]]),
    "sparse": (
        tf.SparseTensor([[0, 0], [1, 0], [1, 1]], tf.constant([7, 9, 7], tf.int64), [2, 3]),
        [[2, 0, 0], [3, 2, 0]],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_any_kind_become_rows_of_that_kind(kind):
    ids, expected = KINDS[kind]
    vocabulary, layer = DynamicVocabulary(10), SlipstreamEmbedding(10, 2, combiner="sum")
    for training in (True, False):
        rows = vocabulary(ids, training=training)
        assert isinstance(rows, type(ids)) and rows.dtype == tf.int64
        assert layer(rows).shape == (ids.shape[0], 2)
        if kind == "sparse":
            rows = tf.sparse.to_dense(rows)
        values = rows.to_list() if kind == "ragged" else rows.numpy().tolist()
        assert values == expected


def model_of(dtype="int64", capacity=CAPACITY, seed=1, **options):
    """Returns a model of three ids an example."""
    ids = keras.Input([3], dtype=dtype, name="ids")
    rows = DynamicVocabulary(capacity, dtype=dtype, name="vocabulary", **options)(ids)
    initializer = keras.initializers.RandomUniform(seed=seed)
    layer = SlipstreamEmbedding(
        capacity, DIM, initializer, mask_zero=True, combiner="mean", name="table"
    )
    dense = keras.layers.Dense(1, activation="sigmoid", kernel_initializer="ones", name="output")
    model = keras.Model(ids, dense(layer(rows)))
    optimizer = SlipstreamOptimizer(keras.optimizers.Adam(0.1), policy=sleepy())
    model.compile(optimizer, loss="binary_crossentropy")
    return model


def examples(first, last, dtype="int64"):
    ids = np.stack(stream(last, size=24)[first:last]).reshape(-1, 3)
    ids[::7, 0] = -1
    labels = (ids[:, :1] % 2).astype(np.float32)
    if dtype == "string":
        ids = np.where(ids < 0, "", np.char.add("item-", ids.astype(str)))
    return tf.constant(ids), labels


def fit(model, first, last, dtype="int64"):
    ids, labels = examples(first, last, dtype)
    model.fit(ids, labels, batch_size=8, shuffle=False, verbose=0)


def all_values(model):
    return values_of([*model.variables, *model.optimizer.variables])


@pytest.mark.parametrize(
    "way, dtype", [("keras", "int64"), ("checkpoint", "string"), ("weights", "int64")]
)
def test_training_goes_on_as_if_it_had_not_been_saved(way, dtype, tmp_path):
    options = {"dtype": dtype, "admit_after": 2, "forget_after": 2}
    model = model_of(**options)
    fit(model, 0, 8, dtype)
    if way == "keras":
        model.save(tmp_path / "m.keras")
        restored = keras.models.load_model(tmp_path / "m.keras")
    elif way == "checkpoint":
        tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(tmp_path / "c")
        restored = model_of(**options)
        restored.optimizer.build(restored.trainable_variables)
        checkpoint = tf.train.Checkpoint(model=restored, optimizer=restored.optimizer)
        checkpoint.restore(tf.train.latest_checkpoint(tmp_path)).assert_consumed()
    else:
        model.save_weights(tmp_path / "m.weights.h5")
        restored = model_of(**options)
        restored.load_weights(tmp_path / "m.weights.h5")
        restored.optimizer.build(restored.trainable_variables)
        for new, old in zip(restored.optimizer.variables, model.optimizer.variables, strict=True):
            new.assign(old)
    for one in (model, restored):
        fit(one, 8, 16, dtype)
    assert_all_equal(all_values(model), all_values(restored))
    assert model.get_layer("vocabulary").stats().num_forgotten > 0


def test_only_training_gives_rows(tmp_path):
    model = model_of()
    fit(model, 0, 4)
    vocabulary = model.get_layer("vocabulary")
    before = values_of(vocabulary.variables)
    model.evaluate(*examples(4, 6), verbose=0)
    model.predict(examples(4, 6)[0], verbose=0)
    model(examples(4, 6)[0])
    assert_all_equal(values_of(vocabulary.variables), before)
    vocabulary.trainable = False
    vocabulary(tf.constant([10**9]), training=True)
    assert_all_equal(values_of(vocabulary.variables), before)


def served(folder, ids):
    answers = tf.saved_model.load(str(folder)).signatures["serving_default"](ids=ids)
    return next(iter(answers.values())).numpy()


@pytest.mark.parametrize("dtype", ["int64", "string"])
def test_an_exported_model_looks_ids_up_with_stock_ops(dtype, tmp_path):
    model = model_of(dtype, admit_after=2, num_oov=2)
    fit(model, 0, 6, dtype)
    asked = examples(0, 9, dtype)[0]
    expected = model.predict(asked, verbose=0)
    export.save_version(model, tmp_path / "1", examples=False)
    np.testing.assert_allclose(served(tmp_path / "1", asked), expected, rtol=1e-6)
    if dtype == "string":
        model.export(tmp_path / "2")
        loaded = tf.saved_model.load(str(tmp_path / "2"))
        np.testing.assert_allclose(loaded.serve(asked).numpy(), expected, rtol=1e-6)
    else:
        # tf_keras traces calls of training as well.
        tf.saved_model.save(model, str(tmp_path / "2"))
    export.check_stock_ops(tmp_path / "2")
    names = [name for name, _ in tf.train.list_variables(str(tmp_path / "1/variables/variables"))]
    assert len([name for name in names if "model_variables" in name]) == 5


@pytest.mark.parametrize("dtype", ["int64", "string"])
def test_a_delta_has_the_changed_entries_of_the_map(dtype, tmp_path):
    model = model_of(dtype, capacity=600)
    tracker = export.DeltaTracker(model, tmp_path / "marks")
    fit(model, 0, 5, dtype)
    export.save_version(model, tmp_path / "1", examples=False)
    fit(model, 5, 7, dtype)
    num_changed = {name: len(rows) for name, rows in tracker.changed_rows(1).items()}
    delta = export.save_delta(model, 1, tmp_path / "d2")
    assert set(num_changed) == {"table", "vocabulary/index", "vocabulary/row_ids"}
    assert all(0 < num < 60 for num in num_changed.values())
    assert sorted(delta.num_rows.values()) == sorted(num_changed.values())
    apply_delta(tmp_path / "1", tmp_path / "d2", tmp_path / "2")
    asked = examples(0, 9, dtype)[0]
    np.testing.assert_allclose(
        served(tmp_path / "2", asked), model.predict(asked, verbose=0), rtol=1e-6
    )
    export.save_version(model, tmp_path / "102", examples=False)
    bytes_of = [(tmp_path / n / "variables/variables.data-00000-of-00001") for n in ("2", "102")]
    assert bytes_of[0].read_bytes() == bytes_of[1].read_bytes()


@pytest.mark.parametrize("dtype", ["int64", "string"])
def test_a_vocabulary_and_its_table_grow(dtype):
    model = model_of(dtype, forget_after=100)
    fit(model, 0, 4, dtype)
    vocabulary = model.get_layer("vocabulary")
    asked = examples(0, 4, dtype)[0]
    before, (ids, rows) = model.predict(asked, verbose=0), vocabulary.ids()
    vocabulary.grow(50, model.optimizer)
    assert model.get_layer("table").input_dim == vocabulary.capacity == 50
    model.compile(model.optimizer, loss="binary_crossentropy")
    np.testing.assert_allclose(model.predict(asked, verbose=0), before, rtol=1e-6)
    gc.collect(1)  # the old variables; of all objects it takes half a minute
    fit(model, 4, 8, dtype)
    stats = vocabulary.stats()
    assert (stats.num_evicted, stats.capacity) == (before_evicted(stats), 50)
    new_ids, new_rows = vocabulary.ids()
    assert set(zip(ids, rows)) & set(zip(new_ids, new_rows)) and new_rows.max() >= CAPACITY
    with pytest.raises(ValueError, match="can only be raised from 50, got 49"):
        vocabulary.grow(49)


def before_evicted(stats):
    return stats.num_admitted - stats.num_ids - stats.num_forgotten


def test_a_file_whose_rows_have_no_half_of_a_hash_is_refused():
    vocabulary = DynamicVocabulary(8)
    vocabulary.set_ids([5, 7])
    store = {}
    vocabulary.save_own_variables(store)
    place = str(NAMES.index("last_seen"))
    store[place] = np.array(store[place]).astype(np.int32)
    with pytest.raises(ValueError, match="form of an older release.*save_ids"):
        vocabulary.load_own_variables(store)
    np.testing.assert_array_equal(vocabulary.ids()[0], [5, 7])


def test_weights_of_a_smaller_vocabulary_and_table_load_into_larger_ones(tmp_path):
    model = model_of()
    fit(model, 0, 4)
    model.save_weights(tmp_path / "m.weights.h5")
    larger = model_of(capacity=50, seed=2)
    table = larger.get_layer("table").get_weights()[0]
    if IS_KERAS_3:
        with pytest.warns(UserWarning, match="has 20 rows for SlipstreamEmbedding 'table', which"):
            larger.load_weights(tmp_path / "m.weights.h5")
    else:
        larger.load_weights(tmp_path / "m.weights.h5")
    asked = examples(0, 4)[0]
    np.testing.assert_allclose(
        larger.predict(asked, verbose=0), model.predict(asked, verbose=0), rtol=1e-6
    )
    np.testing.assert_array_equal(larger.get_layer("table").get_weights()[0][20:], table[20:])
    fit(larger, 4, 8)
    assert larger.get_layer("vocabulary").stats().num_ids > 20


@pytest.mark.parametrize("dtype", ["int64", "string"])
def test_ids_are_written_to_a_file_and_read_for_a_warm_start(dtype, tmp_path):
    model = model_of(dtype)
    fit(model, 0, 4, dtype)
    vocabulary = model.get_layer("vocabulary")
    vocabulary.save_ids(tmp_path / "ids.npz")
    other = DynamicVocabulary(CAPACITY + 5, dtype=dtype)
    other.load_ids(tmp_path / "ids.npz")
    asked = examples(0, 8, dtype)[0]
    np.testing.assert_array_equal(other(asked), vocabulary(asked))
    ids, rows = other.ids()
    expected, expected_rows = vocabulary.ids()
    assert list(ids) == list(expected) and list(rows) == list(expected_rows)
    with np.load(tmp_path / "ids.npz") as file:
        assert sorted(file) == ["ids", "rows"] and len(file["ids"]) == other.stats().num_ids
    new = ["new"] if dtype == "string" else [10**12]
    assert other(tf.constant(new), training=True).numpy()[0] not in expected_rows


def test_ids_get_the_rows_that_one_gives_them():
    vocabulary = DynamicVocabulary(10, num_oov=2, padding_id=None)
    vocabulary.set_ids([5, 2**63 - 1, -1])
    assert vocabulary(np.array([5, 2**63 - 1, -1])).numpy().tolist() == [2, 3, 4]
    vocabulary.set_ids([6, 5], rows=[9, 3])
    assert vocabulary(tf.constant([5, 6])).numpy().tolist() == [3, 9]
    assert vocabulary(np.arange(100, 106), training=True).numpy().tolist() == [2, 4, 5, 6, 7, 8]
    for ids, rows, message in (
        ([1, 1], None, "`ids` .* must be distinct"),
        ([1, 2], [3, 3], "`rows` .* must be distinct"),
        ([1], [1], r"must be in \[2, 10\), got 1 to 1"),
        (range(9), None, "got 2 to 10"),
        (["a"], None, "must be integers"),
    ):
        with pytest.raises(ValueError, match=message):
            vocabulary.set_ids(list(ids), rows)
    with pytest.raises(ValueError, match="have its `padding_id`"):
        DynamicVocabulary(10).set_ids([-1])
    with pytest.raises(ValueError, match="strings of at most 7 bytes"):
        DynamicVocabulary(10, dtype="string", max_id_bytes=5).set_ids(["eightbyt"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"capacity": 0}, "`capacity` must be a positive integer"),
        ({"capacity": 2}, "`capacity` must be above 2"),
        ({"admit_after": 256}, "at most 255"),
        ({"forget_after": 0}, "`forget_after` must be a positive"),
        ({"forget_after": 1 << 27}, "`forget_after` must be at most 67108864, got"),
        ({"num_oov": 0}, "`num_oov` must be a positive"),
        ({"dtype": "float32"}, "'int64' or 'string', got 'float32'"),
        ({"padding_id": "a"}, "must be integers"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DynamicVocabulary(**({"capacity": 10} | arguments))


def test_ids_of_another_type_and_a_table_that_is_too_small_are_refused():
    with pytest.raises(ValueError, match="has dtype 'int64' and got ids of float32"):
        DynamicVocabulary(10)(tf.constant([1.0]))
    with pytest.raises(ValueError, match="has dtype 'string' and got ids of int32"):
        DynamicVocabulary(10, dtype="string")(tf.constant([1]))
    rows = DynamicVocabulary(10)(tf.constant([1]), training=True)
    with pytest.raises(ValueError, match="gives rows up to 10, its `capacity`, and 'small' behind"):
        SlipstreamEmbedding(9, 2, name="small")(rows)


def test_a_table_behind_another_operation_is_an_error_and_nothing_learns_wrongly():
    vocabulary, layer = DynamicVocabulary(4), SlipstreamEmbedding(4, 2)
    for one in (1, 2, 3):
        layer(vocabulary(tf.constant([one]), training=True) + 0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="with no operation in between"):
        vocabulary(tf.constant([4]), training=True)


def test_replicas_stay_alike_and_give_the_rows_that_one_device_gives():
    strategy = strategy_of(2)
    with strategy.scope():
        model = model_of(admit_after=2, forget_after=2)
    alone = model_of(admit_after=2, forget_after=2)
    for one in (model, alone):
        fit(one, 0, 10)
    names = ["vocabulary", "table"]
    for variable in [*model.optimizer.variables, *model.get_layer("vocabulary").variables]:
        variable = getattr(variable, "value", variable) if IS_KERAS_3 else variable
        values = strategy.experimental_local_results(variable)
        assert_all_equal(values_of(values[:1]), values_of(values[-1:]))
    of_both = [[m.get_layer(name).get_weights() for name in names] for m in (model, alone)]
    assert_all_equal(of_both[0][0], of_both[1][0])
    assert model.get_layer("vocabulary").stats().num_forgotten > 0
    np.testing.assert_allclose(of_both[0][1][0], of_both[1][1][0], atol=2e-2)
