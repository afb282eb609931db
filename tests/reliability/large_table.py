"""A table of 2^31 + 10 rows trains, exactly, and refuses the id after its last.

    python -m tests.reliability.large_table

Takes 10 GB of memory and a minute, and so is no test of `make test`.
"""

import numpy as np
import tensorflow as tf

import tf_slipstream as slipstream
from tf_slipstream._compat import keras

NUM_ROWS = 2**31 + 10


def counting(layer, policy=None):
    """Returns an optimizer, and a step that takes 1 from the row of each lookup of a layer."""
    layer.build(None)
    optimizer = slipstream.SlipstreamOptimizer(keras.optimizers.SGD(1.0), policy=policy)
    optimizer.build(layer.trainable_variables)

    @tf.function
    def step(ids):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(ids))
        table = layer.trainable_variables[0]
        optimizer.apply_gradients([(tape.gradient(loss, layer.embeddings), table)])

    return optimizer, step


def main():
    layer = slipstream.SlipstreamEmbedding(NUM_ROWS, 1, "zeros", name="large")
    _, step = counting(layer)
    last = NUM_ROWS - 1
    ids = [0, 1, 2**31 - 1, 2**31, last, last]
    for _ in range(3):
        step(tf.constant(ids, tf.int64))
    others = [2, 2**31 - 2, 2**31 + 1, last - 1]
    rows = layer(tf.constant([*ids, *others], tf.int64)).numpy()[:, 0]
    np.testing.assert_array_equal(rows, [-3, -3, -3, -3, -6, -6, 0, 0, 0, 0])
    try:
        layer(tf.constant([NUM_ROWS], tf.int64))
    except tf.errors.InvalidArgumentError as error:
        assert str(NUM_ROWS) in str(error), error
    else:
        raise AssertionError("an id after the last row was looked up")
    print(f"{NUM_ROWS:,} rows: each that was looked up moved as far as it should, no other did")


if __name__ == "__main__":
    main()
