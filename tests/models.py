"""Small tables, models and data that several tests share."""

import numpy as np
import pytest
import tensorflow as tf

from tf_slipstream import SlipstreamEmbedding, StalenessPolicy
from tf_slipstream._compat import IS_KERAS_3, keras
from tf_slipstream.state.schema import POOL_INTS


def in_turn(*parts):
    """Returns cases that have each value of each part, those of a shorter part again and again.

    For parts that have nothing to do with each other, in place of all their combinations.
    """
    parts = [list(part) for part in parts]
    longest = max(map(len, parts))
    return [tuple(part[i % len(part)] for part in parts) for i in range(longest)]


def random_table(num_rows=10, dim=3, seed=0):
    """Returns float32 `[num_rows, dim]`, the same in every call."""
    return np.random.default_rng(seed).normal(size=[num_rows, dim]).astype("float32")


def embedding_of(table, **kwargs):
    """Returns a `SlipstreamEmbedding` that holds these values."""
    layer = SlipstreamEmbedding(*table.shape, **kwargs)
    layer.build(None)
    layer.set_weights([table])
    return layer


def ids_input(kind, length, name=None):
    """Returns a model's input of ids; skips the test where Keras has none of that kind.

    Args:
        kind: "dense", "ragged" or "sparse".
        length: Of each example; of no matter for "ragged".
        name: String.
    """
    if kind == "ragged":
        length = None
        if keras.__version__.startswith("3.8."):
            pytest.skip("Keras 3.8 has no ragged inputs")
    is_kind = {} if kind == "dense" else {kind: True}
    return keras.Input([length], dtype="int64", name=name, **is_kind)


def slices(ids, grads, num_rows, id_dtype="int64"):
    """Returns the gradient of a lookup: `tf.IndexedSlices` of `ids` `[n]`, `grads` `[n, dim]`."""
    ids, grads = np.asarray(ids, id_dtype), np.asarray(grads, np.float32)
    shape = tf.constant([num_rows, grads.shape[1]])
    return tf.IndexedSlices(tf.constant(grads), tf.constant(ids), shape)


def values_of(variables):
    """Returns copies of the variables' values."""
    return [np.array(variable.numpy()) for variable in variables]


def assert_all_equal(actual, expected):
    """Asserts that two lists of arrays are the same to the bit."""
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


NUM_IDS = 3  # of an example


def click_data(num_examples=64, num_rows=10, seed=0):
    """Returns ids int64 `[num_examples, NUM_IDS]` and labels that depend on them."""
    ids = np.random.default_rng(seed).integers(num_rows, size=[num_examples, NUM_IDS])
    return ids, (ids[:, :1] % 2).astype("float32")


def click_model(layer, optimizer=None, **compile_arguments):
    """Returns a classifier of `NUM_IDS` ids, with the same dense weights in every call."""
    ids = keras.Input([NUM_IDS], dtype="int64")
    output = keras.layers.Dense(1, activation="sigmoid", dtype="float32", name="output")
    model = keras.Model(ids, output(keras.layers.Flatten()(layer(ids))))
    num_inputs = output.get_weights()[0].shape[0]
    output.set_weights([random_table(num_inputs, 1, seed=1), np.zeros([1])])
    if optimizer is not None:
        model.compile(optimizer, loss="binary_crossentropy", **compile_arguments)
    return model


def fit(model, data, **kwargs):
    """Trains on batches of 16, in order."""
    return model.fit(*data, batch_size=16, shuffle=False, verbose=0, **kwargs)


def sleepy(**changes):
    """Returns a policy under which rows sleep within a few steps, less these changes."""
    values = {"min_updates": 2, "window": 2, "threshold": 1e9, "updates_per_sleep": 1}
    return StalenessPolicy(**values | changes)


def num_held(optimizer):
    """Returns how many batches of how many rows an optimizer holds for its tables."""
    place = POOL_INTS.index("held_steps")
    states = [state for state in optimizer.tables.values() if state.policy is not None]
    return sum(int(state.pool_ints.numpy()[:, place].sum()) for state in states)


def num_asleep(optimizer):
    """Returns how many rows of an optimizer's tables sleep."""
    return sum(stats.num_stale_rows for stats in optimizer.skip_stats().values())


def train_steps(model, data, first, last):
    """Does steps of 16 examples with `train_on_batch`, after which nothing wakes."""
    batches = [slice(16 * step, 16 * (step + 1)) for step in range(first, last)]
    ids, labels = data
    # tf_keras makes a dataset of each batch, which takes longer than the step; here all have one.
    is_alone = model.distribute_strategy.num_replicas_in_sync == 1
    num_alone = 1 if is_alone and not IS_KERAS_3 else len(batches)
    for batch in batches[:num_alone]:
        model.train_on_batch(ids[batch], labels[batch])
    if batches[num_alone:]:
        rest = slice(batches[num_alone].start, batches[-1].stop)
        data = tf.data.Dataset.from_tensor_slices((ids[rest], labels[rest]))
        iterator = iter(data.batch(16, drop_remainder=True))
        for _ in batches[num_alone:]:
            model.train_function(iterator)
