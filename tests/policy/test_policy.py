"""`StalenessPolicy`: what it refuses, its presets and its config."""

import dataclasses
import json
import math

import pytest

from tf_slipstream import SlipstreamEmbedding, SlipstreamOptimizer, StalenessPolicy
from tf_slipstream._compat import keras
from tf_slipstream.policy import DRIFT_METRICS

INTEGERS = {
    "min_updates": 1,
    "window": 2,
    "probe": 2,
    "first_sleep": 1,
    "max_sleep": 1,
    "updates_per_sleep": 1,
    "max_age": 1,
    "refresh_every": 0,
    "warm_up": 0,
}
PRESETS = ("conservative", "balanced", "aggressive", "auto")
MADE = {
    "default": StalenessPolicy(),
    **{name: getattr(StalenessPolicy, name)() for name in PRESETS},
    "changed": StalenessPolicy(
        on_stale="skip",
        drift_metric="loss",
        threshold=None,
        target_skip=0.5,
        max_threshold=0.25,
        window=16,
        popular_share=1,
    ),
}
all_made = pytest.mark.parametrize("policy", MADE.values(), ids=MADE)


@pytest.mark.parametrize("name, least", INTEGERS.items())
def test_counts_are_integers_in_their_range(name, least):
    # A first sleep is at most the longest.
    others = {"first_sleep": 1} if name == "max_sleep" else {}
    assert getattr(StalenessPolicy(**{name: least}, **others), name) == least
    for value in (least - 1, -1, float(least), 2.5, True, "8", None, math.nan):
        with pytest.raises(ValueError, match=f"`{name}` must be an integer >= {least}, got"):
            StalenessPolicy(**{name: value}, **others)


@pytest.mark.parametrize("name", ["threshold", "max_threshold", "min_drift", "skip_below"])
def test_limits_are_finite_and_not_negative(name):
    for value in (0, 0.0, 1e-30, 7):
        assert getattr(StalenessPolicy(**{name: value}), name) == value
    for value in (-1e-9, math.inf, -math.inf, math.nan, "1", True):
        with pytest.raises(ValueError, match=f"`{name}` must be a finite number >= 0, got"):
            StalenessPolicy(**{name: value})


@pytest.mark.parametrize("name", ["target_skip", "popular_share"])
def test_shares_are_in_their_range(name):
    others = {"threshold": None} if name == "target_skip" else {}
    for value in (1e-9, 0.5, 1, 1.0):
        assert getattr(StalenessPolicy(**{name: value}, **others), name) == value
    for value in (0, -0.5, 1.001, math.nan, "0.5", True):
        with pytest.raises(ValueError, match=rf"`{name}` must be a number in \(0, 1\], got"):
            StalenessPolicy(**{name: value}, **others)


def test_a_share_of_popular_rows_is_not_optional():
    with pytest.raises(ValueError, match="popular_share"):
        StalenessPolicy(popular_share=None)
    with pytest.raises(ValueError, match="max_threshold"):
        StalenessPolicy(max_threshold=None)


@pytest.mark.parametrize("threshold, target_skip", [(None, None), (1.0, 0.5)])
def test_a_threshold_is_given_or_found(threshold, target_skip):
    with pytest.raises(ValueError, match="Exactly one of `threshold` and `target_skip`"):
        StalenessPolicy(threshold=threshold, target_skip=target_skip)


@pytest.mark.parametrize(
    "name, value", [("on_stale", "drop"), ("on_stale", None), ("drift_metric", "l1")]
)
def test_unknown_words_are_refused_and_the_known_are_named(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be one of \('.*'\), got {value!r}"):
        StalenessPolicy(**{name: value})


def test_a_first_sleep_is_at_most_the_longest():
    with pytest.raises(ValueError, match="`first_sleep` must be at most `max_sleep`"):
        StalenessPolicy(first_sleep=9, max_sleep=8)


def test_a_policy_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        StalenessPolicy().window = 4


def test_the_default_is_conservative():
    assert StalenessPolicy() == StalenessPolicy.conservative()
    assert len({StalenessPolicy(), *MADE.values()}) == len(MADE) - 1  # hashable, and differ


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_takes_changes(name):
    changed = getattr(StalenessPolicy, name)(window=3, max_sleep=200)
    preset = getattr(StalenessPolicy, name)()
    assert changed == dataclasses.replace(preset, window=3, max_sleep=200)


def test_auto_lets_a_row_sleep_by_the_cube_of_its_updates():
    for budget in (1e-6, 1e-4, 3e-4, 1e-3, 0.1):
        policy = StalenessPolicy.auto(budget)
        assert policy.sleep_growth == 3 and policy.max_sleep == 32
        # What its docstring promises, but for rounding to whole updates.
        age = policy.updates_per_sleep
        assert age**3 >= 2400 / budget * (1 - 1e-9) > (age - 1) ** 3
        # Rows are looked at just in time for a first sleep of two batches.
        first = policy.min_updates + policy.window
        assert (first / age) ** 3 >= 2
        assert policy.min_updates == 1 or ((first - 1) / age) ** 3 < 2
    changed = StalenessPolicy.auto(max_sleep=8, warm_up=5)
    assert (changed.max_sleep, changed.warm_up) == (8, 5)


@pytest.mark.parametrize("budget", [0, -1e-4, 1e-7, 0.2, math.nan, math.inf, "0.001", None, True])
def test_auto_refuses_what_is_no_budget(budget):
    with pytest.raises(ValueError, match=r"`budget` must be a number in \[1e-6, 0.1\], got"):
        StalenessPolicy.auto(budget)


def test_the_growth_of_sleeps_is_a_number_in_its_range():
    for value in (1, 1.0, 1.5, 8):
        assert StalenessPolicy(sleep_growth=value).sleep_growth == value
    for value in (0, 0.99, 8.1, math.inf, math.nan, "2", True, None):
        with pytest.raises(ValueError, match=r"`sleep_growth` must be a number in \[1, 8\], got"):
            StalenessPolicy(sleep_growth=value)


@all_made
def test_a_config_makes_the_same_again(policy):
    config = json.loads(json.dumps(policy.get_config()))
    assert StalenessPolicy.from_config(config) == policy
    assert set(config) == {field.name for field in dataclasses.fields(policy)}


@all_made
def test_it_survives_serialization_without_custom_objects(policy):
    serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(policy)))
    assert keras.saving.deserialize_keras_object(serialized) == policy


@pytest.mark.parametrize("policy", [*MADE.values(), None, *PRESETS], ids=str)
def test_a_layer_and_an_optimizer_keep_it(policy):
    expected = getattr(StalenessPolicy, policy)() if isinstance(policy, str) else policy
    layer = SlipstreamEmbedding(5, 2, policy=policy)
    optimizer = SlipstreamOptimizer(keras.optimizers.SGD(), policy=policy)
    for made in (layer, optimizer):
        assert made.policy == expected or made.policy == policy
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(made)))
        again = keras.saving.deserialize_keras_object(config)
        assert again.policy == made.policy and again.get_config() == made.get_config()


@pytest.mark.parametrize("policy", ["careful", 3, True, StalenessPolicy, {"window": 3}], ids=str)
def test_what_is_no_policy_is_refused(policy):
    for make in (
        lambda: SlipstreamEmbedding(5, 2, policy=policy),
        lambda: SlipstreamOptimizer(keras.optimizers.SGD(), policy=policy),
    ):
        with pytest.raises(ValueError, match="`policy` must be a StalenessPolicy, one of .*conser"):
            make()


def test_an_optimizers_default_is_the_default_policy():
    optimizer = SlipstreamOptimizer(keras.optimizers.SGD(), policy="default")
    assert optimizer.policy == StalenessPolicy()
    # A layer's is its optimizer's.
    assert SlipstreamEmbedding(5, 2, policy="default").policy == "default"


@pytest.mark.parametrize("correlation", [0.0, 0.9])
@all_made
def test_all_of_it_but_what_a_table_begins_with_crosses_as_numbers(policy, correlation):
    numbers = policy.numbers(correlation)
    assert all(type(number) is float for number in numbers.values())
    assert numbers["skips"] == (policy.on_stale == "skip")
    assert DRIFT_METRICS[int(numbers["drift_metric"])] == policy.drift_metric
    assert numbers["target_skip"] == (policy.target_skip or 0)
    assert numbers["correlation"] == correlation
    config = policy.get_config()
    for name in set(config) - {"on_stale", "drift_metric", "target_skip"} & set(numbers):
        assert name in ("threshold", "popular_share") or numbers[name] == config[name], name
    assert set(config) - set(numbers) == {"on_stale", "threshold", "popular_share"}
