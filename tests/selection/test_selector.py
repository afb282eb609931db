"""Choosing from batches, in a loop of one's own."""

import numpy as np
import pytest
import tensorflow as tf

import tf_slipstream as slipstream
from tests.selection import reference
from tests.selection.models import DIMS, click_log


def batches_of(log, batch_size=100):
    ids, labels = log
    for begin in range(0, len(labels), batch_size):
        part = slice(begin, begin + batch_size)
        yield {name: values[part] for name, values in ids.items()}, labels[part]


def selector_of(**arguments):
    return slipstream.InputSelector(slipstream.Pilot(DIMS), **arguments)


@pytest.mark.parametrize("method", ["contribution", "negatives", "random"])
@pytest.mark.parametrize("click_logit", [-4.0, -2.0, 1.0])
@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_the_share_kept_is_the_one_wanted_whatever_the_base_rate(method, click_logit, keep):
    log = click_log(20_000, click_logit)
    selector = selector_of(keep=keep, method=method)
    select = tf.function(selector.select)
    for ids, labels in batches_of(log):
        select(ids, labels)
    assert abs(selector.stats().share_kept - keep) < 0.02


def test_negatives_keeps_every_positive_where_they_are_few():
    log = click_log(5000, -3.0)
    selector = selector_of(method="negatives")
    for ids, labels in batches_of(log):
        selector.select(ids, labels)
    stats = selector.stats()
    assert stats.num_kept_by_label[1] == stats.num_inputs_by_label[1] == log[1].sum()


def test_what_it_says_of_each_input_is_what_the_reference_says():
    """Of the third batch, from the pilot and the `c` after two; the draws are its own."""
    log = click_log(300)
    pilot, selector = reference.Pilot(DIMS), selector_of(keep=0.4)
    for ids, labels in batches_of(log):
        bags = [([item], [user]) for user, item in zip(ids["user"], ids["item"])]
        log_odds = np.array([pilot.log_odds(one) for one in bags])
        c = float(np.exp(selector.log_c.numpy()))
        kept = selector.select(ids, labels)
        pilot.learn(bags, labels)
    places = kept.positions.numpy()
    assert 0 < len(places) < 100 and (np.diff(places) > 0).all()
    np.testing.assert_allclose(kept.log_odds, log_odds[places], rtol=1e-4, atol=1e-5)
    expected = [reference.offset(z, c) for z in log_odds[places]]
    np.testing.assert_allclose(kept.offsets, expected, rtol=1e-3, atol=1e-4)
    expected = [reference.keep_probability(labels[i], log_odds[i], c) for i in places]
    np.testing.assert_allclose(kept.inverse_probabilities, 1 / np.array(expected), rtol=1e-3)


def test_c_follows_the_distances_of_the_batches_before():
    selector = selector_of(keep=0.4)
    assert float(selector.log_c.numpy()) == 0
    expected, deficit = None, 0.0
    pilot = reference.Pilot(DIMS)
    for number, (ids, labels) in enumerate(batches_of(click_log(4000))):
        bags = [([item], [user]) for user, item in zip(ids["user"], ids["item"])]
        distances = [abs(y - reference.sigmoid(pilot.log_odds(b))) for b, y in zip(bags, labels)]
        wanted = min(0.7, max(0.2, 0.4 + deficit / 30))
        found = np.log(reference.c_for(distances, wanted))
        used = found if expected is None else expected
        expected = used + (found - used) / min(1 + number / 4, 30)
        kept = selector.select(ids, labels)
        deficit += 0.4 - len(kept.positions) / 100
        pilot.learn(bags, labels)
        np.testing.assert_allclose(selector.log_c.numpy(), expected, atol=2e-3)


def test_the_estimates_of_a_gradient_are_what_theory_says():
    """Over many draws: with weights of all inputs, and with offsets 0 for the true model."""
    num, log_odds = 4000, np.random.default_rng(0).normal(-2, 1.5, size=4000)
    truth = 1 / (1 + np.exp(-log_odds))
    labels = (np.random.default_rng(1).random(num) < truth).astype("float32")
    # A pilot whose weights are the truth of `num` ids, and does not learn.
    pilot = slipstream.Pilot([num], learning_rate=1e-12)
    pilot.rows.set_weights([np.stack([log_odds, np.zeros(num)], axis=1)])
    selector = slipstream.InputSelector(pilot, keep=0.5)
    select = tf.function(selector.select)
    ids = np.arange(num)[:, np.newaxis]
    # The gradient of a constant model's loss; and of the true model's, with the offset.
    estimates, corrected = [], []
    for _ in range(400):
        kept = [part.numpy() for part in select(ids, labels)]
        y = labels[kept[0]]
        estimates.append(np.sum(kept[2] * (0.2 - y)) / num)
        shifted = 1 / (1 + np.exp(-(log_odds[kept[0]] + kept[1])))
        corrected.append(np.sum(shifted - y) / num)
    expected = np.mean(0.2 - labels)
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - expected) < 4 * error
    # Of these labels: each kept with its probability, so that the sum is known.
    c = np.exp(float(selector.log_c.numpy()))
    kept_with = [[reference.keep_probability(y, z, c) for z in log_odds] for y in (0, 1)]
    shifted = 1 / (1 + np.exp(-(log_odds + np.log(kept_with[1]) - np.log(kept_with[0]))))
    of_these = np.where(labels > 0.5, kept_with[1], kept_with[0])
    expected = np.sum(of_these * (shifted - labels)) / num
    assert abs(np.mean(corrected) - expected) < 5e-4
    # And over labels of that truth 0, where plain training has 0 as well.
    of_truth = truth * np.array(kept_with[1]) * (shifted - 1)
    of_truth += (1 - truth) * np.array(kept_with[0]) * shifted
    np.testing.assert_allclose(of_truth, 0, atol=1e-6)


def test_warm_up_keeps_all_and_corrects_nothing():
    selector = selector_of(keep=0.3, warm_up=3)
    sizes = []
    for ids, labels in batches_of(click_log(1000)):
        kept = selector.select(ids, labels)
        sizes.append(len(kept.positions))
        if len(sizes) <= 3:
            np.testing.assert_array_equal(kept.offsets, np.zeros(100))
            np.testing.assert_array_equal(kept.inverse_probabilities, np.ones(100))
    assert sizes[:3] == [100] * 3 and max(sizes[3:]) < 70


def test_draws_depend_on_the_seed_and_the_batch_alone():
    def places(seed):
        selector = selector_of(seed=seed)
        return [
            selector.select(ids, labels).positions.numpy().tolist()
            for ids, labels in batches_of(click_log(300))
        ]

    assert places(1) == places(1)
    assert places(1) != places(2)


def test_counts_by_label_and_by_popularity_add_up():
    ids, labels = click_log(1600)
    selector, kept = selector_of(), []
    for number, batch in enumerate(batches_of((ids, labels))):
        places = selector.select(*batch).positions.numpy()
        kept.append(places + 100 * number)
    stats, kept = selector.stats(), np.concatenate(kept)
    assert stats.num_inputs == 1600 and stats.num_kept == len(kept)
    assert stats.num_inputs_by_label == (1600 - labels.sum(), labels.sum())
    assert stats.num_kept_by_label[1] == labels[kept].sum()
    # Of the batches 0 and 8.
    counted = np.concatenate([kept[kept < 100], kept[(kept >= 800) & (kept < 900)]])
    for name in DIMS:
        assert sum(stats.num_lookups_by_popularity[name]) == 200
        assert sum(stats.num_kept_lookups_by_popularity[name]) == len(counted)
    assert stats.num_lookups_by_popularity["item"][0] == 200  # none had 10 batches before


@pytest.mark.parametrize("labels", [[0, 2], [0.5, 1], [-1, 0], [float("nan"), 0]])
def test_labels_other_than_0_and_1_are_an_error_and_nothing_is_learned(labels):
    selector = selector_of()
    ids = {"user": [1, 2], "item": [3, 4]}
    with pytest.raises(tf.errors.InvalidArgumentError, match="labels that are 0 or 1"):
        tf.function(selector.select)(ids, tf.constant(labels, tf.float32))
    assert selector.num_batches.numpy() == 0
    np.testing.assert_array_equal(selector.pilot.rows.get_weights()[0], np.zeros([110, 2]))


@pytest.mark.parametrize(
    "arguments",
    [
        {"keep": 0},
        {"keep": 1.5},
        {"keep": True},
        {"keep": "half"},
        {"method": "best"},
        {"warm_up": -1},
        {"seed": 0.5},
    ],
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        selector_of(**arguments)


def test_a_pilot_is_needed_where_it_decides_and_only_there():
    with pytest.raises(ValueError, match="Pilot"):
        slipstream.InputSelector(None)
    with pytest.raises(ValueError, match="in the model"):
        slipstream.InputSelector(None, method="random", uses_log_odds=True)
    selector = slipstream.InputSelector(None, method="random")
    ids, labels = next(batches_of(click_log(100)))
    assert 20 < len(selector.select(ids, labels).positions) < 80
