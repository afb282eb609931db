"""Where no row sleeps, training is that without a policy, to the bit."""

import numpy as np
import pytest

from tests.policy.training import RULES, Product, Stream, policies
from tf_slipstream.ops import _library

STREAM = Stream(
    dim=9, shares=(1.0, 1.0, 0.9, 0.6, 0.3, 0.1, 0.02), num_steps=200, change_rate_at=120
)
# Each judges and measures, but for the last; none sleeps.
SLEEPLESS = {
    "a period of 1": policies(first_sleep=1, max_sleep=1, threshold=1e6),
    "nothing at rest": policies(drift_metric="l2", threshold=0.0),
    "a refresh in every step": policies(threshold=1e6, refresh_every=1),
    "nothing popular": policies(min_updates=1_000, threshold=1e6),
}


def train(name, policy, stream=STREAM, **options):
    product = Product(stream.values(), name, policy, **options)
    for batch in stream.steps():
        product.step(*batch)
    return product.arrays()


def assert_same_training(arrays, expected):
    for name in expected:
        if name in ("table", "last_steps", "counters") or name.startswith("slot"):
            assert arrays[name].tobytes() == expected[name].tobytes(), name


@pytest.mark.parametrize("name", RULES)
def test_a_period_of_1_is_no_policy(name):
    policy = SLEEPLESS["a period of 1"]
    arrays = train(name, policy, weight_decay=0.125, clipvalue=0.75)
    assert_same_training(arrays, train(name, None, weight_decay=0.125, clipvalue=0.75))
    assert (arrays["row_states"] < 0).sum() >= 6


@pytest.mark.parametrize("name", ["sgd", "amsgrad"])
@pytest.mark.parametrize("sleepless", SLEEPLESS)
def test_a_policy_under_which_no_row_sleeps_is_no_policy(sleepless, name):
    assert_same_training(train(name, SLEEPLESS[sleepless]), train(name, None))


@pytest.mark.parametrize("name", ["nesterov", "adagrad", "adam"])
@pytest.mark.parametrize("policy", [policies(threshold=1e6), policies(on_stale="skip")])
def test_without_native_ops_every_row_is_live_and_one_warning_says_so(policy, name):
    stream = Stream(num_steps=20)
    with _library.fallback():
        message = "Every row of table 'user' stays live: its policy needs .* native ops"
        with pytest.warns(RuntimeWarning, match=message) as caught:
            product = Product(stream.values(), name, policy)
            for batch in stream.steps():
                product.step(*batch)
        assert len(caught) == 1
        product.optimizer.wake_all()
        without = Product(stream.values(), name, None)
        for batch in stream.steps():
            without.step(*batch)
        without.optimizer.wake_all()
    arrays, expected = product.arrays(), without.arrays()
    assert arrays.keys() == expected.keys()
    for variable, array in expected.items():
        assert arrays[variable].tobytes() == array.tobytes(), variable
    stats = product.optimizer.skip_stats()["user"]
    assert stats.num_stale_rows == stats.num_deferred_lookups == stats.num_skipped_lookups == 0
    assert stats.num_lookups > 0


def test_without_a_policy_there_is_nothing_of_one():
    product = Product(STREAM.values(), "adam", None)
    for batch in Stream(dim=9, shares=STREAM.shares).steps():
        product.step(*batch)
    stats = product.optimizer.skip_stats()["user"]
    assert stats.num_stale_rows == stats.num_deferred_lookups == stats.num_skipped_lookups == 0
    product.optimizer.wake_all()
    assert sum(np.size(array) for array in product.arrays().values()) < 1_000
