"""Checks training on several replicas in one process."""

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


def train(strategy):
    with strategy.scope():
        ids = keras.Input((3,), dtype="int64")
        user = slipstream.SlipstreamEmbedding(50, 4, "ones", name="user")
        rows = user(ids)
        outputs = keras.layers.Dense(1, kernel_initializer="ones")(keras.layers.Flatten()(rows))
        model = keras.Model(ids, outputs)
        optimizer = slipstream.SlipstreamOptimizer(keras.optimizers.Adam(0.01))
        model.compile(optimizer=optimizer, loss="mse")
    random = np.random.default_rng(0)
    ids = random.integers(0, 50, (640, 3)) ** 2 // 50
    model.fit(ids, random.random(640), batch_size=32, epochs=5, shuffle=False, verbose=0)
    return optimizer, model.layers[1].get_weights()[0]


mirrored = strategy_of(2)
optimizer, table = train(mirrored)
state = optimizer.tables["user"]
for variable in (state.table, *state.slots, state.last_steps, state.changed_rows, state.counters):
    first, second = (np.asarray(v) for v in mirrored.experimental_local_results(variable))
    np.testing.assert_array_equal(first, second)
assert int(tf.convert_to_tensor(optimizer.iterations)) == 100
assert optimizer.skip_stats()["user"].num_lookups == 640 * 3 * 5
_, alone = train(tf.distribute.get_strategy())
assert np.abs(table - 1).max() > 0.1
np.testing.assert_allclose(table, alone, rtol=0, atol=2e-3)
print("replicas agree")
"""


def test_replicas_stay_equal_to_the_bit_and_train_as_one_device_does():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env=dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("replicas agree\n")
