"""The embedding step of TensorFlow Recommenders Addons: hash tables on CPU, legacy optimizers.

Its tables are filled with every id first, so that a step finds all rows, as with the others.
Runs in an environment of its own, which `make bench-peers` makes where there is a Python 3.11 or
3.10.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_USE_LEGACY_KERAS"] = "1"
sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))

import equations
import numpy as np
import tensorflow as tf
import workload
from tensorflow_recommenders_addons import dynamic_embedding

OPTIMIZERS = {"sgd": "SGD", "adagrad": "Adagrad", "adam": "Adam"}
FILL_ROWS = 1_000_000  # rows written at once


class TfraStep:
    """An `Embedding` of TFRA per table and its `DynamicEmbeddingOptimizer`."""

    def __init__(self, args):
        tf.config.threading.set_intra_op_parallelism_threads(args.threads)
        tf.config.threading.set_inter_op_parallelism_threads(args.threads)
        self.convention = equations.Convention()
        self.args = args
        TfraStep.num_made = getattr(TfraStep, "num_made", 0) + 1
        self.layers = [
            dynamic_embedding.keras.layers.Embedding(
                args.dim,
                initializer=tf.keras.initializers.RandomUniform(-0.05, 0.05),
                init_capacity=2 * rows,
                name=f"t{TfraStep.num_made}_{index}",
            )
            for index, rows in enumerate(args.cardinalities)
        ]
        rng = np.random.default_rng(0)
        for layer, rows in zip(self.layers, args.cardinalities):
            for first in range(0, rows, FILL_ROWS):
                ids = np.arange(first, min(first + FILL_ROWS, rows))
                values = rng.random((len(ids), args.dim), dtype=np.float32) * 0.1 - 0.05
                layer.params.upsert(tf.constant(ids), tf.constant(values))
        make = getattr(tf.keras.optimizers.legacy, OPTIMIZERS[args.rule])
        inner = make(equations.LEARNING_RATE)
        self.optimizer = dynamic_embedding.DynamicEmbeddingOptimizer(inner)
        self.compiled = tf.function(self._step)

    def set_upstream(self, upstream):
        self.upstream = [tf.constant(table) for table in upstream]

    def prepare(self, ids):
        return [tf.constant(t if self.args.bag > 1 else t[:, 0]) for t in ids]

    def step(self, batch):
        return self.compiled(batch).numpy()

    def tables(self):
        return [
            layer.params.lookup(tf.range(rows, dtype=tf.int64)).numpy()
            for layer, rows in zip(self.layers, self.args.cardinalities)
        ]

    def _step(self, batch):
        with tf.GradientTape() as tape:
            vectors = [layer(ids) for layer, ids in zip(self.layers, batch)]
            if self.args.bag > 1:
                vectors = [tf.reduce_sum(rows, axis=1) for rows in vectors]
        variables = [layer.trainable_variables[0] for layer in self.layers]
        grads = tape.gradient(vectors, variables, output_gradients=self.upstream)
        self.optimizer.apply_gradients(zip(grads, variables))
        return tf.stack([vector[0, 0] for vector in vectors])


if __name__ == "__main__":
    packages = ["tensorflow", "tensorflow-recommenders-addons", "tf_keras", "numpy"]
    workload.main({"tfra": TfraStep}, packages)
