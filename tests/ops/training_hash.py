"""Trains tables in large batches and prints a hash of the bits of the result.

Run by `test_apply_rows_threads.py` in a process of its own, because TensorFlow fixes its number of
threads for good: `python -m tests.ops.training_hash NUM_THREADS`.
"""

import hashlib
import sys

import numpy as np
import tensorflow as tf

from tests.ops import tables
from tf_slipstream.ops.apply_rows import apply_rows
from tf_slipstream.ops.live_slices import live_slices
from tf_slipstream.ops.settle_rows import settle_rows

NUM_LOOKUPS = 60_000
RULES = ("sgd", "row_wise_adagrad", "adam", "ftrl_all")


def training_hash():
    """Returns a hash of tables and slots after some steps and settling, and of live slices."""
    digest = hashlib.sha256()
    for name in RULES:
        rule = tables.RULE_CASES[name].rule
        random = np.random.default_rng(0)
        states = [tables.new_state(rule, random.random([5_000, dim])) for dim in (8, 3)]
        for step in (1, 2):
            batches = []
            for state in states:
                ids = random.zipf(1.2, NUM_LOOKUPS) % state.num_rows
                grads = random.standard_normal([NUM_LOOKUPS, state.table.shape[1]], np.float32)
                batches.append(tables.slices(ids, grads))
            for live in live_slices(states, batches, tf.constant(step, tf.int64)):
                digest.update(live.indices.numpy().tobytes() + live.values.numpy().tobytes())
            apply_rows(rule, states, batches, tables.settings(step, 0.125))
        settle_rows(rule, states, tables.settings(5, 0.125), [0.0, 0.125], wake=False)
        for state in states:
            for _, array in sorted(tables.arrays_of(state).items()):
                digest.update(array.tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
    print(training_hash())
