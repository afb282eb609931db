"""State of an optimizer in which a number makes no sense, as a checkpoint may have it.

Run as a program it tries one seed, and says before each case which it is:
`python -m tests.reliability.hostile_state SEED`. So a crash has a name. `--few`: one case of 11.
"""

import itertools
import sys

import numpy as np
import tensorflow as tf

from tests.models import embedding_of, random_table
from tests.policy.training import METRICS, RULES, inner_of, policies
from tf_slipstream import SlipstreamOptimizer, _compat
from tf_slipstream._compat import keras

REFUSALS = (tf.errors.InvalidArgumentError, ValueError)
INTEGERS = (-1, 0, 1, 2**31, 2**63 - 2, 2**63 - 1, -(2**63))
FLOATS = (np.nan, np.inf, -0.0)
# Two tables, so that one can tell of the other.
ROWS, DIM = {"user": 12, "item": 5}, 3
NUM_STEPS = 24
MOST_PER_VARIABLE = 40


class Training:
    """Two tables and a dense layer under one optimizer, some rows of which sleep.

    Args:
        seed: Of the rule, the policy and the lookups.
    """

    def __init__(self, seed):
        self._random = np.random.default_rng([23, seed])
        self.rule = list(RULES)[seed % len(RULES)]
        on_stale = ("defer", "skip")[seed // 2 % 2]
        metric = METRICS[seed % len(METRICS)]
        policy = policies(
            on_stale=on_stale,
            drift_metric=metric,
            threshold=1e9 if seed % 3 else None,
            target_skip=None if seed % 3 else 0.5,
            max_threshold=1e9,
            refresh_every=(0, 7)[seed // 3 % 2],
        )
        self.layers = {n: embedding_of(random_table(r, DIM), name=n) for n, r in ROWS.items()}
        self.dense = keras.layers.Dense(2, name="dense")
        self.dense.build([None, DIM])
        self.optimizer = SlipstreamOptimizer(inner_of(self.rule), policy=policy)
        self.trained = [layer.embeddings for layer in self.layers.values()]
        self.trained += self.dense.trainable_variables
        self.optimizer.build(self.trained)
        vectors = [tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, DIM])]
        self._apply = tf.function(self._apply_slices, input_signature=vectors * len(ROWS))
        for _ in range(NUM_STEPS):
            self.step(self.batch())
        self.next_batch = self.batch()

    def _apply_slices(self, *batch):
        pairs = []
        for place, (name, num_rows) in enumerate(ROWS.items()):
            ids, grads = batch[2 * place : 2 * place + 2]
            gradient = tf.IndexedSlices(grads, ids, tf.constant([num_rows, DIM]))
            pairs.append((gradient, self.layers[name].embeddings))
        pairs += [(tf.ones(v.shape), v) for v in self.dense.trainable_variables]
        self.optimizer.apply_gradients(pairs)

    def batch(self):
        """Returns ids and gradients of each table, in turn; most rows are in most batches."""
        batch = []
        for num_rows in ROWS.values():
            ids = np.flatnonzero(self._random.random(num_rows) < 0.8)
            batch += [ids, self._random.normal(size=[len(ids), DIM]).astype(np.float32)]
        return batch

    def step(self, batch=None):
        self._apply(*map(tf.constant, self.next_batch if batch is None else batch))

    @property
    def variables(self):
        """What a checkpoint has: dict from a name to its `tf.Variable`."""
        found = {}
        for variable in [*self.trained, *self.optimizer.variables]:
            found[f"{len(found)} {variable.name}"] = variable
        return found

    def values(self):
        return {name: np.array(v.numpy()) for name, v in self.variables.items()}

    def set_values(self, values):
        for name, variable in self.variables.items():
            # As a checkpoint is read: not by the method that settles tables before.
            handle = _compat.tf_variable(variable).handle
            tf.raw_ops.AssignVariableOp(resource=handle, value=tf.constant(values[name]))


def cases_of(values, seed):
    """Yields a name, a place and a number of every case; of large variables those of some places.

    Args:
        values: Dict of arrays.
        seed: Of the places.
    """
    random = np.random.default_rng([7, seed])
    for name, array in values.items():
        numbers = INTEGERS if array.dtype.kind in "iu" else FLOATS
        places = np.arange(array.size)
        if array.size > MOST_PER_VARIABLE:
            places = np.sort(random.choice(places, MOST_PER_VARIABLE, replace=False))
        for place in [*places, slice(None)]:
            for number in numbers:
                yield name, place, number


def check_case(training, good, name, place, number):
    """Restores a state with a number that makes no sense, and does all that is done with a state.

    What is refused has changed nothing; what is accepted keeps every number finite that was.
    """
    hostile = {key: array.copy() for key, array in good.items()}
    flat = hostile[name].reshape(-1)
    is_integer = flat.dtype.kind in "iu"
    flat[place] = np.array(number).astype(flat.dtype) if is_integer else number
    uses = {
        "step": lambda: training.step(training.next_batch),
        "settle": training.optimizer.settle,
        "wake_all": training.optimizer.wake_all,
        "stats": training.optimizer.skip_stats,
    }
    num_refused = 0
    for what, use in uses.items():
        training.set_values(hostile)
        try:
            use()
        except REFUSALS:
            num_refused += 1
            after = training.values()
            changed = [key for key in after if after[key].tobytes() != hostile[key].tobytes()]
            # A count of steps that a GPU refused is told once, and is 0 then.
            assert not [key for key in changed if key != name], (what, changed)
            continue
        if is_integer:
            bad = [key for key, value in training.values().items() if not np.isfinite(value).all()]
            assert not bad, (what, bad)
    return num_refused


def try_cases(training, check, seed, every):
    """Tries every number at every place of the state of a training, or one of `every`.

    Args:
        training: With `values`, `set_values` and `step`.
        check: Of the training, its state, and a case: in how many uses it was refused.
        seed: Of the places.
        every: Positive integer.

    Returns:
        How many cases there were, and in how many something was refused.
    """
    good = training.values()
    num_cases, num_refused = 0, 0
    for case in itertools.islice(cases_of(good, seed), 0, None, every):
        print(seed, *case, flush=True)
        num_refused += check(training, good, *case) > 0
        num_cases += 1
    training.set_values(good)
    training.step()  # nothing that was refused is left anywhere
    return {"cases": num_cases, "refused": num_refused}


def trial(seed, folder, every=1):
    """Tries the state of an optimizer, as `try_cases`."""
    del folder
    return try_cases(Training(seed), check_case, seed, every)


if __name__ == "__main__":
    print("done", trial(int(sys.argv[1]), None, every=11 if "--few" in sys.argv else 1))
