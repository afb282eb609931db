"""Trains a table under policies in large batches and prints a hash of the bits of its variables.

Run by `test_threads.py` in a process of its own, because TensorFlow fixes its number of threads for
good: `python -m tests.policy.training_hash NUM_THREADS`.
"""

import hashlib
import sys

import numpy as np
import tensorflow as tf

from tests.policy.training import Product, policies

NUM_LOOKUPS, NUM_ROWS, NUM_STEPS = 20_000, 7_000, 10
RULES = ("sgd", "row_wise_adagrad", "adam", "rmsprop_centered_momentum", "ftrl_all")


def training_hash():
    """Returns a hash of all variables after some steps of some rules, deferring and skipping."""
    digest = hashlib.sha256()
    for number, name in enumerate(RULES):
        random = np.random.default_rng(number)
        # More rows than entries; a refresh among the steps.
        policy = policies(
            on_stale=("defer", "skip")[number % 2],
            threshold=2.0,
            refresh_every=7,
            min_updates=2,
            popular_share=0.01,
        )
        product = Product(random.standard_normal([NUM_ROWS, 9]), name, policy)
        for _ in range(NUM_STEPS):
            ids = random.zipf(1.2, NUM_LOOKUPS) % NUM_ROWS
            product.step(ids, random.standard_normal([NUM_LOOKUPS, 9], np.float32))
        product.optimizer.settle()
        for variable in product.optimizer.variables:
            digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
        arrays = product.arrays()
        digest.update(arrays["table"].tobytes())
        assert arrays["policy_state"][1] > 0, "nothing sleeps"
    return digest.hexdigest()


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
    print(training_hash())
