"""How many rows may be popular, and what becomes of those that come later."""

import numpy as np
import pytest

from tests.policy.training import Product, oracle_of, policies


@pytest.mark.parametrize(
    "num_rows, popular_share, capacity",
    [
        (10, 0.25, 10),
        (4_095, 0.25, 4_095),
        (4_097, 0.25, 4_096),
        (20_000, 0.25, 5_000),
        (20_001, 0.25, 5_001),
        (5_000, 1.0, 5_000),
    ],
)
def test_the_capacity_is_the_share_but_at_least_4096_rows(num_rows, popular_share, capacity):
    policy = policies(popular_share=popular_share)
    product = Product(np.zeros([num_rows, 3]), "sgd", policy)
    assert product.state.pool_ints.shape == (capacity, 8)
    assert product.state.pool_floats.shape == (capacity, 2 * 3 + 1)
    assert oracle_of(np.zeros([num_rows, 3]), "sgd", policy).capacity == capacity


def test_when_all_entries_are_taken_further_rows_stay_live(native_or_fallback):
    num_rows, num_lookups, capacity = 6_000, 5_500, 4_096
    random = np.random.default_rng(0)
    policy = policies(popular_share=0.01, min_updates=2, drift_metric="l2", threshold=1e6)
    product = Product(np.zeros([num_rows, 2]), "sgd", policy)
    oracle = oracle_of(np.zeros([num_rows, 2]), "sgd", policy)
    batches = [random.permutation(num_rows)[:num_lookups] for _ in range(7)]
    # The fourth fills the pool in the middle of a batch at the latest.
    for ids in batches:
        grads = random.integers(-2, 3, [num_lookups, 2]).astype(np.float32)
        for one in (product, oracle):
            one.step(ids, grads, 0.125)
    arrays, expected = product.arrays(), oracle.arrays()
    assert len(oracle.pool) == capacity
    for name in ("row_states", "pool_ints", "counters", "table", "policy_state"):
        np.testing.assert_array_equal(arrays[name], expected[name], err_msg=name)
    live = arrays["row_states"] >= 0
    assert live.sum() == num_rows - capacity
    assert arrays["row_states"][live].max() > 5  # they go on counting, and training
    assert oracle.counters["num_deferred_row_updates"] > capacity


def test_entries_are_given_in_the_order_of_first_appearance(native_or_fallback):
    num_rows = 20_000
    product = Product(np.zeros([num_rows, 1]), "sgd", policies(popular_share=0.01, min_updates=1))
    ids = np.random.default_rng(1).permutation(num_rows)
    ids = np.concatenate([ids[:9], ids, ids])
    product.step(ids, np.ones([len(ids), 1]))
    np.testing.assert_array_equal(product.arrays()["pool_ints"][:, 0], ids[9 : 9 + 4_096])
