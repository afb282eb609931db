"""Checks every variable of a table after every step against the oracle, on random streams."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.ops.tables import changed
from tests.policy.training import (
    METRICS,
    RULES,
    Product,
    Stream,
    assert_matches,
    drawn_policies,
    oracle_of,
    policies,
    streams,
)

# A drift this close to its limit, as a share of it, may be judged otherwise in float32.
MARGIN = 1e-3
# Values are around 1; a step rounds some 30 times, and what 40 of them round adds up.
TOLERANCE = 40 * 30 * np.finfo("float32").eps


def follow(name, policy, stream, *, events=None, **options):
    """Trains product and oracle together and compares them after every step.

    Args:
        name: A key of `RULES`.
        policy, stream: What to train.
        events: Dict from a step number to what comes after that step: "wake_all", "settle",
            "set_back", which halves the counter of steps, or a number, the new strictness.
        **options: `weight_decay` and `clipvalue`.

    Returns:
        The oracle.
    """
    # First the oracle alone: a stream that it might judge otherwise costs no more than that.
    oracle = oracle_of(stream.values(), name, policy, **options)
    for number, batch in enumerate(stream.steps(), start=1):
        oracle.step(*batch)
        happen((events or {}).get(number), oracle, batch[2])
    assume(oracle.closest_call > MARGIN)
    oracle = oracle_of(stream.values(), name, policy, **options)
    product = Product(stream.values(), name, policy, **options)
    for number, batch in enumerate(stream.steps(), start=1):
        for one in (product, oracle):
            one.step(*batch)
            happen((events or {}).get(number), one, batch[2])
        try:
            assert_matches(product.arrays(), oracle, TOLERANCE)
        except AssertionError as error:
            raise AssertionError(f"after step {number}: {error}") from None
    marked = changed(product.state.changed_rows.numpy(), len(stream.shares))
    np.testing.assert_array_equal(marked, oracle.last_step > 0)
    stats = product.optimizer.skip_stats()["user"]
    assert {field: getattr(stats, field) for field in oracle.counters} == oracle.counters
    assert stats.num_stale_rows == oracle.num_sleeping
    return oracle


def happen(event, one, learning_rate):
    """Does what comes between two steps to a `Product` or a `PolicyTable`."""
    if event == "set_back":
        one.set_back(num_steps(one) // 2)
    elif event in ("wake_all", "settle") and isinstance(one, Product):
        getattr(one.optimizer, event)()
    elif event in ("wake_all", "settle"):
        getattr(one, event)(learning_rate)
    elif event is not None and isinstance(one, Product):
        one.optimizer.set_strictness(event)
    elif event is not None:
        one.strictness = event


def num_steps(one):
    return int(one.optimizer.iterations) if isinstance(one, Product) else one.step_number


step_numbers = st.integers(1, 39)
drawn_events = st.dictionaries(
    step_numbers,
    st.sampled_from(["wake_all", "settle", "settle", "set_back", 0.5, 0.0625, 1.0]),
    max_size=4,
)
drawn_options = st.fixed_dictionaries(
    {
        "weight_decay": st.sampled_from([None, None, 0.125]),
        "clipvalue": st.sampled_from([None, None, 0.5]),
    }
)


def without_none(options):
    return {name: value for name, value in options.items() if value is not None}


@pytest.mark.parametrize("name", RULES)
@hypothesis_settings(max_examples=8)
@given(policy=drawn_policies(), stream=streams(), events=drawn_events, options=drawn_options)
def test_native_steps_match_the_oracle(name, policy, stream, events, options):
    follow(name, policy, stream, events=events, **without_none(options))


# Thresholds between the drifts of rows that are pulled and of rows that are not.
THRESHOLDS = {"coherence": 1.0, "relative_l2": 0.1, "l2": 0.2, "mean_abs": 0.09, "loss": 0.02}


@pytest.mark.parametrize("on_stale", ["defer", "skip"])
@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_finds_rows_at_rest_and_rows_that_move(metric, on_stale):
    policy = policies(
        drift_metric=metric, threshold=THRESHOLDS[metric], on_stale=on_stale, updates_per_sleep=1
    )
    oracle = follow("adam", policy, sure_stream("adam", policy))
    assert oracle.num_at_rest >= 5 and oracle.num_moving >= 5
    kind = {"defer": "deferred", "skip": "skipped"}[on_stale]
    assert oracle.counters[f"num_{kind}_row_updates"] >= 5


def sure_stream(name, policy, **fields):
    """Returns a stream whose judgements are all sure."""
    for seed in range(50):
        stream = Stream(seed=seed, **fields)
        oracle = oracle_of(stream.values(), name, policy)
        for batch in stream.steps():
            oracle.step(*batch)
        if oracle.closest_call > MARGIN:
            return stream
    raise AssertionError("no stream is sure")


@pytest.mark.parametrize("name", RULES)
def test_a_row_that_swings_is_not_at_rest(name):
    policy = policies(min_drift=1.0, threshold=1e6, updates_per_sleep=1, window=3)
    oracle = follow(name, policy, sure_stream(name, policy))
    assert oracle.num_at_rest >= 3 and oracle.num_swinging >= 3


def test_a_row_that_does_not_move_does_not_swing():
    still = oracle_of(Stream().values(), "adam", policies(min_drift=1.0, threshold=1e6))
    for ids, grads, learning_rate in Stream().steps():
        still.step(ids, np.zeros_like(grads), learning_rate)
    assert still.num_at_rest >= 5 and still.num_swinging == 0


@pytest.mark.parametrize("name, skip_below", [("sgd", 0.25), ("adam", 0.5)])
def test_a_row_at_true_rest_is_skipped_instead_of_deferred(name, skip_below):
    policy = policies(drift_metric="l2", threshold=1e6, skip_below=skip_below)
    stream = sure_stream(name, policy, pull=0.0)
    oracle = follow(name, policy, stream)
    assert oracle.counters["num_skipped_row_updates"] >= 5
    assert oracle.counters["num_deferred_row_updates"] >= 5


def test_a_threshold_that_is_found_follows_the_oracle():
    policy = policies(threshold=None, target_skip=0.3, max_threshold=1.5)
    stream = sure_stream("adagrad", policy, num_steps=330)
    oracle = oracle_of(stream.values(), "adagrad", policy)
    thresholds = []
    for batch in stream.steps():
        oracle.step(*batch)
        thresholds.append(oracle.threshold)
    assert len(set(thresholds)) >= 2
    follow("adagrad", policy, stream)
