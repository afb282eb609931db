"""A threshold that is found brings the share of stale lookups to its target."""

import numpy as np
import pytest

from tests.policy.training import Product, policies

NUM_ROWS, DIM, NUM_LOOKUPS = 300, 4, 64


def skewed_batches(num_steps, exponents):
    """Yields ids and gradients; the skew changes, and with it which rows are popular."""
    random = np.random.default_rng(0)
    for exponent in exponents:
        shares = np.arange(1, NUM_ROWS + 1) ** -exponent
        ids_of_ranks = random.permutation(NUM_ROWS)
        for _ in range(num_steps // len(exponents)):
            ids = ids_of_ranks[random.choice(NUM_ROWS, NUM_LOOKUPS, p=shares / shares.sum())]
            yield ids, random.normal(size=[NUM_LOOKUPS, DIM]).astype(np.float32)


def shares_of_phases(policy, exponents, num_steps):
    """Returns the share of lookups deferred or skipped in the last third of each phase.

    Also all thresholds, one per 100 steps.
    """
    product = Product(np.zeros([NUM_ROWS, DIM]), "adagrad", policy, in_function=True)
    stale, thresholds = [0], []
    for step, (ids, grads) in enumerate(skewed_batches(num_steps, exponents), start=1):
        product.step(ids, grads)
        if step % 100 == 0:
            stats = product.optimizer.skip_stats()["user"]
            stale.append(stats.num_deferred_lookups + stats.num_skipped_lookups)
            thresholds.append(stats.drift_threshold)
    length = num_steps // len(exponents) // 100
    ends = length * np.arange(1, len(exponents) + 1)
    starts = ends - length // 3
    shares = (np.array(stale)[ends] - np.array(stale)[starts]) / (ends - starts)
    return shares / (100 * NUM_LOOKUPS), thresholds


@pytest.mark.parametrize("on_stale", ["defer", "skip"])
def test_the_share_follows_the_target_when_the_skew_changes(on_stale):
    policy = policies(
        on_stale=on_stale, threshold=None, target_skip=0.35, max_threshold=3.0, min_updates=20
    )
    shares, thresholds = shares_of_phases(policy, [0.8, 1.4], 4_200)
    np.testing.assert_allclose(shares, 0.35, atol=0.06)
    assert max(thresholds) <= 3.0 and min(thresholds) >= 3.0 / 1_000


def test_a_target_out_of_reach_leaves_the_threshold_at_its_bound():
    policy = policies(threshold=None, target_skip=1.0, max_threshold=0.5)
    _, thresholds = shares_of_phases(policy, [1.0], 300)
    assert set(thresholds) == {0.5}


def test_a_target_that_is_passed_lowers_the_threshold_to_its_other_bound():
    policy = policies(
        drift_metric="l2", threshold=None, target_skip=1e-9, max_threshold=1e30, min_updates=1
    )
    # 1.25^31 is the first power above 1,000.
    _, thresholds = shares_of_phases(policy, [1.0], 3_300)
    expected = np.maximum(1e30 / 1.25 ** np.arange(1, 34), 1e27)
    np.testing.assert_allclose(thresholds, expected, rtol=1e-6)
