"""Trains a click model on parameter servers; `parameter_server.sh` starts them on this machine.

This program is the coordinator. TF_CONFIG names the cluster, as docs/guide/parameter_servers.md
shows. With Keras 3 the loop is `ParameterServerTrainer.fit`, with tf_keras (TF_USE_LEGACY_KERAS=1)
`model.fit` itself.
"""

import argparse
import os

import tensorflow as tf

import tf_slipstream as slipstream

if os.environ.get("TF_USE_LEGACY_KERAS") == "1":
    import tf_keras as keras
else:
    import keras

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--rows", type=int, default=200_000, help="of the table")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--steps", type=int, default=100, help="of an epoch, all workers together")
parser.add_argument("--checkpoints", help="a folder that servers and coordinator share")
args = parser.parse_args()


def make_dataset(context=None):
    """Runs on each worker: yields batches of users, items and clicks for ever."""

    def batch(_):
        # Few ids are frequent, and each user likes one half of the items.
        skewed = tf.random.uniform([512, 2]) ** 6
        ids = tf.cast(skewed * float(args.rows // 2), tf.int64)
        clicks = tf.cast(tf.reduce_sum(ids, axis=1, keepdims=True) % 2 == 0, tf.float32)
        return ids + [0, args.rows // 2], clicks

    return tf.data.Dataset.range(1 << 40).map(batch).prefetch(2)


resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
strategy = tf.distribute.ParameterServerStrategy(resolver)
with strategy.scope():
    inputs = keras.Input((2,), dtype="int64")
    rows = slipstream.SlipstreamEmbedding(args.rows, 16, name="ids")(inputs)
    hidden = keras.layers.Dense(32, activation="relu")(keras.layers.Flatten()(rows))
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(hidden))
    # For a run of minutes. A longer one needs none of these: rows that swing sleep here as well.
    policy = slipstream.StalenessPolicy(min_updates=20, updates_per_sleep=20, min_drift=0.0)
    optimizer = slipstream.SlipstreamOptimizer(keras.optimizers.Adam(0.01), policy=policy)
    model.compile(optimizer, "binary_crossentropy", metrics=[keras.metrics.AUC(name="auc")])
    # Before `fit`, so that workers keep rows that sleep from the first step on.
    optimizer.build(model.trainable_variables)

options = {"epochs": args.epochs, "steps_per_epoch": args.steps, "verbose": 2}
if os.environ.get("TF_USE_LEGACY_KERAS") == "1":
    model.fit(tf.keras.utils.experimental.DatasetCreator(make_dataset), **options)
else:
    trainer = slipstream.distribute.ParameterServerTrainer(
        model, strategy, checkpoint_dir=args.checkpoints
    )
    trainer.fit(make_dataset, **options)

stats, cache = optimizer.skip_stats()["ids"], optimizer.cache_stats()["ids"]
print(f"{int(optimizer.iterations.numpy())} steps")
print(
    f"{stats.num_deferred_lookups / stats.num_lookups:.0%} of lookups and "
    f"{stats.num_deferred_row_updates / stats.num_row_updates:.0%} of row updates were deferred"
)
print(f"{cache.hit_rate:.0%} of the rows that a batch reads were on the worker")
