"""The coordinator of soak.py: trains a click model, from the last checkpoint on, and counts.

`soaked_program.py JSON` prints a JSON object at its end. Beside the model's table there is one
whose row rises by 1 with each lookup that reaches a server. All rates are powers of two, so that it
is exact.
"""

import json
import os
import sys
import time

import numpy as np
import tensorflow as tf

import tf_slipstream as slipstream
from tf_slipstream._compat import keras
from tf_slipstream.comparison.statistics import auc

NUM_ROWS, NUM_FIELDS, BATCH_SIZE = 5000, 3, 256
TEST_BATCHES = 100
# Rows of both tables sleep, those that always move in one direction too.
POLICY = slipstream.StalenessPolicy(
    min_updates=20, window=2, updates_per_sleep=20, threshold=1e9, max_sleep=8, min_drift=0.0
)


def batches(context=None, seed=None):
    """Runs on each worker: yields ids, and clicks that a sum of weights of ids decides."""
    weights = tf.constant(np.random.default_rng(0).normal(size=NUM_ROWS), tf.float32)
    random = tf.random.Generator.from_seed(seed) if seed else None
    draw = random.uniform if seed else tf.random.uniform

    def batch(_):
        # Few ids are frequent.
        ids = tf.cast(draw([BATCH_SIZE, NUM_FIELDS]) ** 4 * NUM_ROWS, tf.int64)
        logits = tf.reduce_sum(tf.gather(weights, ids), axis=1, keepdims=True)
        clicks = tf.cast(draw([BATCH_SIZE, 1]) < tf.sigmoid(logits), tf.float32)
        return ids, (clicks, clicks)

    return tf.data.Dataset.range(1 << 40).map(batch)


def counted(_, counts):
    """A loss by whose mean over the batch, at a rate of 1/4, a row rises by 1 a lookup."""
    return -4.0 * BATCH_SIZE * tf.reduce_sum(tf.reshape(counts, [BATCH_SIZE, -1]), axis=1)


def build():
    ids = keras.Input((NUM_FIELDS,), dtype="int64")
    options = {"embeddings_initializer": "zeros"}
    counts = slipstream.SlipstreamEmbedding(NUM_ROWS, 1, name="counts", **options)
    rows = slipstream.SlipstreamEmbedding(NUM_ROWS, 8, name="items")
    hidden = keras.layers.Dense(16, activation="relu")(keras.layers.Flatten()(rows(ids)))
    clicks = keras.layers.Dense(1, activation="sigmoid", name="clicks")(hidden)
    model = keras.Model(ids, [clicks, counts(ids)])
    optimizer = slipstream.SlipstreamOptimizer(keras.optimizers.SGD(0.25), policy=POLICY)
    model.compile(optimizer, [keras.losses.BinaryCrossentropy(), counted])
    return model, counts


class Pace(keras.callbacks.Callback):
    """Sends no step before its time, tells how far the run is, and ends it once a file is there."""

    def __init__(self, seconds, until):
        super().__init__()
        self._seconds, self._until = seconds, until

    def on_train_batch_begin(self, batch, logs=None):
        time.sleep(self._seconds)

    def on_epoch_end(self, epoch, logs=None):
        print(f"epoch {epoch} done", flush=True)
        self.model.stop_training = os.path.exists(self._until)


def main(settings):
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    with strategy.scope():
        model, counts = build()
    trainer = slipstream.distribute.ParameterServerTrainer(
        model, strategy, settings["folder"], settings["steps"]
    )
    trainer.fit(
        batches,
        epochs=settings["epochs"],
        steps_per_epoch=settings["steps"],
        callbacks=[Pace(settings["seconds_per_step"], settings["until"])],
        verbose=0,
    )
    optimizer = model.optimizer
    optimizer.wake_all()
    test = batches(seed=1).take(TEST_BATCHES)
    clicks = np.concatenate([labels[0] for _, labels in test])
    predicted, _ = trainer.predict(batches(seed=1).map(lambda ids, _: ids).take(TEST_BATCHES))
    stats, caches = optimizer.skip_stats(), optimizer.cache_stats().values()
    table = np.concatenate([shard.numpy() for shard in counts._shards]).astype(np.float64)
    print(
        json.dumps(
            {
                "auc": float(auc(clicks[:, 0] > 0, predicted[:, 0])),
                "steps": int(optimizer.iterations.numpy()),
                "counted_steps": stats["counts"].num_lookups / (BATCH_SIZE * NUM_FIELDS),
                "applied_steps": float(table.sum()) / (BATCH_SIZE * NUM_FIELDS),
                "deferred": stats["counts"].num_deferred_lookups / stats["counts"].num_lookups,
                "num_lost_batches": sum(one.num_lost_batches for one in caches),
                "num_held_batches": sum(one.num_held_batches for one in caches),
            }
        )
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
