"""The embedding step of a TensorFlow subject: ours, or that of either Keras.

    slipstream        SlipstreamEmbedding, SlipstreamOptimizer around a Keras 3 optimizer
    collection        the same with one SlipstreamEmbeddingCollection for all tables
    keras3            keras.layers.Embedding, a Keras 3 optimizer
    tf_keras          tf_keras.layers.Embedding, a tf_keras optimizer
    tf_keras_legacy   tf.nn.embedding_lookup, a legacy tf_keras optimizer: TensorFlow's fastest way

Lookup, gradient and update are one `tf.function`.
"""

import argparse
import functools
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))

import equations
import numpy as np
import tensorflow as tf
import workload

OPTIMIZERS = {
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "adam": "Adam",
    "row_wise_adagrad": "RowWiseAdagrad",
}


class TensorFlowStep:
    """Lookup, gradient and update of all tables as one `tf.function`.

    Subclasses set `convention` and, in `build`, `self.variables` (what the optimizer takes),
    `self.lookups` (a callable per table, from ids to rows) and `self.optimizer`.
    """

    convention = equations.Convention(epsilon_under_root=True)
    combines = False

    def __init__(self, args):
        tf.config.threading.set_intra_op_parallelism_threads(args.threads)
        tf.config.threading.set_inter_op_parallelism_threads(args.threads)
        self.args = args
        self.build(args)
        self.compiled = tf.function(self._step)

    def set_upstream(self, upstream):
        self.upstream = [tf.constant(table) for table in upstream]

    def prepare(self, ids):
        # One tensor, as a data set inside the function would give it: each argument more costs a
        # call from Python some 35 us. A combiner takes [num_bags, bag]; without bags the last axis
        # would be an idle sum.
        return tf.constant(ids if self.args.bag > 1 else np.ascontiguousarray(ids[..., 0]))

    def step(self, batch):
        return self.compiled(batch).numpy()

    def tables(self):
        return [as_tf_variable(variable).numpy() for variable in self.variables]

    def _step(self, batch):
        tables = [as_tf_variable(variable) for variable in self.variables]
        with tf.GradientTape() as tape:
            ids_by_table = tf.unstack(batch)
            vectors = [self._vectors(*pair) for pair in zip(self.lookups, ids_by_table)]
        grads = tape.gradient(vectors, tables, output_gradients=self.upstream)
        self.optimizer.apply_gradients(zip(grads, self.variables))
        # Of every output, or TensorFlow would leave the lookups out.
        return tf.stack([vector[0, 0] for vector in vectors])

    def _vectors(self, lookup, ids):
        rows = lookup(ids)
        return rows if self.combines or self.args.bag == 1 else tf.reduce_sum(rows, axis=1)


class Slipstream(TensorFlowStep):
    def build(self, args):
        import keras

        import tf_slipstream

        self.combines = args.bag > 1
        combiner = "sum" if self.combines else None
        layers = [
            tf_slipstream.SlipstreamEmbedding(rows, args.dim, combiner=combiner, policy=None)
            for rows in args.cardinalities
        ]
        self.variables = build_layers(layers)
        # As `fit` calls them.
        self.lookups = [functools.partial(layer, training=True) for layer in layers]
        name = OPTIMIZERS[args.rule]
        make = getattr(keras.optimizers, name, None) or getattr(tf_slipstream, name)
        self.optimizer = tf_slipstream.SlipstreamOptimizer(make(equations.LEARNING_RATE))


class Collection(Slipstream):
    """Ids are an array of all fields, `[num_bags, num_tables]`, as a model's one input is."""

    def build(self, args):
        import tf_slipstream

        super().build(argparse.Namespace(**vars(args) | {"cardinalities": []}))
        combiner = "sum" if self.combines else None
        self.layer = tf_slipstream.SlipstreamEmbeddingCollection(
            list(args.cardinalities), args.dim, combiner=combiner, policy=None
        )
        self.variables = build_layers([self.layer])

    def set_upstream(self, upstream):
        self.upstream = tf.constant(np.ascontiguousarray(upstream.swapaxes(0, 1)))

    def prepare(self, ids):
        ids = ids.swapaxes(0, 1)  # [num_bags, num_tables, bag]
        return tf.constant(np.ascontiguousarray(ids if self.args.bag > 1 else ids[..., 0]))

    def tables(self):
        return [self.layer.rows(field) for field in range(len(self.args.cardinalities))]

    def _step(self, batch):
        table = as_tf_variable(self.variables[0])
        with tf.GradientTape() as tape:
            vectors = self.layer(batch, training=True)
        grad = tape.gradient(vectors, table, output_gradients=self.upstream)
        self.optimizer.apply_gradients([(grad, self.variables[0])])
        return vectors[0, :, 0]


class Keras3(TensorFlowStep):
    convention = equations.Convention(epsilon_under_root=True, sums_repeats=False)

    def build(self, args):
        import keras

        self.lookups = [keras.layers.Embedding(rows, args.dim) for rows in args.cardinalities]
        self.variables = build_layers(self.lookups)
        make = getattr(keras.optimizers, OPTIMIZERS[args.rule])
        self.optimizer = make(equations.LEARNING_RATE)


class TfKeras(TensorFlowStep):
    def build(self, args):
        import tf_keras

        self.lookups = [tf_keras.layers.Embedding(rows, args.dim) for rows in args.cardinalities]
        self.variables = build_layers(self.lookups)
        make = getattr(tf_keras.optimizers, OPTIMIZERS[args.rule])
        self.optimizer = make(equations.LEARNING_RATE)


class TfKerasLegacy(TensorFlowStep):
    convention = equations.Convention()

    def build(self, args):
        import tf_keras

        self.variables = [
            tf.Variable(tf.random.uniform([rows, args.dim], -0.05, 0.05))
            for rows in args.cardinalities
        ]
        self.lookups = [
            lambda ids, table=table: tf.nn.embedding_lookup(table, ids) for table in self.variables
        ]
        make = getattr(tf_keras.optimizers.legacy, OPTIMIZERS[args.rule])
        self.optimizer = make(equations.LEARNING_RATE)


def build_layers(layers):
    """Builds embedding layers; returns their variables."""
    for layer in layers:
        layer.build(None)
    return [layer.trainable_variables[0] for layer in layers]


def as_tf_variable(variable):
    """Returns the `tf.Variable` that gradients are taken for; a Keras 3 variable holds one."""
    return variable if isinstance(variable, tf.Variable) else variable.value


SUBJECTS = {
    "slipstream": Slipstream,
    "collection": Collection,
    "keras3": Keras3,
    "tf_keras": TfKeras,
    "tf_keras_legacy": TfKerasLegacy,
}

if __name__ == "__main__":
    packages = ["tf-slipstream", "tensorflow", "keras", "tf_keras", "numpy"]
    workload.main(SUBJECTS, packages)
