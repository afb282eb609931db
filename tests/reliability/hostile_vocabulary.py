"""State of a vocabulary in which a number makes no sense, as a checkpoint may have it.

Run as a program it tries one seed: `python -m tests.reliability.hostile_vocabulary SEED [--few]`.
"""

import sys

import numpy as np
import tensorflow as tf

from tests.reliability.hostile_state import REFUSALS, try_cases
from tf_slipstream import DynamicVocabulary, SlipstreamEmbedding, SlipstreamOptimizer
from tf_slipstream._compat import keras, tf_variable

CAPACITY, DIM, NUM_STEPS = 14, 2, 8
IDS = 40  # of which more come than have room


class Training:
    """A vocabulary and the table behind it.

    Args:
        seed: Of the kind of ids, and of when they get rows and lose them.
    """

    def __init__(self, seed):
        self._random = np.random.default_rng([31, seed])
        self.is_string = bool(seed % 2)
        self.vocabulary = DynamicVocabulary(
            CAPACITY,
            admit_after=1 + seed // 2 % 2,
            forget_after=(None, 2)[seed // 4 % 2],
            dtype="string" if self.is_string else "int64",
            max_id_bytes=15,
            name="ids",
        )
        self.vocabulary.build()
        self.table = SlipstreamEmbedding(CAPACITY, DIM, name="table")
        self.table.build(None)
        self.optimizer = SlipstreamOptimizer(keras.optimizers.Adagrad(0.5))
        self.optimizer.build([self.table.embeddings])
        for _ in range(NUM_STEPS):
            self.step()

    def batch(self):
        ids = (IDS * self._random.random(12) ** 2).astype(np.int64)
        return tf.strings.as_string(ids) if self.is_string else tf.constant(ids)

    def step(self):
        with tf.GradientTape() as tape:
            rows = self.vocabulary(self.batch(), training=True)
            loss = tf.reduce_sum(self.table(rows))
        variable = self.table.embeddings
        self.optimizer.apply_gradients([(tape.gradient(loss, variable), variable)])
        assert ((0 <= rows.numpy()) & (rows.numpy() < CAPACITY)).all()

    def predict(self):
        rows = self.vocabulary(self.batch(), training=False).numpy()
        assert ((0 <= rows) & (rows < CAPACITY)).all()

    @property
    def variables(self):
        return {variable.name: tf_variable(variable) for variable in self.vocabulary.weights}

    def values(self):
        return {name: variable.numpy() for name, variable in self.variables.items()}

    def set_values(self, values):
        for name, variable in self.variables.items():
            variable.assign(values[name])


def check_case(training, good, name, place, number):
    """Restores a map with a number that makes no sense, and uses it in each way."""
    hostile = {key: array.copy() for key, array in good.items()}
    flat = hostile[name].reshape(-1)
    flat[place] = np.array(number).astype(flat.dtype)
    num_refused = 0
    for use in (training.predict, training.step, training.vocabulary.ids):
        training.set_values(hostile)
        try:
            use()
        except REFUSALS:
            num_refused += 1
            after = training.values()
            assert all(after[key].tobytes() == hostile[key].tobytes() for key in after)
    training.vocabulary.stats()
    return num_refused


def trial(seed, folder, every=1):
    """Tries the state of a vocabulary, as `try_cases`."""
    del folder
    return try_cases(Training(seed), check_case, seed, every)


if __name__ == "__main__":
    print("done", trial(int(sys.argv[1]), None, every=11 if "--few" in sys.argv else 1))
