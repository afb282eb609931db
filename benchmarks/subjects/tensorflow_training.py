"""The whole training step of a TensorFlow subject, through `model.fit`.

    slipstream   SlipstreamEmbedding, SlipstreamOptimizer around a Keras 3 optimizer
    collection   the same with one SlipstreamEmbeddingCollection; where no field has bags its ids
                 come as one array of all fields
    keras3       keras.layers.Embedding, a Keras 3 optimizer
    keep0.5      the first, in a SelectiveModel that trains on half of the inputs; keep0.3 alike; a
                 step is a batch read, and a time the mean of 10, some of which train
    tf_keras     tf_keras.layers.Embedding, a legacy tf_keras optimizer with its sparse update

All get the same dense layers, and ids of int64 that are in memory: but for `collection` as columns.
"""

import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_USE_LEGACY_KERAS"] = "1" if "tf_keras" in sys.argv else "0"
sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))

import numpy as np
import tensorflow as tf
import training_workload
import workload

keras = tf.keras
OPTIMIZERS = {"sgd": "SGD", "adagrad": "Adagrad", "adam": "Adam"}


class PairwiseDots(keras.layers.Layer):
    """Dot products of all pairs of vectors: `[batch, num, dim]` to `[batch, num (num - 1) / 2]`.

    Pairs are picked along the first axis, between two transposes: along the last one it takes
    TensorFlow four times as long.
    """

    def call(self, vectors):
        num = vectors.shape[1]
        rows, columns = training_workload.pairs(num)
        dots = tf.reshape(tf.matmul(vectors, vectors, transpose_b=True), [-1, num * num])
        return tf.transpose(tf.gather(tf.transpose(dots), rows * num + columns))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[1] * (input_shape[1] - 1) // 2)


class Sum(keras.layers.Layer):
    """Sums the rows of a bag: `[batch, bag, dim]` to `[batch, dim]`."""

    def call(self, rows):
        return tf.reduce_sum(rows, axis=1)


class Timer(keras.callbacks.Callback):
    """Keeps the time from the end of a step to that of the next; stops after `max_seconds`."""

    def __init__(self, args):
        super().__init__()
        self.ends, self.args = [], args

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())
        num_steps = len(self.ends) - 1 - self.args.warmup
        if num_steps >= workload.MIN_STEPS:
            spent = self.ends[-1] - self.ends[self.args.warmup]
            self.model.stop_training |= spent > self.args.max_seconds

    def seconds(self):
        return np.diff(self.ends[self.args.warmup :]).tolist()


class TensorFlowTraining:
    def __init__(self, args):
        tf.config.threading.set_intra_op_parallelism_threads(args.threads)
        tf.config.threading.set_inter_op_parallelism_threads(args.threads)
        spec = training_workload.MODELS[args.model]
        self.make_embeddings(args.cardinalities, spec)
        self.dense_layers = []
        self.model = self._build(spec)
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        self.model.compile(self.optimizer(OPTIMIZERS[args.rule]), loss)

    def make_embeddings(self, cardinalities, spec):
        fields = zip(cardinalities, spec.bags)
        self.embeddings = [self.embedding(rows, spec.dim, bag) for rows, bag in fields]

    def inputs(self, spec):
        """Returns what the model gets for ids."""
        return [keras.Input((bag,), dtype="int64") for bag in spec.bags]

    def rows(self, ids):
        """Returns a list of rows `[batch, dim]`, one per field, or of several side by side."""
        return [lookup(field) for (lookup, _), field in zip(self.embeddings, ids)]

    def tables(self):
        return [layer.get_weights()[0] for _, layer in self.embeddings]

    def arranged(self, ids):
        """Returns a list of ids `[..., bag]` per field as the model gets them."""
        return ids

    def embedding(self, rows, dim, bag):
        """Returns a callable from ids `[batch, bag]` to `[batch, dim]`, and the layer in it."""
        layer = keras.layers.Embedding(rows, dim)
        if bag == 1:
            return (lambda ids: layer(ids[:, 0])), layer
        return (lambda ids: Sum()(layer(ids))), layer

    def optimizer(self, name):
        return getattr(keras.optimizers, name)(training_workload.LEARNING_RATE)

    def _build(self, spec):
        dense = keras.Input((spec.num_dense,), name="dense_features")
        ids = self.inputs(spec)
        rows = self.rows(ids)
        if spec.interaction == "towers":
            sides = rows[: spec.half], rows[spec.half :]
            towers = [self._layers(_concat(side), spec.towers) for side in sides]
            logits = keras.layers.Dot(axes=1)(towers)
        else:
            x = self._layers(dense, spec.bottom, ends_linear=False)
            if spec.interaction == "dot":
                stacked = keras.layers.Reshape((-1, spec.dim))(_concat([x, *rows]))
                rows = [PairwiseDots()(stacked)]
            logits = self._layers(_concat([x, *rows]), (*spec.top, 1))
        return keras.Model([dense, *ids], logits)

    def _layers(self, x, units, ends_linear=True):
        for index, width in enumerate(units):
            is_linear = ends_linear and index == len(units) - 1
            layer = keras.layers.Dense(width, activation=None if is_linear else "relu")
            self.dense_layers.append(layer)
            x = layer(x)
        return x

    def weights(self):
        return self.tables(), [tuple(layer.get_weights()) for layer in self.dense_layers]

    def train_on(self, dense, ids, labels):
        return float(self.model.train_on_batch([dense, *self.arranged(ids)], labels))

    def measure(self, args, dense, ids, labels):
        dataset = tf.data.Dataset.from_tensor_slices(
            ((dense, *self.arranged(ids)), labels)
        ).repeat()
        timer = Timer(args)
        num_steps = args.warmup + args.steps + 1
        self.model.fit(dataset, steps_per_epoch=num_steps, verbose=0, callbacks=[timer])
        return timer.seconds()


class SlipstreamTraining(TensorFlowTraining):
    def embedding(self, rows, dim, bag):
        import tf_slipstream

        if bag == 1:
            layer = tf_slipstream.SlipstreamEmbedding(rows, dim, policy=None)
            return (lambda ids: layer(ids[:, 0])), layer
        layer = tf_slipstream.SlipstreamEmbedding(rows, dim, combiner="sum", policy=None)
        return layer, layer

    def optimizer(self, name):
        import tf_slipstream

        return tf_slipstream.SlipstreamOptimizer(super().optimizer(name))


class CollectionTraining(SlipstreamTraining):
    """One layer for all fields; ids are one array, or columns where there are bags."""

    def make_embeddings(self, cardinalities, spec):
        import tf_slipstream

        self.is_array = max(spec.bags) == 1
        self.layer = tf_slipstream.SlipstreamEmbeddingCollection(
            list(cardinalities),
            spec.dim,
            combiner=None if self.is_array else "sum",
            policy=None,
        )

    def inputs(self, spec):
        if self.is_array:
            return [keras.Input((len(spec.bags),), dtype="int64")]
        return super().inputs(spec)

    def rows(self, ids):
        return [keras.layers.Flatten()(self.layer(ids[0]))] if self.is_array else self.layer(ids)

    def tables(self):
        return [self.layer.rows(field) for field in range(len(self.layer.input_dims))]

    def arranged(self, ids):
        return [np.concatenate(ids, axis=-1)] if self.is_array else ids


class ChosenTraining(SlipstreamTraining):
    """Reads all, trains on some."""

    keep = 0.5

    def measure(self, args, dense, ids, labels):
        import tf_slipstream

        pilot = tf_slipstream.Pilot(args.cardinalities, ids=lambda inputs: list(inputs[1:]))
        optimizer, loss = self.model.optimizer, self.model.loss
        self.model = tf_slipstream.SelectiveModel(self.model, pilot, keep=self.keep)
        self.model.compile(optimizer, loss)
        seconds = super().measure(args, dense, ids, labels)
        whole = len(seconds) // 10 * 10
        return np.reshape(seconds[:whole], [-1, 10]).mean(axis=1).tolist()


class MoreChosenTraining(ChosenTraining):
    keep = 0.3


class TfKerasTraining(TensorFlowTraining):
    def optimizer(self, name):
        return getattr(keras.optimizers.legacy, name)(training_workload.LEARNING_RATE)


def _concat(tensors):
    return tensors[0] if len(tensors) == 1 else keras.layers.Concatenate()(tensors)


SUBJECTS = {
    "slipstream": SlipstreamTraining,
    "collection": CollectionTraining,
    "keep0.5": ChosenTraining,
    "keep0.3": MoreChosenTraining,
    "keras3": TensorFlowTraining,
    "tf_keras": TfKerasTraining,
}

if __name__ == "__main__":
    packages = ["tf-slipstream", "tensorflow", "keras", "tf_keras", "numpy"]
    training_workload.main(SUBJECTS, packages)
