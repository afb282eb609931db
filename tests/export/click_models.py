"""A click model that several tests publish."""

import numpy as np

from tests.models import embedding_of, random_table
from tf_slipstream import SlipstreamOptimizer
from tf_slipstream._compat import keras

NUM_ROWS, DIM, NUM_TAGS, NUM_DENSE = 1000, 5, 3, 4


def click_model(optimizer=None, num_rows=NUM_ROWS, user_vocabulary=None):
    """Returns a model of dense features, a user and several tags; the same in every call.

    Args:
        user_vocabulary: What gives users rows, if they have raw ids.
    """
    dense = keras.Input([NUM_DENSE], name="features")
    user = keras.Input([], dtype="int64", name="user")
    tags = keras.Input([NUM_TAGS], dtype="int64", name="tags")
    user_row = user if user_vocabulary is None else user_vocabulary(user)
    rows = [
        embedding_of(random_table(num_rows, DIM), name="user_table")(user_row),
        embedding_of(random_table(num_rows, DIM, 1), name="tag_table", combiner="mean")(tags),
    ]
    output = keras.layers.Dense(1, activation="sigmoid", name="output")
    x = keras.layers.Concatenate()([dense, *rows])
    model = keras.Model({"features": dense, "user": user, "tags": tags}, output(x))
    output.set_weights([random_table(NUM_DENSE + 2 * DIM, 1, 2), np.zeros([1])])
    optimizer = keras.optimizers.Adam(0.1) if optimizer is None else optimizer
    model.compile(SlipstreamOptimizer(optimizer), loss="binary_crossentropy")
    return model


def batch(seed=0, size=16, num_rows=NUM_ROWS):
    """Returns inputs and labels."""
    rng = np.random.default_rng(seed)
    inputs = {
        "features": rng.normal(size=[size, NUM_DENSE]).astype("float32"),
        "user": rng.integers(num_rows, size=[size]),
        "tags": rng.integers(num_rows, size=[size, NUM_TAGS]),
    }
    return inputs, rng.integers(2, size=[size, 1]).astype("float32")


def train(model, *seeds):
    """Does a step per seed."""
    for seed in seeds:
        model.train_on_batch(*batch(seed))
