"""Trains a click model on several devices of one machine: GPUs, or here 2 virtual CPUs.

    python examples/mirrored.py --replicas 2

All that `MirroredStrategy` needs is that the model is made and compiled in its scope. Each replica
takes its part of a batch; gradients are summed per row before they travel, those of sleeping rows
once, when they wake; every replica keeps the same tables. See docs/guide/replicas.md.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import tf_slipstream as slipstream

keras = tf.keras
# Of a long run; the longer it is, the more rows may sleep. Here they may after 50 updates.
POLICY = slipstream.StalenessPolicy(min_updates=50, updates_per_sleep=50)


def click_model(num_rows, dim):
    """Returns a compiled model of 13 dense features and one field."""
    features = keras.Input((13,), name="features")
    item = keras.Input((1,), dtype="int32", name="item")
    row = keras.layers.Flatten()(slipstream.SlipstreamEmbedding(num_rows, dim, name="items")(item))
    x = keras.layers.Dense(64, activation="relu")(keras.layers.Concatenate()([features, row]))
    model = keras.Model((features, item), keras.layers.Dense(1, activation="sigmoid")(x))
    optimizer = slipstream.SlipstreamOptimizer(keras.optimizers.Adagrad(0.05), policy=POLICY)
    model.compile(optimizer, loss="binary_crossentropy")
    return model


def devices(num_replicas):
    """Returns names of GPUs where there are enough, else of as many virtual CPUs."""
    if len(tf.config.list_physical_devices("GPU")) >= num_replicas:
        return [f"GPU:{i}" for i in range(num_replicas)]
    cpu = tf.config.list_physical_devices("CPU")[0]
    virtual = [tf.config.LogicalDeviceConfiguration()] * num_replicas
    tf.config.set_logical_device_configuration(cpu, virtual)
    return [f"CPU:{i}" for i in range(num_replicas)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--examples", type=int, default=400_000)
    parser.add_argument("--batch-size", type=int, default=2048, help="of all replicas together")
    args = parser.parse_args()

    strategy = tf.distribute.MirroredStrategy(devices(args.replicas))
    with strategy.scope():
        model = click_model(args.rows, args.dim)
    log = slipstream.data.SyntheticClickLog(cardinalities=(args.rows,))
    model.fit(log.dataset(args.examples, args.batch_size), verbose=2)

    stats = model.optimizer.skip_stats()["items"]
    print(
        f"{stats.num_lookups:,} lookups, {stats.num_deferred_lookups / stats.num_lookups:.0%} of "
        f"them deferred; of {stats.num_row_updates:,} row updates "
        f"{stats.num_deferred_row_updates / stats.num_row_updates:.0%}"
    )
    copies = strategy.experimental_local_results(model.optimizer.tables["items"].table)
    first, *others = (copy.numpy() for copy in copies)
    same = all(np.array_equal(first, other) for other in others)
    print(f"the tables of {1 + len(others)} replicas are equal to the bit: {same}")


if __name__ == "__main__":
    main()
