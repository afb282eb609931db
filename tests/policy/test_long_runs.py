"""Steps and counts beyond 2^31."""

import numpy as np
import pytest

from tests.policy.test_against_reference import TOLERANCE, sure_stream
from tests.policy.training import Product, assert_matches, oracle_of, policies

POLICY = policies(refresh_every=16)


@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop_centered_momentum"])
@pytest.mark.parametrize("edge", [2**31, 2**32, 3 * (2**31 - 1), 2**40])
def test_steps_go_on_beyond(edge, name):
    stream = sure_stream(name, POLICY, num_steps=40)
    product = Product(stream.values(), name, POLICY)
    oracle = oracle_of(stream.values(), name, POLICY)
    # So that rows become popular, sleep and wake around the edge.
    start = edge - 15
    oracle.step_number = start
    product.optimizer.iterations.assign(start)
    for number, batch in enumerate(stream.steps()):
        product.step(*batch)
        oracle.step(*batch)
        try:
            assert_matches(product.arrays(), oracle, TOLERANCE)
        except AssertionError as error:
            raise AssertionError(f"in step {start + number + 1}: {error}") from None
    assert int(product.optimizer.iterations) == start + 40
    assert oracle.counters["num_deferred_row_updates"] > 10


@pytest.mark.parametrize("edge", [2**31, 2**32, 2**40])
@pytest.mark.parametrize("on_stale", ["defer", "skip"])
def test_counters_go_on_beyond(on_stale, edge):
    policy = policies(on_stale=on_stale, drift_metric="l2", threshold=1e30)
    stream = sure_stream("sgd", policy)
    product = Product(stream.values(), "sgd", policy)
    oracle = oracle_of(stream.values(), "sgd", policy)
    product.state.counters.assign([edge - 5] * len(oracle.counters) + [0] * 3)
    for batch in stream.steps():
        product.step(*batch)
        oracle.step(*batch)
    stats = product.optimizer.skip_stats()["user"]
    for field, count in oracle.counters.items():
        assert getattr(stats, field) == edge - 5 + count, field
    kind = {"defer": "deferred", "skip": "skipped"}[on_stale]
    assert getattr(stats, f"num_{kind}_lookups") > edge


def test_a_row_has_at_most_2_31_batches_before_it_is_popular():
    for min_updates, states in [(2**31 - 1, [-1, -1]), (2**31, [2**31 - 1] * 2)]:
        product = Product(np.zeros([2, 1]), "sgd", policies(min_updates=min_updates))
        product.state.row_states.assign([2**31 - 3, 2**31 - 2])
        for _ in range(3):
            product.step([0, 1], np.ones([2, 1]))
        actual = product.arrays()["row_states"].tolist()
        assert actual == (states if states[0] > 0 else [-2, -1])
        if states[0] < 0:
            # Row 1 came first, then had two updates more.
            assert product.arrays()["pool_ints"][:2, 3].tolist() == [2**31 + 1, 2**31]


def test_a_popular_row_may_have_more_updates_than_2_31():
    policy = policies(drift_metric="l2", threshold=1e30, min_updates=1, updates_per_sleep=2**31)
    product = Product(np.zeros([1, 1]), "sgd", policy)
    product.step([0], [[1.0]])
    entry = product.arrays()["pool_ints"]
    entry[0, 3] = 3 * 2**31 - 2
    product.state.pool_ints.assign(entry)
    for _ in range(4):
        product.step([0], [[1.0]])
    # Judged with 3 * 2^31 updates: at most 3 batches of sleep, and 2 at first.
    num_updates, period = product.arrays()["pool_ints"][0, [3, 5]]
    assert (num_updates, period) == (3 * 2**31 + 2, 2)
