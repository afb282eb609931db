"""2^31 lookups of one table and more, in one process: counters and rows are exact.

    python -m tests.reliability.many_lookups

Takes a minute or two, and so is no test of `make test`.
"""

import numpy as np
import tensorflow as tf

import tf_slipstream as slipstream
from tests.reliability.large_table import counting

# Powers of two, so that a row gets fewer updates than float32 counts exactly.
NUM_ROWS, BATCH = 1 << 12, 1 << 20
NUM_STEPS = (1 << 11) + 3


def main():
    layer = slipstream.SlipstreamEmbedding(NUM_ROWS, 1, "zeros", name="much")
    optimizer, step = counting(layer, policy="default")
    ids = tf.range(BATCH, dtype=tf.int64) % NUM_ROWS
    for i in range(NUM_STEPS):
        step(ids)
        if i % 256 == 0:
            print(f"{i * BATCH:,} lookups", flush=True)
    optimizer.wake_all()
    rows = layer.embeddings.numpy()
    stats = optimizer.skip_stats()["much"]
    assert stats.num_lookups == NUM_STEPS * BATCH > 1 << 31, stats
    assert stats.num_row_updates == NUM_STEPS * NUM_ROWS, stats
    np.testing.assert_array_equal(rows, np.full([NUM_ROWS, 1], -NUM_STEPS * BATCH / NUM_ROWS))
    print(f"{stats.num_lookups:,} lookups: counted, and each row moved as far as it should")


if __name__ == "__main__":
    main()
