"""The model whose files are here, and what it is trained on. Neither may change."""

import numpy as np

from tf_slipstream import SlipstreamEmbedding, SlipstreamOptimizer, StalenessPolicy
from tf_slipstream._compat import keras

NUM_ROWS, DIM, NUM_IDS, BATCH = 8, 2, 2, 4


def make_model():
    """Returns a compiled model whose weights depend on nothing but this page."""
    policy = StalenessPolicy(
        min_updates=2, window=2, threshold=1e9, updates_per_sleep=1, first_sleep=2, max_sleep=4
    )
    ids = keras.Input([NUM_IDS], dtype="int64", name="ids")
    layer = SlipstreamEmbedding(NUM_ROWS, DIM, name="user")
    rows = keras.layers.Flatten(name="flat")(layer(ids))
    output = keras.layers.Dense(1, name="output")
    model = keras.Model(ids, output(rows), name="golden")
    numbers = np.arange(NUM_ROWS * DIM, dtype=np.float32)
    layer.set_weights([np.sin(numbers).reshape(NUM_ROWS, DIM)])
    weights = np.cos(numbers[: DIM * NUM_IDS]).reshape(-1, 1)
    output.set_weights([weights, np.zeros(1, np.float32)])
    optimizer = SlipstreamOptimizer(
        keras.optimizers.Adam(0.0625, beta_1=0.75, beta_2=0.875, weight_decay=0.125), policy=policy
    )
    model.compile(optimizer, loss="mse")
    return model


def train(model, first_step, last_step):
    """Does the steps from `first_step` to `last_step`, less the last."""
    for step in range(first_step, last_step):
        numbers = np.arange(BATCH * NUM_IDS).reshape(BATCH, NUM_IDS)
        # Rows 0 and 1 in every step, others now and then.
        ids = np.where(numbers % 3 < 2, numbers % 3, (numbers * 5 + step * 7) % NUM_ROWS)
        labels = np.sin(numbers[:, :1] + step).astype(np.float32)
        model.train_on_batch(ids.astype(np.int64), labels)


def weights_of(model):
    """Returns a model's weights as they are, whatever is held, as lists."""
    return [np.asarray(weight).tolist() for weight in model.weights]


def state_of(model):
    """Returns the values of an optimizer's variables, as lists."""
    return [np.asarray(variable.numpy()).tolist() for variable in model.optimizer.variables]
