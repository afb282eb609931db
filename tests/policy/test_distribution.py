"""Checks that replicas stay equal to the bit while rows sleep."""

import os
import subprocess
import sys

SCRIPT = """
import numpy as np
import tensorflow as tf

from tests.distribute.replicas import strategy_of

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

import tf_slipstream as slipstream
from tf_slipstream._compat import keras

POLICY = slipstream.StalenessPolicy(
    min_updates=10, window=2, first_sleep=2, max_sleep=8, updates_per_sleep=5, threshold=2.0,
    refresh_every=70,
)


def held(optimizer):
    return int(optimizer.tables["user"].pool_ints.numpy()[:, 4].sum())


def train(strategy, callbacks=lambda optimizer: []):
    with strategy.scope():
        ids = keras.Input((3,), dtype="int64")
        user = slipstream.SlipstreamEmbedding(50, 4, "ones", name="user")
        rows = user(ids)
        outputs = keras.layers.Dense(1, kernel_initializer="ones")(keras.layers.Flatten()(rows))
        model = keras.Model(ids, outputs)
        optimizer = slipstream.SlipstreamOptimizer(keras.optimizers.Adam(0.01), policy=POLICY)
        model.compile(optimizer=optimizer, loss="mse")
    random = np.random.default_rng(0)
    ids = random.integers(0, 50, (1280, 3)) ** 3 // 2500
    model.fit(
        ids, random.random(1280), batch_size=32, epochs=5, shuffle=False, verbose=0,
        callbacks=callbacks(optimizer),
    )
    return optimizer, model.layers[1].get_weights()[0]


mirrored = strategy_of(2)
seen = []


def compare(optimizer):
    state = optimizer.tables["user"]
    for variable in (
        state.table, *state.slots, state.last_steps, state.changed_rows, state.counters,
        state.row_states, state.pool_ints, state.pool_floats, state.policy_state,
    ):
        first, second = (np.asarray(v) for v in mirrored.experimental_local_results(variable))
        assert first.tobytes() == second.tobytes(), variable.name


def watch(optimizer):
    def on_batch_end(batch, logs=None):
        if batch % 9 == 8:
            compare(optimizer)
            local = mirrored.experimental_local_results(optimizer.tables["user"].pool_ints)
            seen.append(int(np.asarray(local[0])[:, 4].sum()))
    return [keras.callbacks.LambdaCallback(on_train_batch_end=on_batch_end)]


optimizer, table = train(mirrored, watch)
compare(optimizer)
assert max(seen) > 0, "nothing was held"
local = mirrored.experimental_local_results(optimizer.tables["user"].pool_ints)
assert not np.asarray(local[0])[:, 4].any(), "something is held after fit"
stats = optimizer.skip_stats()["user"]
assert stats.num_lookups == 1280 * 3 * 5
assert stats.num_deferred_lookups > 2000, stats
optimizer.set_strictness(0.5)
assert optimizer.strictness == 0.5
compare(optimizer)
optimizer.wake_all()
compare(optimizer)
_, alone = train(tf.distribute.get_strategy())
assert np.abs(table - 1).max() > 0.1
np.testing.assert_allclose(table, alone, rtol=0, atol=0.05)
print("replicas agree")
"""


def test_replicas_stay_equal_to_the_bit():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env=dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("replicas agree\n")
