"""Padding is nobody's lookup: `mask_zero` counts none, and trains the same rows."""

import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.replicas import strategy_of
from tests.models import embedding_of, in_turn, sleepy
from tf_slipstream import SlipstreamEmbeddingCollection, SlipstreamOptimizer
from tf_slipstream._compat import keras

NUM_ROWS, DIM, NUM_STEPS = 20, 4, 40
INNER = {
    "adagrad": lambda: keras.optimizers.Adagrad(0.25),
    "adam": lambda: keras.optimizers.Adam(0.0625),
    "momentum": lambda: keras.optimizers.SGD(0.25, momentum=0.75),
    "clipped": lambda: keras.optimizers.SGD(0.25, global_clipnorm=0.5),
}
every_rule = pytest.mark.parametrize("rule", INNER)
every_policy = pytest.mark.parametrize("policy", [None, sleepy()], ids=["none", "sleepy"])


def table():
    # Multiples of 1/16, so that sums are exact in any order.
    return np.random.default_rng(9).integers(-32, 33, [NUM_ROWS, DIM]).astype("float32") / 16


def batches():
    """Yields ids int64 `[8, 10]`, 80% of them padding; some examples are padding alone."""
    rng = np.random.default_rng(0)
    for _ in range(NUM_STEPS):
        lengths = rng.integers(0, 5, size=8)
        ids = 1 + rng.zipf(1.5, size=[8, 10]) % (NUM_ROWS - 1)
        yield np.where(np.arange(10) < lengths[:, None], ids, 0)


def num_ids():
    return sum(np.count_nonzero(ids) for ids in batches())


class Training:
    """Trains a layer's table with the sum of what `read(layer, ids)` gives, whole numbers.

    Args:
        read: Returns float `[batch, dim]`.
        rule: A key of `INNER`.
        policy: The optimizer's.
        as_ids: What a batch is made of.
        **options: Of the layer.
    """

    def __init__(self, read, rule, policy, as_ids=tf.constant, **options):
        self.read, self.as_ids = read, as_ids
        self.layer = embedding_of(table(), name="item", **options)
        self.optimizer = SlipstreamOptimizer(INNER[rule](), policy=policy)
        self.optimizer.build(self.layer.trainable_variables)
        self.step = tf.function(self._step, reduce_retracing=True)

    def _step(self, ids):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self.read(self.layer, ids))
        variables = self.layer.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))

    def run(self):
        for ids in batches():
            self.step(self.as_ids(ids))
        return self

    @property
    def stats(self):
        return self.optimizer.skip_stats()["item"]

    def rows(self):
        self.optimizer.wake_all()
        return self.layer.get_weights()[0]


def _masked(layer, ids):
    is_id = tf.cast(tf.not_equal(ids, 0), tf.float32)
    return tf.reduce_sum(layer(ids) * is_id[..., None], axis=1)


def _call(layer, ids):
    return layer(ids)


def without_padding(ids):
    return tf.RaggedTensor.from_tensor(tf.constant(ids), padding=0)


@pytest.mark.parametrize("rule, policy", in_turn(INNER, [sleepy(), None]))
def test_padded_bags_count_and_train_as_ragged_ones_do(rule, policy):
    bags = [
        Training(_call, rule, policy, as_ids, combiner="sum", mask_zero=True).run()
        for as_ids in (tf.constant, without_padding)
    ]
    assert bags[0].stats == bags[1].stats
    assert bags[0].stats.num_lookups == num_ids()
    assert (bags[0].stats.num_deferred_lookups > 0) == (policy is not None)
    np.testing.assert_array_equal(bags[0].rows(), bags[1].rows())


@every_rule
def test_training_is_the_same_as_where_padding_is_looked_up(rule):
    masked, looked_up = (
        Training(_masked, rule, None, mask_zero=mask_zero).run() for mask_zero in (True, False)
    )
    assert masked.stats.num_lookups == num_ids()
    assert looked_up.stats.num_lookups == NUM_STEPS * 80
    rows = masked.rows()
    np.testing.assert_array_equal(rows, looked_up.rows())
    np.testing.assert_array_equal(rows[0], table()[0])
    assert np.any(rows[1:] != table()[1:], axis=1).all()


def test_a_mask_that_layers_follow_is_padding_too():
    layer = embedding_of(table(), name="item", mask_zero=True)
    inputs = keras.Input([10], dtype="int64")
    pooled = keras.layers.GlobalAveragePooling1D()(layer(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(pooled))
    model.compile(SlipstreamOptimizer(INNER["adam"](), policy=sleepy()), loss="mse")
    for ids in batches():
        # Keras gives NaN for an example of padding alone.
        ids[:, 0] = np.maximum(ids[:, 0], 1)
        model.train_on_batch(ids, np.ones([8, 1]))
    num = sum(np.count_nonzero(ids[:, 1:]) + 8 for ids in batches())
    assert model.optimizer.skip_stats()["item"].num_lookups == num


def test_an_id_0_that_trains_is_counted():
    training = Training(lambda layer, ids: layer(ids), "adagrad", None, mask_zero=True).run()
    assert training.stats.num_lookups == NUM_STEPS * 80
    assert np.all(training.rows()[0] != table()[0])


def test_a_gradient_of_padding_that_is_nan_is_still_refused():
    training = Training(lambda layer, ids: layer(ids) * np.nan, "adagrad", None, mask_zero=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="'item': the gradient of row 0"):
        training.step(tf.zeros([2, 3], tf.int64))


def test_a_step_of_padding_alone_is_a_step():
    training = Training(_call, "adam", sleepy(), combiner="mean", mask_zero=True)
    training.step(tf.zeros([2, 3], tf.int64))
    assert training.stats.num_lookups == training.stats.num_row_updates == 0
    assert int(training.optimizer.iterations.numpy()) == 1


def test_replicas_send_and_count_none():
    strategy = strategy_of(2)
    with strategy.scope():
        training = Training(_call, "adagrad", sleepy(), combiner="sum", mask_zero=True)
    alone = Training(_call, "adagrad", sleepy(), combiner="sum", mask_zero=True).run()

    @tf.function
    def step(halves):
        def of_replica():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            training._step(halves[replica])

        strategy.run(of_replica)

    for ids in batches():
        step(tf.constant(ids.reshape(2, 4, 10)))
    assert training.stats.num_lookups == alone.stats.num_lookups == num_ids()
    np.testing.assert_array_equal(training.rows(), alone.rows())


@every_policy
def test_padding_of_each_field_of_a_collection_is_none(policy):
    dims = {"user": 6, "item": 9, "friend": "user"}
    collection = SlipstreamEmbeddingCollection(dims, DIM, combiner="sum", mask_zero=True)
    collection.build(None)
    optimizer = SlipstreamOptimizer(INNER["adam"](), policy=policy)
    optimizer.build(collection.trainable_variables)

    @tf.function
    def step(ids):
        with tf.GradientTape() as tape:
            loss = tf.add_n([tf.reduce_sum(bags**2) for bags in collection(ids).values()])
        variables = collection.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))

    rng, padded = np.random.default_rng(0), []
    before = {name: collection.rows(name) for name in dims}
    for _ in range(NUM_STEPS):
        ids = {name: rng.integers(0, 6, [8, 5]) * (rng.random([8, 5]) < 0.4) for name in dims}
        padded.append({name: np.count_nonzero(one) for name, one in ids.items()})
        step({name: tf.constant(one) for name, one in ids.items()})
    num = {name: sum(one[name] for one in padded) for name in dims}
    stats = collection.skip_stats()
    assert stats["item"].num_lookups == num["item"]
    assert stats["user"].num_lookups == num["user"] + num["friend"]
    for name in ("user", "item"):
        np.testing.assert_array_equal(collection.rows(name)[0], before[name][0])
