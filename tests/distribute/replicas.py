"""Training a table over replicas, and the same on one device."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from tests.models import embedding_of
from tests.policy.training import RULES, Product, inner_of, policies
from tf_slipstream import SlipstreamOptimizer

NUM_ROWS, DIM = 40, 4

POLICIES = {
    "none": None,
    "defer": policies(),
    "refresh": policies(refresh_every=37, threshold=1e9),
    "skip_below": policies(skip_below=0.7, refresh_every=45),
    "skip": policies(on_stale="skip", threshold=2.0, refresh_every=50),
    "target": policies(threshold=None, target_skip=0.3),
}


@functools.cache
def strategy_of(num_replicas):
    """Returns a `MirroredStrategy` over virtual CPU devices.

    With TensorFlow's default collectives for 4 replicas; in one process a device cannot be in
    groups of two sizes, so that other numbers of replicas gather on one device.
    """
    collectives = None if num_replicas == 4 else tf.distribute.ReductionToOneDevice()
    devices = [f"CPU:{i}" for i in range(num_replicas)]
    return tf.distribute.MirroredStrategy(devices, collectives)


class Replicated:
    """A layer's table under a `SlipstreamOptimizer` and a strategy with replicas.

    Args:
        strategy: `tf.distribute.Strategy`, or the number of virtual CPU devices that train.
        name: A key of `RULES`.
        policy: The optimizer's.
        **options: Of the Keras optimizer.
    """

    def __init__(self, strategy, name, policy, **options):
        self.strategy = strategy_of(strategy) if isinstance(strategy, int) else strategy
        self.slots = [slot.name for slot in RULES[name].rule.slots]
        with self.strategy.scope():
            self.layer = embedding_of(initial_values(), name="user")
            self.optimizer = SlipstreamOptimizer(inner_of(name, **options), policy=policy)
            self.optimizer.build([self.layer.embeddings])
        vector = tf.TensorSpec([None], tf.int64)
        self._step = tf.function(
            lambda *batch: self.strategy.run(self._replica_step, batch),
            input_signature=[vector, tf.TensorSpec([None, DIM]), vector],
        )

    def _replica_step(self, ids, grads, splits):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        mine = slice(splits[replica], splits[replica + 1])
        gradient = tf.IndexedSlices(grads[mine], ids[mine], tf.constant([NUM_ROWS, DIM]))
        self.optimizer.apply_gradients([(gradient, self.layer.embeddings)])

    @property
    def state(self):
        return self.optimizer.tables["user"]

    def step(self, batch):
        if batch.learning_rate is not None:
            self.optimizer.learning_rate = batch.learning_rate
        self._step(
            tf.constant(batch.ids), tf.constant(batch.grads), tf.constant(batch.splits, tf.int64)
        )

    def local_held(self):
        """Returns what each replica holds, [num_replicas, capacity, dim]."""
        local = self.strategy.experimental_local_results(self.state.local_held)
        return np.stack([one.numpy() for one in local])

    def replica_arrays(self):
        """Yields each replica's variables, by the names of `Product.arrays`."""
        state = self.state
        names = ("table", "row_states", "pool_ints", "pool_floats", "policy_state", "counters")
        variables = {name: getattr(state, name) for name in names}
        variables |= {f"slot {name}": slot for name, slot in zip(self.slots, state.slots)}
        variables |= {"last_steps": state.last_steps, "changed_rows": state.changed_rows}
        for replica in range(len(self.strategy.extended.worker_devices)):
            yield {
                name: self.strategy.experimental_local_results(variable)[replica].numpy()
                for name, variable in variables.items()
                if variable is not None
            }

    def arrays(self):
        """Returns the variables, with all that is held in the pool; replicas must be alike."""
        first, *others = self.replica_arrays()
        for other in others:
            for name, array in other.items():
                assert array.tobytes() == first[name].tobytes(), f"{name} differs"
        if self.state.local_held is not None:
            first["pool_floats"][:, :DIM] += self.local_held().sum(axis=0)
        del first["changed_rows"]
        return first


def initial_values():
    # Multiples of 1/16, as the gradients are: sums are then exact in any order.
    return np.random.default_rng(9).integers(-32, 33, [NUM_ROWS, DIM]).astype(np.float32) / 16


def alone(name, policy, **options):
    """Returns the same training on one device."""
    return Product(initial_values(), name, policy, **options)


@dataclasses.dataclass(frozen=True)
class Batch:
    """A step: replica `i` has the lookups from `splits[i]` to `splits[i + 1]`."""

    ids: np.ndarray
    grads: np.ndarray
    splits: np.ndarray
    learning_rate: float | None = None


def batches(num_replicas, num_steps, seed=0, rates=()):
    """Yields batches of exact gradients; replicas differ in their numbers of rows, some have none.

    Args:
        rates: Pairs of a step from which on, and the learning rate.
    """
    random = np.random.default_rng([seed, num_replicas])
    rates = dict(rates)
    for step in range(1, num_steps + 1):
        sizes = random.integers(0, 12, num_replicas) * (random.random(num_replicas) < 0.8)
        num = int(sizes.sum())
        ids = (NUM_ROWS * random.random(num) ** 3).astype(np.int64)
        grads = random.integers(-8, 9, [num, DIM]).astype(np.float32) / 16
        grads += ((ids + step // 40) % 4 == 0)[:, np.newaxis] * np.float32(0.125)
        splits = np.concatenate([[0], np.cumsum(sizes)])
        yield Batch(ids, grads, splits, rates.get(step))


def assert_same(replicated, single):
    """Fails unless all variables are equal, to the bit, less the sign of zeros."""
    expected = single.arrays()
    for name, array in replicated.arrays().items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
