"""Held gradients are exactly the sum of what came, applied exactly once."""

import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.policy.training import Product, drawn_policies, policies

NUM_ROWS, DIM, RATE = 7, 3, 0.125
SHARES = [1.0, 1.0, 0.8, 0.5, 0.3, 0.1, 0.0]


def whole_number_steps(num_steps, seed):
    """Yields ids and whole gradients, so that every sum is exact in float32."""
    random = np.random.default_rng(seed)
    for _ in range(num_steps):
        ids = np.flatnonzero(random.random(NUM_ROWS) < SHARES)
        ids = random.permutation(np.concatenate([ids, ids[::2]]))
        yield ids, random.integers(-16, 17, [len(ids), DIM]).astype(np.float32)


def check_conservation(policy, seed, interrupt=lambda product, step: product):
    """Trains with SGD and compares the table with the sum of all gradients.

    Args:
        policy: A policy that defers.
        seed: Of the stream.
        interrupt: Given the `Product` and a step number, after that step; returns the one to go on.
    """
    initial = np.random.default_rng(seed).integers(-8, 9, [NUM_ROWS, DIM])
    product = Product(initial, "sgd", policy)
    total = np.zeros([NUM_ROWS, DIM])
    for step, (ids, grads) in enumerate(whole_number_steps(60, seed), start=1):
        product.step(ids, grads)
        np.add.at(total, ids, grads)
        # Between steps too: what a row has not had is what it holds.
        arrays = product.arrays()
        held = np.zeros([NUM_ROWS, DIM])
        popular = arrays["row_states"] < 0
        held[popular] = arrays["pool_floats"][-1 - arrays["row_states"][popular], :DIM]
        np.testing.assert_array_equal(arrays["table"], initial - RATE * (total - held))
        product = interrupt(product, step)
    product.optimizer.wake_all()
    np.testing.assert_array_equal(product.arrays()["table"], initial - RATE * total)
    assert product.num_held() == 0
    stats = product.optimizer.skip_stats()["user"]
    assert stats.num_skipped_lookups == 0
    return stats


@hypothesis_settings(max_examples=25)
@given(policy=drawn_policies(on_stale="defer", skip_below=0.0), seed=st.integers(0, 999))
def test_nothing_is_lost_and_nothing_is_applied_twice(policy, seed):
    check_conservation(policy, seed)


ASLEEP = policies(drift_metric="l2", threshold=1e30)


def test_nothing_is_lost_over_a_checkpoint(tmp_path):
    def interrupt(product, step):
        if step % 13:
            return product
        assert product.num_held() > 0
        path = checkpoint_of(product).save(str(tmp_path / "checkpoint"))
        restored = Product(np.full([NUM_ROWS, DIM], 99), "sgd", ASLEEP)
        checkpoint_of(restored).restore(path).assert_existing_objects_matched()
        return restored

    stats = check_conservation(ASLEEP, 0, interrupt)
    assert stats.num_deferred_lookups > 100


def checkpoint_of(product):
    return tf.train.Checkpoint(layer=product.layer, optimizer=product.optimizer)


def test_nothing_is_lost_over_wake_alls_and_settles():
    def interrupt(product, step):
        if step % 7 == 0:
            product.optimizer.wake_all()
        elif step % 7 == 3:
            product.optimizer.settle()
            assert product.num_held() == 0
        return product

    assert check_conservation(ASLEEP, 1, interrupt).num_deferred_lookups > 50


def test_gradients_are_clipped_when_they_come_not_when_they_are_applied():
    product = Product(np.zeros([1, 1]), "sgd", ASLEEP, clipvalue=1.0)
    for _ in range(60):
        product.step([0], [[3.0]])
    assert product.num_held() > 1
    product.optimizer.wake_all()
    assert product.arrays()["table"].tolist() == [[-60 * RATE]]
