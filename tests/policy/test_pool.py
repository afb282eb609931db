"""How many rows may be popular, and what becomes of those that come later."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.models import in_turn
from tests.ops import tables
from tests.policy.test_against_reference import MARGIN, TOLERANCE
from tests.policy.training import Product, assert_matches, oracle_of, policies
from tf_slipstream.ops.apply_rows import apply_rows
from tf_slipstream.state import table
from tf_slipstream.state.schema import POLICY_STATE, POOL_INTS


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


def test_when_all_entries_are_taken_further_rows_stay_live():
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


def test_entries_are_given_in_the_order_of_first_appearance():
    num_rows = 20_000
    product = Product(np.zeros([num_rows, 1]), "sgd", policies(popular_share=0.01, min_updates=1))
    ids = np.random.default_rng(1).permutation(num_rows)
    ids = np.concatenate([ids[:9], ids, ids])
    product.step(ids, np.ones([len(ids), 1]))
    np.testing.assert_array_equal(product.arrays()["pool_ints"][:, 0], ids[9 : 9 + 4_096])


def with_small_pools(monkeypatch, least_capacity):
    monkeypatch.setattr(table, "_MIN_CAPACITY", least_capacity)
    return least_capacity


# Few rows are popular; while nobody looks them up for 1,000 steps and more, others come.
NUM_ROWS, CAPACITY, DIM = 14, 4, 3


def moving_batches(seed):
    """Yields ids, gradients, and how many steps nobody looks up anything before them."""
    random = np.random.default_rng(seed)
    for phase, gap in enumerate((0, 990, 1_000, 1_500, 400, 700)):
        hot = (3 * phase + np.arange(6)) % NUM_ROWS
        for step in range(14):
            ids = np.concatenate([hot[random.random(6) < 0.8], random.integers(0, NUM_ROWS, 1)])
            grads = random.normal(size=[len(ids), DIM]).astype(np.float32)
            yield ids, grads, gap if step == 0 else 0


@pytest.mark.parametrize(
    "name, on_stale",
    in_turn(["momentum", "sgd", "rmsprop_centered_momentum", "adam"], ["defer", "skip"]),
)
def test_evictions_are_those_of_the_oracle(name, on_stale, monkeypatch):
    """Entries whose row holds something among them: that is applied first."""
    capacity = with_small_pools(monkeypatch, CAPACITY)
    policy = policies(on_stale=on_stale, threshold=2.0, popular_share=0.01, min_updates=2)
    num_evicted = num_with_held = 0
    for seed in range(2):
        values = np.random.default_rng(seed).normal(size=[NUM_ROWS, DIM])
        product = Product(values, name, policy)
        oracle = oracle_of(values, name, policy, least_capacity=capacity)
        for ids, grads, gap in moving_batches(seed):
            oracle.step_number += gap
            product.optimizer.iterations.assign_add(gap)
            before = {entry.row: entry.held_steps for entry in oracle.pool}
            for one in (product, oracle):
                one.step(ids, grads, 0.125)
            if oracle.closest_call < MARGIN:
                break
            assert_matches(product.arrays(), oracle, TOLERANCE)
            gone = set(before) - {entry.row for entry in oracle.pool}
            num_evicted += len(gone)
            num_with_held += sum(before[row] > 0 for row in gone)
    assert num_evicted >= 6
    assert (num_with_held > 0) == (on_stale == "defer")


def test_a_search_looks_at_256_entries_and_the_next_one_goes_on(monkeypatch):
    capacity = with_small_pools(monkeypatch, 600)
    policy = policies(popular_share=0.01, min_updates=1)
    product = Product(np.zeros([2_000, 1]), "sgd", policy)
    oracle = oracle_of(np.zeros([2_000, 1]), "sgd", policy, least_capacity=capacity)
    for first, last, gap in [(0, 600, 0), (600, 1_000, 1_000), (1_000, 1_250, 0), (600, 900, 0)]:
        oracle.step_number += gap
        product.optimizer.iterations.assign_add(gap)
        ids = np.arange(first, last)
        for one in (product, oracle):
            one.step(ids, np.ones([len(ids), 1]), 0.125)
        assert_matches(product.arrays(), oracle, TOLERANCE)
    popular = product.arrays()["row_states"] < 0
    # The first 256 of 400, then 250 that looked on from there, and again 94 of the rest.
    assert np.flatnonzero(popular[600:1_250]).tolist() == [*range(256 + 44), *range(400, 650)]
    assert popular.sum() == 600


def test_a_row_that_lost_its_entry_keeps_its_count_and_gets_another(monkeypatch):
    with_small_pools(monkeypatch, 1)
    policy = policies(popular_share=0.01, min_updates=3, drift_metric="l2", threshold=1e30)
    product = Product(np.zeros([2, 1]), "sgd", policy)
    for _ in range(20):
        product.step([0], [[1.0]])
    assert product.arrays()["row_states"].tolist() == [-1, 0]
    num_updates = int(product.arrays()["pool_ints"][0, POOL_INTS.index("num_updates")])
    held = product.num_held()
    assert num_updates == 20 and held > 0
    product.optimizer.iterations.assign_add(1_200)
    for _ in range(3):
        product.step([1], [[1.0]])
    assert product.arrays()["row_states"].tolist() == [20, -1]
    assert product.arrays()["table"].tolist() == [[-20 * 0.125], [-3 * 0.125]]
    product.optimizer.iterations.assign_add(1_200)
    product.step([0], [[1.0]])
    assert product.arrays()["row_states"].tolist() == [-1, 3]


@pytest.mark.parametrize("held_elsewhere, entry", [(False, 0), (True, 1)])
def test_where_replicas_hold_gradients_a_row_that_holds_some_keeps_its_entry(held_elsewhere, entry):
    state = tables.new_state(tables.RULE_CASES["sgd"].rule, np.zeros([4, 1]), wake_steps=[0] * 4)
    ints = state.pool_ints.numpy()[:3]
    ints[[0, 2], POOL_INTS.index("held_steps")] = 1
    state.policy_state[POLICY_STATE.index("num_entries")].assign(3)
    state = dataclasses.replace(
        state,
        policy=policies(min_updates=1),
        row_states=tf.Variable([-1, -2, -3, 0]),
        pool_ints=tf.Variable(ints),
        pool_floats=tf.Variable(tf.ones([3, 3])),
    )
    apply_rows(
        tables.RULE_CASES["sgd"].rule,
        [state],
        [tables.slices([3], np.ones([1, 1], np.float32))],
        tables.settings(1_500),
        num_lookups=[tf.constant([1, 0, 0], tf.int64)] if held_elsewhere else None,
    )
    row_states = state.row_states.numpy().tolist()
    assert row_states[3] == -1 - entry
    assert row_states[entry] == 0 and sum(one < 0 for one in row_states) == 3


@pytest.mark.parametrize("on_stale", ["defer", "skip"])
def test_when_the_hot_rows_change_ten_times_as_many_lookups_are_deferred_again(
    on_stale, monkeypatch
):
    num_hot, num_steps, num_moves = 40, 1_400, 10
    with_small_pools(monkeypatch, num_hot)
    policy = policies(on_stale=on_stale, drift_metric="l2", threshold=1e30, popular_share=0.01)
    num_rows = num_hot * (num_moves + 1)
    product = Product(np.zeros([num_rows, 2]), "adagrad", policy)
    grads = tf.random.stateless_normal([num_hot, 2], [1, 2])

    @tf.function
    def steps(ids, num_steps):
        for _ in tf.range(num_steps):
            product._apply_slices(ids, grads)

    def num_stale():
        stats = product.optimizer.skip_stats()["user"]
        return stats.num_deferred_lookups + stats.num_skipped_lookups

    shares = []
    for phase in range(num_moves + 1):
        ids = tf.range(num_hot, dtype=tf.int64) + phase * num_hot
        steps(ids, tf.constant(num_steps - 200))
        before = num_stale()
        steps(ids, tf.constant(200))
        shares.append((num_stale() - before) / (200 * num_hot))
    assert shares[0] > 0.75
    np.testing.assert_allclose(shares, shares[0], atol=0.02)
    assert (product.arrays()["row_states"] < 0).sum() == num_hot
