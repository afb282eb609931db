"""The embedding step of a TensorFlow subject: ours, Keras 3's, or tf_keras's legacy optimizers.

python benchmarks/subjects/tensorflow_step.py --subject keras3 --rule adam --rows 1000000 --dim
32
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))

import numpy as np
import tensorflow as tf
import workload

RULES = {
    "sgd": ("SGD", {}),
    "adagrad": ("Adagrad", {}),
    "adam": ("Adam", {}),
    "row_wise_adagrad": ("RowWiseAdagrad", {}),
}
LEARNING_RATE = 0.01


def slipstream(args):
    import keras

    import tf_slipstream

    name, options = RULES[args.rule]
    make = getattr(keras.optimizers, name, None) or getattr(tf_slipstream, name)
    layer = tf_slipstream.SlipstreamEmbedding(args.rows, args.dim, policy=None)
    layer.build()
    inner = make(LEARNING_RATE, **options)
    return layer.embeddings.value, layer, tf_slipstream.SlipstreamOptimizer(inner)


def keras3(args):
    import keras

    name, options = RULES[args.rule]
    layer = keras.layers.Embedding(args.rows, args.dim)
    layer.build()
    return layer.embeddings.value, layer, getattr(keras.optimizers, name)(LEARNING_RATE, **options)


def tf_keras_legacy(args):
    import tf_keras

    name, options = RULES[args.rule]
    table = tf.Variable(tf.random.uniform([args.rows, args.dim], -0.05, 0.05))
    optimizer = getattr(tf_keras.optimizers.legacy, name)(LEARNING_RATE, **options)
    return table, lambda ids: tf.nn.embedding_lookup(table, ids), optimizer


SUBJECTS = {"slipstream": slipstream, "keras3": keras3, "tf_keras_legacy": tf_keras_legacy}


def make_step(make_subject, args, upstream):
    """Returns the table, and lookup + gradient + update as one `tf.function`."""
    table, lookup, optimizer = make_subject(args)
    variables = getattr(lookup, "trainable_variables", [table])

    @tf.function
    def step(ids):
        with tf.GradientTape() as tape:
            rows = lookup(ids)
        grads = tape.gradient(rows, [table], output_gradients=upstream)
        optimizer.apply_gradients(zip(grads, variables))
        return rows[0, 0]

    return table, step


def check(make_subject, args):
    """Fails unless one step on a small table, with distinct ids, is right."""
    small = type(args)(**(vars(args) | {"rows": 50, "dim": 4, "lookups": 20}))
    rng = np.random.default_rng(3)
    ids = rng.permutation(50)[:20]
    upstream = rng.standard_normal((20, 4)).astype(np.float32)
    table, step = make_step(make_subject, small, tf.constant(upstream))
    expected = table.numpy().astype(np.float64)
    step(tf.constant(ids))
    squared = upstream.astype(np.float64) ** 2
    expected[ids] -= (
        LEARNING_RATE
        * upstream
        * {
            "sgd": 1.0,
            "adagrad": 1 / np.sqrt(0.1 + squared),
            "adam": 1 / np.sqrt(squared),
            "row_wise_adagrad": 1 / np.sqrt(0.1 + squared.mean(axis=1, keepdims=True)),
        }[args.rule]
    )
    np.testing.assert_allclose(table.numpy(), expected, rtol=1e-4, atol=1e-5)


def main():
    name = sys.argv[sys.argv.index("--subject") + 1]
    at = sys.argv.index("--subject")
    del sys.argv[at : at + 2]
    args = workload.arguments()
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(args.threads)
    check(SUBJECTS[name], args)
    batches = [tf.constant(ids) for ids in workload.id_batches(args)]
    upstream = tf.constant(workload.upstream_gradient(args))
    memory_before = workload.peak_memory()
    _, step = make_step(SUBJECTS[name], args, upstream)
    seconds = workload.measure(args, lambda ids: step(ids).numpy(), batches)
    workload.report(args, seconds, subject=name, memory_before=memory_before)


if __name__ == "__main__":
    main()
