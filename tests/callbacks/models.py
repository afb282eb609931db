"""A small model with a policy under which its rows sleep."""

import numpy as np

from tf_slipstream import SlipstreamEmbedding, SlipstreamOptimizer, StalenessPolicy, _compat

keras = _compat.keras
IDS = np.random.default_rng(0).integers(0, 10, (256, 2))
LABELS = (IDS.sum(axis=1) % 2).astype(np.float32)


def sleepy_model(metrics=()):
    policy = StalenessPolicy(min_updates=2, updates_per_sleep=1, window=2, threshold=1e9)
    model = keras.Sequential(
        [
            keras.Input([2], dtype="int64"),
            SlipstreamEmbedding(10, 4, name="user"),
            keras.layers.Flatten(),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    optimizer = SlipstreamOptimizer(keras.optimizers.Adagrad(0.05), policy=policy)
    model.compile(optimizer, loss="binary_crossentropy", metrics=list(metrics))
    return model
