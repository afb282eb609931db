"""A table that is resized trains on as one that had its final size from the start."""

import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.replicas import strategy_of
from tests.models import (
    assert_all_equal,
    click_data,
    click_model,
    embedding_of,
    fit,
    num_asleep,
    num_held,
    random_table,
    sleepy,
    slices,
    values_of,
)
from tf_slipstream import RowWiseAdagrad, SlipstreamEmbedding, SlipstreamOptimizer, export, resize
from tf_slipstream._compat import IS_KERAS_3, keras
from tf_slipstream.delta.errors import ExportError
from tf_slipstream.state import resizing, schema

optimizers = keras.optimizers
INNER = {
    "sgd": lambda: optimizers.SGD(0.25),
    "sgd_decay": lambda: optimizers.SGD(0.25, weight_decay=0.125),
    "momentum": lambda: optimizers.SGD(0.25, momentum=0.5, nesterov=True),
    "adagrad": lambda: optimizers.Adagrad(0.25),
    "row_wise_adagrad": lambda: RowWiseAdagrad(0.25),
    "adam": lambda: optimizers.Adam(0.125, amsgrad=True),
    "adamw": lambda: optimizers.AdamW(0.125, weight_decay=0.125),
    "rmsprop": lambda: optimizers.RMSprop(0.125, momentum=0.5, centered=True),
    "ftrl": lambda: optimizers.Ftrl(0.25, l1_regularization_strength=0.01),
}
SMALL, LARGE, DIM = 40, 70, 3
# Rows fall asleep, hold gradients, wake and are looked up by few steps.
POLICY = sleepy(first_sleep=2, max_sleep=8, refresh_every=13)


def draws(num_rows, num_steps, seed):
    """Returns ids and gradients of steps, of skewed popularity."""
    random = np.random.default_rng(seed)
    shares = np.linspace(1, 0.05, num_rows)
    for _ in range(num_steps):
        ids = np.flatnonzero(random.random(num_rows) < shares)
        ids = random.permutation(np.concatenate([ids, ids[:3]]))
        yield ids, random.normal(size=[len(ids), DIM])


class Training:
    """A table of a layer in training, without a model."""

    def __init__(self, table, inner, policy=None):
        self.layer = embedding_of(table, name="user")
        self.optimizer = SlipstreamOptimizer(inner(), policy=policy)
        self.optimizer.build([self.layer.embeddings])

    def do(self, steps):
        for ids, grads in steps:
            gradient = slices(ids, grads, self.layer.input_dim)
            self.optimizer.apply_gradients([(gradient, self.layer.embeddings)])

    @property
    def state(self):
        return self.optimizer.tables["user"]

    def values(self):
        """Returns the table and all of the optimizer, in the order in which they are saved."""
        return values_of([self.state.table, *self.optimizer.variables])


def train_resized(inner, policy, first, second):
    """Trains a table that is resized, and one that had its final size from the start.

    The first steps look up only rows that both have.

    Args:
        inner: Makes the optimizer.
        policy: Of both.
        first: Number of rows before the resizing.
        second: Number of rows after it.

    Returns:
        The two `Training`s.
    """
    values = random_table(max(first, second), DIM)
    resized = Training(values[:first], inner, policy)
    before = list(draws(min(first, second), 40, seed=1))
    resized.do(before)
    assert resize(resized.layer, resized.optimizer, second) is resized.layer
    if second > first:
        values[first:] = resized.state.table.numpy()[first:]
    never = Training(values[:second], inner, policy)
    never.do(before)
    assert_all_equal(resized.values(), never.values())
    after = list(draws(second, 40, seed=2))
    resized.do(after)
    never.do(after)
    return resized, never


@pytest.mark.parametrize("sizes", [(SMALL, LARGE), (LARGE, SMALL)], ids=["grows", "shrinks"])
@pytest.mark.parametrize("name", INNER)
def test_training_on_is_as_with_the_final_size_from_the_start(name, sizes):
    resized, never = train_resized(INNER[name], None, *sizes)
    assert_all_equal(resized.values(), never.values())


@pytest.mark.parametrize("sizes", [(SMALL, LARGE), (LARGE, SMALL)], ids=["grows", "shrinks"])
@pytest.mark.parametrize("on_stale", ["defer", "skip"])
def test_rows_sleep_on_with_what_they_hold(on_stale, sizes):
    policy = sleepy(on_stale=on_stale, first_sleep=2, max_sleep=8, refresh_every=100)
    resized, never = train_resized(INNER["adam"], policy, *sizes)
    assert_all_equal(resized.values(), never.values())
    assert num_asleep(resized.optimizer) > 0
    assert (num_held(resized.optimizer) > 0) == (on_stale == "defer")
    stats, expected = resized.optimizer.skip_stats(), never.optimizer.skip_stats()
    assert stats == expected and stats["user"].num_rows == sizes[1]


def check_pool(state):
    """Fails unless row states and the entries of the pool point at each other."""
    columns = dict(zip(schema.POLICY_STATE, state.policy_state.numpy()))
    num_entries = int(columns["num_entries"])
    ints = state.pool_ints.numpy()
    rows = ints[:num_entries, schema.POOL_INTS.index("row")]
    row_states = state.row_states.numpy().view(np.int32)
    np.testing.assert_array_equal(row_states[rows], -1 - np.arange(num_entries))
    assert (row_states < 0).sum() == num_entries
    assert not ints[num_entries:].any() and not state.pool_floats.numpy()[num_entries:].any()
    wake_steps = ints[:num_entries, schema.POOL_INTS.index("wake_step")]
    assert columns["num_sleeping"] == (wake_steps > 0).sum()
    assert columns["hand"] < max(1, num_entries)
    return num_entries


def test_popular_rows_that_are_removed_leave_the_pool_and_others_keep_what_they_have():
    training = Training(random_table(LARGE, DIM), INNER["adam"], POLICY)
    training.do(draws(LARGE, 30, seed=1))
    before = training.state
    row = schema.POOL_INTS.index("row")
    num_entries = check_pool(before)
    ints, floats = before.pool_ints.numpy()[:num_entries], before.pool_floats.numpy()[:num_entries]
    is_kept = ints[:, row] < 20
    assert 0 < is_kept.sum() < num_entries
    assert num_held(training.optimizer) > 0
    resize(training.layer, training.optimizer, 20)
    assert check_pool(training.state) == is_kept.sum()
    np.testing.assert_array_equal(training.state.pool_ints.numpy()[: is_kept.sum()], ints[is_kept])
    np.testing.assert_array_equal(
        training.state.pool_floats.numpy()[: is_kept.sum()], floats[is_kept]
    )
    training.do(draws(20, 60, seed=2))
    check_pool(training.state)
    resize(training.layer, training.optimizer, LARGE)
    training.do(draws(LARGE, 60, seed=3))
    assert check_pool(training.state) > 20


def test_where_the_pool_becomes_too_small_the_rows_with_most_updates_stay_popular():
    policy = sleepy(popular_share=0.5, min_updates=1, window=2, first_sleep=4)
    training = Training(np.zeros([10_000, DIM]), INNER["momentum"], policy)
    all_ids, grads = np.arange(5000), np.full([5000, DIM], 0.5)
    training.do([(all_ids, grads)] * 4)
    often = np.arange(500, 1500)
    training.do([(often, grads[often])] * 3)
    assert check_pool(training.state) == 5000
    assert num_held(training.optimizer) > 0
    moved = training.layer.embeddings.numpy()
    training.optimizer.settle()
    settled = training.layer.embeddings.numpy()
    assert not np.array_equal(moved, settled)
    num_updates = dict(zip(all_ids, training.state.pool_ints.numpy()[:, 3]))

    resize(training.layer, training.optimizer, 6000)
    assert check_pool(training.state) == 4096
    np.testing.assert_array_equal(training.layer.embeddings.numpy(), settled[:6000])
    row_states = training.state.row_states.numpy()
    assert (row_states[often] < 0).all()
    unpopular = np.flatnonzero(row_states[:5000] >= 0)
    assert len(unpopular) == 5000 - 4096
    assert list(row_states[unpopular]) == [num_updates[row] for row in unpopular]


def test_what_is_held_is_applied_before_a_row_loses_its_entry():
    """The same as above, but nothing was settled before."""
    policy = sleepy(popular_share=0.5, min_updates=1, window=2, first_sleep=4)
    trainings = []
    for settles in (True, False):
        training = Training(np.zeros([10_000, DIM]), INNER["momentum"], policy)
        training.do([(np.arange(5000), np.full([5000, DIM], 0.5))] * 6)
        assert num_held(training.optimizer) > 0
        if settles:
            training.optimizer.settle()
        resize(training.layer, training.optimizer, 6000)
        trainings.append(training)
    assert_all_equal(trainings[0].values(), trainings[1].values())


@pytest.mark.parametrize("seed", [7, None])
def test_new_rows_have_the_initial_values_of_a_table_of_the_new_size(seed):
    def make(num_rows):
        initializer = keras.initializers.GlorotUniform(seed=seed)
        layer = SlipstreamEmbedding(num_rows, DIM, embeddings_initializer=initializer)
        layer.build(None)
        return layer

    layer = make(SMALL)
    before = layer.embeddings.numpy()
    optimizer = SlipstreamOptimizer(INNER["adagrad"]())
    resize(layer, optimizer, LARGE)  # of an optimizer that is not built yet
    table = layer.embeddings.numpy()
    np.testing.assert_array_equal(table[:SMALL], before)
    bound = (6 / (LARGE + DIM)) ** 0.5  # of the initializer for this shape
    assert (np.abs(table[SMALL:]) <= bound).all() and np.unique(table).size == table.size
    if seed is not None:
        np.testing.assert_array_equal(table[SMALL:], make(LARGE).embeddings.numpy()[SMALL:])
    assert layer.get_config()["input_dim"] == LARGE


def compiled(num_rows, policy=None, **options):
    layer = embedding_of(random_table(num_rows), name="user", **options)
    return click_model(layer, SlipstreamOptimizer(INNER["adam"](), policy=policy))


def test_a_model_is_resized_with_its_layer_and_trains_on_after_compile():
    first, second = click_data(seed=1), click_data(num_rows=30, seed=2)
    model = compiled(10)
    fit(model, first)
    resize(model.get_layer("user"), model.optimizer, 30)
    values = model.get_layer("user").embeddings.numpy()
    model.compile(model.optimizer, loss="binary_crossentropy")
    fit(model, second)
    expected = compiled(30)
    expected.get_layer("user").set_weights([np.concatenate([random_table(10), values[10:]])])
    fit(expected, first)
    fit(expected, second)
    assert_all_equal(model.get_weights(), expected.get_weights())
    assert_all_equal(values_of(model.optimizer.variables), values_of(expected.optimizer.variables))
    assert [tuple(v.shape) for v in model.trainable_variables] == [
        tuple(v.shape) for v in expected.trainable_variables
    ]


def test_a_function_that_was_traced_before_fails_and_trains_no_old_table():
    data = click_data()
    model = compiled(10)
    fit(model, data)
    resize(model.get_layer("user"), model.optimizer, 30)
    before = model.get_weights()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"not in \[0, 0\)"):
        fit(model, data)
    assert_all_equal(model.get_weights(), before)


@pytest.mark.parametrize("way", ["keras", "checkpoint"])
def test_a_resized_model_is_saved_and_goes_on_as_if_it_had_not_been(way, tmp_path):
    second = click_data(num_rows=30, seed=2)
    model = compiled(10, POLICY)
    fit(model, click_data(seed=1))
    resize(model.get_layer("user"), model.optimizer, 30)
    model.compile(model.optimizer, loss="binary_crossentropy")
    fit(model, second)
    if way == "keras":
        model.save(tmp_path / "m.keras")
        restored = keras.models.load_model(tmp_path / "m.keras")
        assert restored.get_layer("user").input_dim == 30
    else:
        tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(tmp_path / "c")
        restored = compiled(30, POLICY)
        restored.optimizer.build(restored.trainable_variables)
        checkpoint = tf.train.Checkpoint(model=restored, optimizer=restored.optimizer)
        checkpoint.restore(tf.train.latest_checkpoint(tmp_path)).assert_consumed()
    for one in (model, restored):
        fit(one, second)
    assert_all_equal(model.get_weights(), restored.get_weights())
    assert_all_equal(values_of(model.optimizer.variables), values_of(restored.optimizer.variables))


def test_a_regularizer_acts_on_the_new_table_alone():
    model = compiled(10, embeddings_regularizer="l2")
    assert len(model.losses) == 1
    resize(model.get_layer("user"), model.optimizer, 30)
    (loss,) = model.losses
    expected = 0.01 * np.square(model.get_layer("user").embeddings.numpy()).sum()
    assert float(loss) == pytest.approx(expected)


def test_a_table_left_out_of_weight_decay_stays_so():
    layer = embedding_of(random_table(), name="user")
    optimizer = SlipstreamOptimizer(optimizers.SGD(0.25, weight_decay=0.5))
    optimizer.exclude_from_weight_decay(var_list=[layer.embeddings])
    optimizer.build([layer.embeddings])
    resize(layer, optimizer, 20)
    before = layer.embeddings.numpy()
    optimizer.apply_gradients([(slices([1], [[0, 0, 0]], 20), layer.embeddings)])
    np.testing.assert_array_equal(layer.embeddings.numpy(), before)


def test_a_bfloat16_table_keeps_its_dtype_and_trains_on():
    layer = SlipstreamEmbedding(SMALL, DIM, name="user", dtype="bfloat16")
    layer.build(None)
    optimizer = SlipstreamOptimizer(INNER["adam"]())
    optimizer.build([layer.embeddings])
    before = np.asarray(tf.cast(optimizer.tables["user"].table, tf.float32))
    resize(layer, optimizer, LARGE)
    table = optimizer.tables["user"].table
    assert table.dtype == tf.bfloat16
    np.testing.assert_array_equal(tf.cast(table, tf.float32)[:SMALL], before)
    optimizer.apply_gradients([(slices([1], np.ones([1, DIM]), LARGE), layer.embeddings)])
    assert (tf.cast(table, tf.float32)[1].numpy() != before[1]).all()


def test_a_loss_scale_optimizer_may_be_around_it():
    layer = embedding_of(random_table(), name="user")
    model = click_model(layer)
    inner = SlipstreamOptimizer(INNER["adam"]())
    name = "LossScaleOptimizer"
    outer = getattr(keras.mixed_precision if not IS_KERAS_3 else optimizers, name)(inner)
    model.compile(outer, loss="binary_crossentropy")
    fit(model, click_data())
    resize(layer, outer, 30)
    model.compile(outer, loss="binary_crossentropy")
    before = layer.embeddings.numpy()
    fit(model, click_data(num_rows=30))
    assert not np.array_equal(layer.embeddings.numpy()[10:], before[10:])
    assert inner.tables["user"].table.shape[0] == 30


def test_what_was_trained_before_is_written_from_outside_as_ever():
    training = Training(random_table(SMALL, DIM), INNER["adam"], POLICY)
    training.do(draws(SMALL, 30, seed=1))
    resize(training.layer, training.optimizer, LARGE)
    assert num_held(training.optimizer) > 0
    training.layer.set_weights([np.ones([LARGE, DIM], np.float32)])
    assert num_held(training.optimizer) == 0
    training.optimizer.settle()
    np.testing.assert_array_equal(training.layer.embeddings.numpy(), 1)


def test_no_delta_leads_from_one_size_to_another(tmp_path):
    model = compiled(10)
    fit(model, click_data())
    export.DeltaTracker(model, tmp_path / "marks")
    (tmp_path / "models").mkdir()
    export.save_version(model, tmp_path / "models" / "1")
    resize(model.get_layer("user"), model.optimizer, 12)
    model.compile(model.optimizer, loss="binary_crossentropy")
    with pytest.raises(ExportError, match="publish a full version"):
        export.save_delta(model, 1, tmp_path / "delta")
    export.save_version(model, tmp_path / "models" / "2")
    fit(model, click_data(num_rows=12))
    export.save_delta(model, 2, tmp_path / "delta")


def test_the_memory_of_the_old_table_is_given_back():
    layer = embedding_of(random_table(SMALL, DIM), name="user")
    optimizer = SlipstreamOptimizer(INNER["adam"]())
    optimizer.build([layer.embeddings])
    lookup = tf.function(layer.__call__)
    lookup(tf.constant([1]))
    old = [optimizer.tables["user"].table, *optimizer.tables["user"].slots]
    resize(layer, optimizer, LARGE)
    for variable in old:
        assert tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=tf.float32).shape == (0, 0)


@pytest.mark.parametrize("sizes", [(5, 12), (12, 5), (7, 7)])
def test_rows_are_copied_a_few_at_a_time(sizes, monkeypatch):
    monkeypatch.setattr(resizing, "_ELEMENTS_AT_ONCE", 7)  # two rows of 3
    first, second = (tf.Variable(tf.random.normal([num_rows, DIM])) for num_rows in sizes)
    before = second.numpy()
    resizing.copy_rows(first, second, resizing.head_of(*sizes))
    num_kept = min(sizes)
    np.testing.assert_array_equal(second[:num_kept], first[:num_kept])
    np.testing.assert_array_equal(second[num_kept:], before[num_kept:])


def test_the_same_size_changes_nothing():
    training = Training(random_table(SMALL, DIM), INNER["adam"], POLICY)
    table = training.state.table
    assert resize(training.layer, training.optimizer, SMALL) is training.layer
    assert training.state.table is table


@pytest.mark.parametrize("input_dim", [0, -1, True, 2.0, None, "10"])
def test_a_size_that_is_none_is_refused(input_dim):
    training = Training(random_table(SMALL, DIM), INNER["sgd"])
    with pytest.raises(ValueError, match="`input_dim` must be a positive integer"):
        resize(training.layer, training.optimizer, input_dim)


def test_layers_and_optimizers_that_it_does_not_know_are_refused():
    training = Training(random_table(SMALL, DIM), INNER["sgd"])
    for layer in (keras.layers.Embedding(3, 2), SlipstreamEmbedding(3, 2), training.state.table):
        with pytest.raises(ValueError, match="`layer` must be a SlipstreamEmbedding that is built"):
            resize(layer, training.optimizer, 20)
    for optimizer in (optimizers.SGD(0.1), None, "sgd"):
        with pytest.raises(ValueError, match="`optimizer` must be the SlipstreamOptimizer"):
            resize(training.layer, optimizer, 20)
    other = Training(random_table(SMALL, DIM), INNER["sgd"])
    with pytest.raises(ValueError, match="does not train the table"):
        resize(training.layer, other.optimizer, 20)


def test_a_table_that_another_optimizer_holds_something_of_is_refused_while_that_one_lives():
    training = Training(random_table(SMALL, DIM), INNER["sgd"])
    other = SlipstreamOptimizer(INNER["adam"]())
    other.build([training.layer.embeddings])
    before = training.values()
    with pytest.raises(ValueError, match="trained by another optimizer as well"):
        resize(training.layer, training.optimizer, 20)
    assert_all_equal(training.values(), before)
    del other
    resize(training.layer, training.optimizer, 20)
    assert training.state.num_rows == 20


def test_an_initializer_that_fails_for_the_new_size_leaves_all_as_it_was():
    initializer = keras.initializers.Constant(random_table(SMALL, DIM))
    layer = SlipstreamEmbedding(SMALL, DIM, embeddings_initializer=initializer, name="user")
    layer.build(None)
    optimizer = SlipstreamOptimizer(INNER["adam"]())
    optimizer.build([layer.embeddings])
    with pytest.raises((ValueError, TypeError, tf.errors.InvalidArgumentError)):
        resize(layer, optimizer, LARGE)
    assert layer.input_dim == SMALL and len(layer.trainable_variables) == 1
    np.testing.assert_array_equal(layer(tf.range(SMALL)), random_table(SMALL, DIM))
    gradient = slices([1], np.ones([1, DIM]), SMALL)
    optimizer.apply_gradients([(gradient, layer.embeddings)])
    assert layer.embeddings.numpy()[1, 0] != random_table(SMALL, DIM)[1, 0]


def test_a_table_on_several_replicas_is_refused():
    strategy = strategy_of(2)
    with strategy.scope():
        layer = SlipstreamEmbedding(SMALL, DIM)
        layer.build(None)
        optimizer = SlipstreamOptimizer(INNER["sgd"]())
        optimizer.build([layer.embeddings])
        with pytest.raises(ValueError, match="on several replicas"):
            resize(layer, optimizer, LARGE)


def test_it_is_refused_inside_of_a_function():
    training = Training(random_table(SMALL, DIM), INNER["sgd"])
    with pytest.raises(RuntimeError, match="outside of a `tf.function`"):
        tf.function(lambda: resize(training.layer, training.optimizer, 20))()


def test_a_layer_that_was_resized_is_forgotten_with_its_model():
    model = compiled(10)
    fit(model, click_data())
    resize(model.get_layer("user"), model.optimizer, 30)
    table = weakref.ref(model.optimizer.tables["user"].table)
    keras.backend.clear_session()
    del model
    gc.collect()
    assert table() is None
