"""What may be called while another thread trains."""

import threading

import numpy as np
import pytest
import tensorflow as tf

from tests.models import assert_all_equal, embedding_of, random_table, sleepy, values_of
from tf_slipstream import SlipstreamOptimizer
from tf_slipstream._compat import keras
from tf_slipstream.state.schema import POLICY_STATE
from tf_slipstream.state.table import set_counter

NUM_ROWS, DIM, NUM_STEPS = 40, 4, 1500


class Training:
    """Steps of one table, the same whoever looks on."""

    def __init__(self):
        self.layer = embedding_of(random_table(NUM_ROWS, DIM), name="user")
        policy = sleepy(threshold=None, target_skip=0.3, window=3)
        self.optimizer = SlipstreamOptimizer(keras.optimizers.Adam(0.0625), policy=policy)
        self.optimizer.build(self.layer.trainable_variables)
        self.error = None

    @tf.function(autograph=False)
    def step(self, ids, grads):
        gradient = tf.IndexedSlices(grads, ids, tf.constant([NUM_ROWS, DIM]))
        self.optimizer.apply_gradients([(gradient, self.layer.weights[0])])

    def run(self):
        try:
            rng = np.random.default_rng(0)
            for _ in range(NUM_STEPS):
                ids = (NUM_ROWS * rng.random(12) ** 2).astype(np.int64)
                self.step(tf.constant(ids), tf.constant(rng.normal(size=[12, DIM]), tf.float32))
        except BaseException as error:
            self.error = error

    def values(self):
        state = self.optimizer.tables["user"]
        variables = [state.table, *state.slots, state.last_steps, state.row_states]
        variables += [state.pool_ints, state.pool_floats, state.policy_state, state.counters]
        return values_of(variables)


@pytest.fixture(scope="module")
def undisturbed():
    training = Training()
    training.run()
    assert training.error is None
    return training


def _set_strictness(training):
    training.optimizer.set_strictness(1.0)


def _set_counter(training):
    # As publishing does.
    set_counter(training.optimizer.tables["user"], "publication", 0)


def _read(training):
    assert training.optimizer.strictness == 1.0
    assert training.optimizer.skip_stats()["user"].num_rows == NUM_ROWS


@pytest.mark.parametrize("call", [_set_strictness, _set_counter, _read])
def test_it_does_not_disturb_what_steps_write(call, undisturbed):
    training = Training()
    thread = threading.Thread(target=training.run, daemon=True)
    thread.start()
    num_calls = 0
    while thread.is_alive():
        call(training)
        num_calls += 1
    thread.join()
    assert training.error is None and num_calls > 100
    assert_all_equal(training.values(), undisturbed.values())
    stats = training.optimizer.skip_stats()["user"]
    assert stats == undisturbed.optimizer.skip_stats()["user"]
    assert stats.num_deferred_lookups > NUM_STEPS


def test_strictness_is_set_and_nothing_else():
    training = Training()
    thread = threading.Thread(target=training.run, daemon=True)
    thread.start()
    number = 0
    while thread.is_alive():
        number += 1
        strictness = (0.25, 0.5, 1.0)[number % 3]
        training.optimizer.set_strictness(strictness)
        assert training.optimizer.strictness == strictness
    assert training.error is None
    state = dict(zip(POLICY_STATE, training.optimizer.tables["user"].policy_state.numpy()))
    pool = training.optimizer.tables["user"].pool_ints.numpy()
    assert state["num_entries"] == np.count_nonzero(pool[:, 3])
    stats = training.optimizer.skip_stats()["user"]
    assert stats.num_lookups == 12 * NUM_STEPS
    training.optimizer.wake_all()
    assert training.optimizer.skip_stats()["user"].num_stale_rows == 0
