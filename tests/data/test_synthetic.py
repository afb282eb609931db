"""The synthetic click log: its law, its reproducibility and its memory."""

import itertools
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.batches import join
from tf_slipstream.data import (
    CRITEO_KAGGLE_CARDINALITIES,
    SyntheticClickLog,
    criteo_cardinalities,
)
from tf_slipstream.data.zipf import BoundedZipf, IdScatter

SMALL = (1, 2, 3, 50, 1000)


def auc(scores, labels):
    """Area under the ROC curve by the rank-sum formula; ties do not matter for these scores."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores)] = np.arange(1, len(scores) + 1)
    num_clicks = labels.sum()
    rank_sum = ranks[labels == 1].sum() - num_clicks * (num_clicks + 1) / 2
    return rank_sum / (num_clicks * (len(labels) - num_clicks))


def chi_square_bound(num_cells):
    """Mean plus 5 standard deviations of chi-square with `num_cells - 1` degrees of freedom."""
    return num_cells - 1 + 5 * np.sqrt(2 * (num_cells - 1))


@pytest.fixture(scope="module")
def first_examples():
    """The first 10,000 examples of `SyntheticClickLog(cardinalities=SMALL)`."""
    log = SyntheticClickLog(cardinalities=SMALL)
    return join(log.batches(10_000, 10_000))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.0 + 1e-9, 1.1, 3.0])
@pytest.mark.parametrize("size", [2, 3, 60])
def test_ranks_follow_the_exact_zipf_law(exponent, size):
    num_draws = 100_000
    ranks = BoundedZipf(exponent, [size]).draw(np.random.default_rng(1), num_draws)
    weights = np.arange(1.0, size + 1) ** -exponent
    expected = num_draws * weights / weights.sum()
    observed = np.bincount(ranks[0].astype(np.int64), minlength=size)
    # The chi-square law holds for cells of at least 5 expected draws; the rest is one cell.
    frequent = expected >= 5
    expected = np.append(expected[frequent], expected[~frequent].sum() + 1e-9)
    observed = np.append(observed[frequent], observed[~frequent].sum())
    assert ((observed - expected) ** 2 / expected).sum() < chi_square_bound(len(expected))


def test_head_and_tail_of_a_large_field_follow_the_zipf_law():
    size, exponent, num_draws = 1_000_000, 1.1, 200_000
    ranks = BoundedZipf(exponent, [size]).draw(np.random.default_rng(2), num_draws)[0]
    cumulative = np.cumsum(np.arange(1.0, size + 1) ** -exponent)
    cumulative /= cumulative[-1]
    bounds = np.array([1, 2, 3, 10, 100, 1000, 10_000, 100_000, size])
    expected = num_draws * np.diff(cumulative[bounds - 1], prepend=0.0)
    observed = np.diff(np.searchsorted(np.sort(ranks), bounds), prepend=0)
    assert ((observed - expected) ** 2 / expected).sum() < chi_square_bound(len(bounds))


def test_fields_of_different_size_keep_their_own_bound():
    sizes = [1, 2, 3, 10_000_000, 2**31 - 1]
    ranks = BoundedZipf(0.3, sizes).draw(np.random.default_rng(3), 20_000)
    assert (ranks.max(axis=1) < sizes).all()
    # A nearly flat law: most draws of a large field are past its first tenth.
    assert (np.median(ranks[3:], axis=1) > 0.1 * np.array(sizes[3:])).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 60, 1009, 5040])
def test_scattering_is_a_bijection(size):
    scatter = IdScatter(np.random.default_rng(size), [size])
    ids = scatter(np.arange(size, dtype=np.uint64)[None])
    assert np.array_equal(np.sort(ids[0]), np.arange(size))


def test_scattering_of_the_largest_field_does_not_overflow():
    size = 2**31 - 1
    ranks = np.array([[0, 1, size - 2, size - 1]], np.uint64)
    scatter = IdScatter(np.random.default_rng(4), [size])
    zero, one, before_last, last = (int(value) for value in scatter(ranks)[0])
    assert (one - zero) % size == (last - before_last) % size == (zero - last) % size


def test_popular_ids_are_spread_over_the_field():
    log = SyntheticClickLog(cardinalities=[100_000] * 8)
    _, ids, _ = join(log.batches(20_000, 20_000))
    hottest = [np.bincount(column).argmax() for column in ids.T]
    assert len({hot // 10_000 for hot in hottest}) >= 4


def test_ids_stay_within_their_field_and_reach_all_of_it(first_examples):
    _, ids, _ = first_examples
    assert ids.dtype == np.int32
    for column, cardinality in zip(ids.T, SMALL, strict=True):
        assert column.min() >= 0
        assert column.max() < cardinality
    for column, cardinality in zip(ids.T[:4], SMALL[:4], strict=True):
        assert len(np.unique(column)) == cardinality


def test_dense_features_are_skewed_counts_on_a_log_scale(first_examples):
    dense, _, _ = first_examples
    assert dense.dtype == np.float32
    counts = np.expm1(dense.astype(np.float64))
    # float32 keeps log(1 + count) to 2^-24 of itself, which for counts to 1e6 is 1e-6 of count + 1.
    np.testing.assert_allclose(counts, np.rint(counts), rtol=2e-6, atol=2e-6)
    assert (counts >= 0).all()
    assert (counts.mean(axis=0) > np.median(counts, axis=0)).all()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("cardinalities", [SMALL, criteo_cardinalities(1.0)])
def test_click_rate_and_teacher_auc_are_as_promised(cardinalities, seed):
    log = SyntheticClickLog(cardinalities=cardinalities, seed=seed)
    dense, ids, label = join(log.batches(50_000, 4096, start=20_000))
    probability = log.bayes_probability(ids, dense)
    # Sampling error: 0.002 for 50,000 labels and 0.003 for the 16,384 that the rate is fitted to.
    assert abs(label.mean() - 0.25) < 0.015
    # Labels deviate from their probabilities by at most 0.5 each.
    assert abs(label.mean() - probability.mean()) < 5 * 0.5 / np.sqrt(len(label))
    assert 0.78 < auc(probability, label) < 0.82


def test_click_rate_and_noise_can_be_chosen():
    log = SyntheticClickLog(cardinalities=SMALL, click_rate=0.03, logit_stddev=0.0)
    dense, ids, label = join(log.batches(50_000, 4096))
    np.testing.assert_allclose(log.bayes_probability(ids, dense), 0.03, rtol=1e-5)
    assert abs(label.mean() - 0.03) < 5 * np.sqrt(0.03 / len(label))


def test_a_log_of_one_id_without_dense_features_is_pure_noise():
    log = SyntheticClickLog(cardinalities=[1], num_dense=0)
    dense, ids, _ = join(log.batches(100, 64))
    assert dense.shape == (100, 0)
    np.testing.assert_allclose(log.bayes_probability(ids, dense), 0.25, rtol=1e-5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    start=st.integers(0, 9000), num_examples=st.integers(1, 1000), batch_size=st.integers(1, 6000)
)
def test_examples_do_not_depend_on_batch_size_or_start(start, num_examples, batch_size):
    log = SyntheticClickLog(cardinalities=SMALL)
    expected = join(log.batches(10_000, 10_000))
    batches = list(log.batches(num_examples, batch_size, start))
    sizes = [len(label) for _, label in batches]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    for column, whole in zip(join(batches), expected, strict=True):
        np.testing.assert_array_equal(column, whole[start : start + num_examples])


def test_same_seed_same_log_other_seed_other_log(first_examples):
    for seed, is_same in [(0, True), (1, False)]:
        again = join(SyntheticClickLog(cardinalities=SMALL, seed=seed).batches(10_000, 777))
        for column, first in zip(again, first_examples, strict=True):
            assert np.array_equal(column, first) == is_same


def test_no_examples_give_no_batches():
    assert list(SyntheticClickLog(cardinalities=SMALL).batches(0, 8)) == []


def test_without_a_count_the_log_does_not_end():
    batches = SyntheticClickLog(cardinalities=SMALL).batches(None, 5000)
    assert [len(label) for _, label in itertools.islice(batches, 3)] == [5000] * 3


def test_a_change_of_teacher_changes_only_later_labels(first_examples):
    log = SyntheticClickLog(cardinalities=SMALL, change_after=5001)
    dense, ids, label = join(log.batches(10_000, 512))
    np.testing.assert_array_equal(dense, first_examples[0])
    np.testing.assert_array_equal(ids, first_examples[1])
    np.testing.assert_array_equal(label[:5001], first_examples[2][:5001])
    later = slice(5001, None)
    assert auc(log.bayes_probability(ids[later], dense[later]), label[later]) < 0.7
    new = log.bayes_probability(ids[later], dense[later], changed=True)
    assert auc(new, label[later]) > 0.75
    assert abs(label[later].mean() - 0.25) < 0.04


def test_memory_does_not_grow_with_cardinality_or_length():
    tracemalloc.start()
    try:
        log = SyntheticClickLog(cardinalities=[10_000_000] * 26)
        for _ in log.batches(30_000, 2048):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # One byte per id of one field would be 10 MB per field; 30,000 examples of all columns 5 MB.
    assert peak < 40e6


def test_dataset_gives_the_batches_on_every_pass():
    log = SyntheticClickLog(cardinalities=SMALL)
    dataset = log.dataset(5000, 2048, start=100)
    expected = join(log.batches(5000, 2048, start=100))
    for _ in range(2):
        for column, whole in zip(join(dataset.as_numpy_iterator()), expected, strict=True):
            np.testing.assert_array_equal(column, whole)
    assert dataset.element_spec == (
        (tf.TensorSpec([None, 13], tf.float32), tf.TensorSpec([None, 5], tf.int32)),
        tf.TensorSpec([None], tf.float32),
    )


def test_dataset_can_be_read_by_several_passes_at_once():
    log = SyntheticClickLog(cardinalities=SMALL)
    dataset = log.dataset(4000, 500)
    passes = [iter(dataset) for _ in range(6)]
    for (_, expected), *batches in zip(log.batches(4000, 500), *passes, strict=True):
        for _, label in batches:
            np.testing.assert_array_equal(label, expected)


def test_dataset_drops_the_remainder_and_has_static_shapes_then():
    dataset = SyntheticClickLog(cardinalities=SMALL).dataset(5000, 2048, drop_remainder=True)
    assert [label.shape for _, label in dataset] == [(2048,), (2048,)]
    assert dataset.element_spec[1].shape == (2048,)


# Keras warns of one that ends before it was known to.
@pytest.mark.parametrize("num_examples", [0, 1, 2048, 5000])
@pytest.mark.parametrize("drop_remainder", [False, True])
def test_dataset_knows_how_many_batches_it_has(num_examples, drop_remainder):
    log = SyntheticClickLog(cardinalities=SMALL)
    dataset = log.dataset(num_examples, 2048, drop_remainder=drop_remainder)
    assert len(dataset) == len([*dataset])


def test_criteo_cardinalities_scale_down_to_a_minimum():
    assert criteo_cardinalities() == CRITEO_KAGGLE_CARDINALITIES
    scaled = criteo_cardinalities(0.001, minimum=10)
    assert len(scaled) == 26
    assert scaled[2] == 10131
    assert scaled[0] == 10  # 1,460 ids scale to 1.
    assert scaled[8] == 3  # Never more than the field has.


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("cardinalities", []),
        ("cardinalities", [5, 0]),
        ("cardinalities", [2**31]),
        ("cardinalities", [2.5]),
        ("num_dense", -1),
        ("zipf_exponent", -0.1),
        ("zipf_exponent", float("inf")),
        ("click_rate", 25),
        ("logit_stddev", -1.0),
        ("change_after", 1.5),
        ("seed", -1),
    ],
)
def test_a_bad_argument_is_named(argument, value):
    with pytest.raises(ValueError, match=f"Expected `{argument}` to be .*; got "):
        SyntheticClickLog(**{argument: value})


@pytest.mark.parametrize("method", ["batches", "dataset"])
@pytest.mark.parametrize(
    ("argument", "value"),
    [("num_examples", -1), ("num_examples", 1.0), ("batch_size", 0), ("start", -1)],
)
def test_a_bad_count_is_refused_before_reading(method, argument, value):
    log = SyntheticClickLog(cardinalities=SMALL)
    arguments = {"num_examples": 1, "batch_size": 1} | {argument: value}
    with pytest.raises(ValueError, match=f"`{argument}` to be an integer"):
        getattr(log, method)(**arguments)


@pytest.mark.parametrize("arguments", [{"scale": 0.0}, {"scale": float("nan")}, {"minimum": 0}])
def test_a_bad_scale_is_refused(arguments):
    with pytest.raises(ValueError, match="Expected `(scale|minimum)`"):
        criteo_cardinalities(**arguments)


def test_bayes_probability_refuses_what_it_cannot_answer():
    log = SyntheticClickLog(cardinalities=SMALL)
    (dense, ids), _ = next(log.batches(8, 8))
    with pytest.raises(ValueError, match=r"got \(8, 4\)"):
        log.bayes_probability(ids[:, 1:], dense)
    with pytest.raises(ValueError, match="change_after"):
        log.bayes_probability(ids, dense, changed=True)


def hot_ids(log, start, num_examples=20_000, num_hot=10):
    """Returns the most popular ids of the log's last field."""
    ids = join(log.batches(num_examples, 4096, start=start))[1][:, -1]
    return set(np.argsort(-np.bincount(ids, minlength=1000))[:num_hot].tolist())


def test_a_season_goes_and_comes_back():
    period = 200_000
    log = SyntheticClickLog(cardinalities=SMALL, season_period=period, season_amplitude=0.9)
    plain = SyntheticClickLog(cardinalities=SMALL)
    first, middle, last = (hot_ids(log, start) for start in (0, period // 2, period))
    assert len(first & hot_ids(plain, 0)) >= 9 and len(first & last) >= 9
    assert len(first & middle) <= 5
    # Both are popular half-way between.
    between = hot_ids(log, period // 4 - 10_000, num_hot=20)
    assert len(between & first) >= 7 and len(between & middle) >= 7


def test_under_a_trend_every_id_becomes_popular_and_then_rare():
    period = 1_000_000
    log = SyntheticClickLog(cardinalities=SMALL, trend_period=period)
    sets = [hot_ids(log, start) for start in range(0, period + 1, period // 50)]
    assert not sets[0] & sets[25]
    overlap = [len(one & other) for one, other in zip(sets, sets[1:])]
    assert max(overlap) <= 5  # 20 ids later
    assert len(sets[0] & sets[-1]) >= 9
    assert len(set.union(*sets)) > 400


def test_a_teacher_may_change_little_by_little():
    settings = {"cardinalities": SMALL, "change_after": 20_000}
    slow = SyntheticClickLog(**settings, change_over=40_000)
    sudden = SyntheticClickLog(**settings)
    agreed = []
    for start in (0, 22_000, 40_000, 60_000):
        (dense, ids), labels = join_all(slow, 16_384, start)
        agreed.append((labels == join_all(sudden, 16_384, start)[1]).mean())
        np.testing.assert_array_equal(ids, join_all(sudden, 16_384, start)[0][1])
    assert agreed[0] == agreed[3] == 1
    assert agreed[1] < agreed[2] < 1


def join_all(log, num_examples, start):
    return next(log.batches(num_examples, num_examples, start=start))
