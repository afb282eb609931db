"""Training a table under a policy, and the same of the oracle, on streams of lookups."""

import dataclasses

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from tests.models import embedding_of
from tests.ops.tables import RULE_CASES, RuleCase
from tests.policy.reference import PolicyTable
from tf_slipstream import RowWiseAdagrad, SlipstreamOptimizer, StalenessPolicy, update_rules
from tf_slipstream._compat import keras

RULES = RULE_CASES | {
    # Where docs/reference/sleeping_rows.md divides by 1 - mu, the limit of that is meant.
    "momentum_1": RuleCase(update_rules.Momentum(1.0, False), "sgd", {"momentum": 1.0}),
}
KERAS_CLASSES = {
    "sgd": keras.optimizers.SGD,
    "adagrad": keras.optimizers.Adagrad,
    "row_wise_adagrad": RowWiseAdagrad,
    "adam": keras.optimizers.Adam,
    "rmsprop": keras.optimizers.RMSprop,
    "ftrl": keras.optimizers.Ftrl,
}
METRICS = ("coherence", "relative_l2", "l2", "mean_abs", "loss")


def policies(**changes):
    """Returns a policy under which rows sleep after a few steps, less these changes."""
    return StalenessPolicy(
        **{
            "on_stale": "defer",
            "min_updates": 3,
            "window": 2,
            "probe": 2,
            "drift_metric": "coherence",
            "threshold": 1.0,
            "target_skip": None,
            "max_threshold": 4.0,
            "min_drift": 0.0,
            "first_sleep": 2,
            "max_sleep": 8,
            "updates_per_sleep": 2,
            "max_age": 10_000,
            "skip_below": 0.0,
            "refresh_every": 0,
            "warm_up": 0,
            "popular_share": 1.0,
        }
        | changes
    )


def inner_of(name, learning_rate=0.125, **options):
    """Returns the Keras optimizer of a rule, by its name in `RULES`."""
    case = RULES[name]
    return KERAS_CLASSES[case.reference](learning_rate, **case.options, **options)


class Product:
    """A layer's table under a `SlipstreamOptimizer`.

    Args:
        values: Float32 `[num_rows, dim]`.
        name: A key of `RULES`.
        policy: The optimizer's.
        in_function: Whether steps run in a `tf.function`.
        **options: Of the Keras optimizer.
    """

    def __init__(self, values, name, policy, in_function=False, **options):
        self.slots = [slot.name for slot in RULES[name].rule.slots]
        self.layer = embedding_of(np.asarray(values, np.float32), name="user")
        self.optimizer = SlipstreamOptimizer(inner_of(name, **options), policy=policy)
        self.optimizer.build([self.layer.embeddings])
        self._apply = self._apply_slices
        if in_function:
            dim = self.layer.output_dim
            signature = [tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, dim])]
            self._apply = tf.function(self._apply_slices, input_signature=signature)

    def _apply_slices(self, ids, grads):
        shape = tf.constant([self.layer.input_dim, self.layer.output_dim])
        gradient = tf.IndexedSlices(grads, ids, shape)
        self.optimizer.apply_gradients([(gradient, self.layer.embeddings)])

    @property
    def state(self):
        return self.optimizer.tables["user"]

    def step(self, ids, grads, learning_rate=None):
        if learning_rate is not None:
            self.optimizer.learning_rate = learning_rate
        ids = tf.constant(np.asarray(ids, np.int64))
        self._apply(ids, tf.constant(np.asarray(grads, np.float32)))

    def arrays(self):
        """Returns copies of its variables, by the names of `PolicyTable.arrays`."""
        state = self.state
        names = ("table", "row_states", "pool_ints", "pool_floats", "policy_state", "counters")
        variables = {name: getattr(state, name) for name in names}
        variables |= {f"slot {name}": slot for name, slot in zip(self.slots, state.slots)}
        variables["last_steps"] = state.last_steps
        return {
            name: np.array(variable.numpy())
            for name, variable in variables.items()
            if variable is not None
        }

    def num_held(self):
        """Returns how many batches of how many rows are held."""
        return int(self.state.pool_ints.numpy()[:, 4].sum())

    def set_back(self, num_steps):
        """Sets the counter of steps back, as somebody may who trains on."""
        self.optimizer.iterations.assign(num_steps)


@dataclasses.dataclass(frozen=True)
class Stream:
    """Lookups and gradients of some steps of one table.

    Attributes:
        dim: The table's.
        shares: Per row, the share of steps that look it up.
        num_steps: Number of steps.
        seed: Of values, lookups and gradients.
        change_rate_at: The step from which on the learning rate is another.
        pull: How far a row's gradients are from 0 on average; rows take turns in being pulled.
    """

    dim: int = 4
    shares: tuple = (1.0, 1.0, 0.7, 0.7, 0.3, 0.1)
    num_steps: int = 40
    seed: int = 0
    change_rate_at: int = 10**9
    pull: float = 0.5

    def values(self):
        return np.random.default_rng([self.seed, 0]).normal(size=[len(self.shares), self.dim])

    def steps(self):
        """Yields ids `[num_lookups]`, gradients `[num_lookups, dim]` and learning rate."""
        random = np.random.default_rng([self.seed, 1])
        for step in range(1, self.num_steps + 1):
            ids = np.flatnonzero(random.random(len(self.shares)) < self.shares)
            ids = random.permutation(np.concatenate([ids, ids[random.random(len(ids)) < 0.3]]))
            grads = random.uniform(-1, 1, [len(ids), self.dim])
            grads += self.pull * ((ids + step // 12) % 2)[:, np.newaxis]
            yield ids, grads.astype(np.float32), 0.125 if step < self.change_rate_at else 0.0625


@st.composite
def streams(draw, num_steps=40):
    shares = st.sampled_from([1.0, 0.8, 0.5, 0.25, 0.05])
    return Stream(
        dim=draw(st.sampled_from([1, 3, 4, 8, 17])),
        shares=(*draw(st.lists(shares, min_size=0, max_size=5)), 1.0),
        num_steps=num_steps,
        seed=draw(st.integers(0, 9_999)),
        change_rate_at=draw(st.sampled_from([10**9, num_steps // 2])),
        pull=draw(st.sampled_from([0.0, 0.5, 2.0])),
    )


@st.composite
def drawn_policies(draw, **changes):
    """Policies of all kinds, with thresholds around what drifts are in `streams`."""
    metric = draw(st.sampled_from(METRICS))
    typical = {"coherence": 1.0, "relative_l2": 0.125, "l2": 0.25, "mean_abs": 0.1, "loss": 0.1}
    threshold = typical[metric] * draw(st.sampled_from([0.5, 1.0, 2.0, 1e6]))
    first_sleep = draw(st.integers(1, 3))
    fields = {
        "on_stale": draw(st.sampled_from(["defer", "skip"])),
        "min_updates": draw(st.integers(1, 5)),
        "window": draw(st.integers(2, 4)),
        "probe": draw(st.integers(2, 3)),
        "drift_metric": metric,
        "threshold": threshold,
        "first_sleep": first_sleep,
        "max_sleep": draw(st.integers(first_sleep, 9)),
        "updates_per_sleep": draw(st.integers(1, 4)),
        "sleep_growth": draw(st.sampled_from([1.0, 1.0, 1.5, 2.0])),
        "max_age": draw(st.sampled_from([2, 10_000])),
        "min_drift": draw(st.sampled_from([0.0, threshold / 4])),
        "skip_below": draw(st.sampled_from([0.0, 0.0, threshold / 2])),
        "refresh_every": draw(st.sampled_from([0, 0, 17])),
        "warm_up": draw(st.sampled_from([0, 0, 10])),
    }
    return policies(**fields | changes)


def oracle_of(values, name, policy, **options):
    """Returns the `PolicyTable` of a rule, by its name in `RULES`."""
    case = RULES[name]
    values = np.asarray(values, np.float32)
    return PolicyTable(values, case.reference, policy, **case.options, **options)


def assert_matches(arrays, oracle, tolerance):
    """Fails unless a `Product`'s arrays are the oracle's: integers exactly."""
    expected = oracle.arrays()
    for name, array in arrays.items():
        if array.dtype.kind == "i":
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
        else:
            np.testing.assert_allclose(
                array, expected[name], rtol=tolerance, atol=tolerance, err_msg=name
            )
    counts = np.array([0, 1, 2, 6, 7, 8])  # in policy_state
    np.testing.assert_array_equal(arrays["policy_state"][counts], expected["policy_state"][counts])
