"""A small attention model, some hundred steps: rows in every batch must not swing.

Its position rows are in every example. Under a policy that lets them sleep too long each overshoots
and comes back, farther each time.
"""

import functools

import numpy as np
import pytest

from tf_slipstream import SlipstreamEmbedding, SlipstreamOptimizer, StalenessPolicy
from tf_slipstream._compat import IS_KERAS_3, keras

NUM_TOKENS, LENGTH, DIM, BATCH, NUM_STEPS = 200, 12, 16, 32, 300
SEEDS = range(3)

pytestmark = pytest.mark.skipif(
    not IS_KERAS_3, reason="it is about rows, which are updated alike under both Kerases"
)


def examples(num, seed):
    """Returns tokens `[num, LENGTH]` and labels that depend on which token is where."""
    teacher = np.random.default_rng(9)
    weights, places = teacher.normal(size=NUM_TOKENS), teacher.normal(size=LENGTH)
    random = np.random.default_rng(seed)
    shares = 1 / np.arange(1, NUM_TOKENS + 1)
    tokens = random.choice(NUM_TOKENS, size=(num, LENGTH), p=shares / shares.sum())
    logits = (weights[tokens] * places).sum(axis=1) / np.sqrt(LENGTH) * 2.5
    return tokens, random.random(num) < 1 / (1 + np.exp(-logits))


HELD_OUT = examples(4000, seed=77)


class Places(keras.layers.Layer):
    """The sum of a row for each token and a row for its place."""

    def __init__(self):
        super().__init__()
        self.tokens = SlipstreamEmbedding(NUM_TOKENS, DIM, name="tokens")
        self.places = SlipstreamEmbedding(LENGTH, DIM, name="places")

    def call(self, tokens):
        return self.tokens(tokens) + self.places(np.arange(LENGTH))


@functools.cache
def loss_after_fit(policy, seed):
    """Returns the loss on held-out examples, and the share of updates of places deferred."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    tokens = keras.Input([LENGTH], dtype="int64")
    rows = layers.LayerNormalization()(Places()(tokens))
    rows = layers.LayerNormalization()(rows + layers.MultiHeadAttention(1, DIM)(rows, rows))
    pooled = layers.GlobalAveragePooling1D()(layers.Dense(DIM, activation="relu")(rows))
    model = keras.Model(tokens, layers.Dense(1, activation="sigmoid")(pooled))
    optimizer = SlipstreamOptimizer(keras.optimizers.Adam(1e-3), policy=policy)
    model.compile(optimizer, loss="binary_crossentropy")
    train = examples(NUM_STEPS * BATCH, seed)
    model.fit(*train, batch_size=BATCH, verbose=0, shuffle=False)
    stats = optimizer.skip_stats()["places"]
    loss = model.evaluate(*HELD_OUT, batch_size=1000, verbose=0)
    return loss, stats.num_deferred_row_updates / stats.num_row_updates


# In so few steps the budget that is meant for long runs lets hardly any row sleep.
POLICIES = {"auto": StalenessPolicy.auto(0.001)}
LEAST_SAVED = {"conservative": 0.01, "balanced": 0.1, "aggressive": 0.3, "auto": 0.05}


@pytest.mark.parametrize("preset", LEAST_SAVED)
def test_a_preset_costs_a_short_run_nothing(preset):
    more, shares = [], []
    for seed in SEEDS:
        loss, share = loss_after_fit(POLICIES.get(preset, preset), seed)
        more.append(loss - loss_after_fit(None, seed)[0])
        shares.append(share)
    # Two runs differ by 0.005 by chance.
    assert np.mean(more) < 0.002, more
    assert min(shares) > LEAST_SAVED[preset]


def test_rows_swing_where_nothing_keeps_them_from_it():
    """What the others would look like if the check did nothing."""
    swinging = StalenessPolicy.aggressive(min_drift=0.0)
    more = [loss_after_fit(swinging, seed)[0] - loss_after_fit(None, seed)[0] for seed in SEEDS[:2]]
    assert np.mean(more) > 0.02, more
