"""Numbers in a checkpoint that make no sense are refused, or do no harm."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.policy.training import Product, policies
from tests.reliability import hostile_state, hostile_vocabulary
from tests.reliability.failing_files import ROOT
from tf_slipstream.state.schema import POLICY_STATE, POOL_INTS

REFUSED = (tf.errors.InvalidArgumentError, ValueError)


def sleeping():
    """Returns a table some of whose rows sleep and hold gradients."""
    policy = policies(drift_metric="l2", threshold=1e30)
    product = Product(np.zeros([4, 2]), "sgd", policy)
    for _ in range(13):
        product.step([0, 1, 2], np.ones([3, 2]))
    assert product.num_held() > 0
    return product


# A process of its own: a crash has no traceback.
@pytest.mark.parametrize(
    "module, seed",
    [(hostile_state, 5), (hostile_state, 2), (hostile_vocabulary, 5), (hostile_vocabulary, 2)],
)
def test_no_number_anywhere_crashes_or_changes_what_it_should_not(module, seed):
    command = [sys.executable, "-m", module.__name__, str(seed), "--few"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-1000:]
    assert "done" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("column", [c for c in POOL_INTS if c != "is_skipped"])
@pytest.mark.parametrize("number", [-1, 2**62, 2**63 - 1, -(2**63)])
def test_an_entry_that_no_training_makes_is_refused(column, number):
    if (column, number) == ("period", -1):
        number = -(2**62) - 1  # less is taken for 1
    product = sleeping()
    ints = product.state.pool_ints.numpy()
    ints[0, POOL_INTS.index(column)] = number
    product.state.pool_ints.assign(ints)
    before = product.arrays()
    for use in (lambda: product.step([0, 1], np.ones([2, 2])), product.optimizer.wake_all):
        with pytest.raises(tf.errors.InvalidArgumentError, match="makes no sense.*not restored"):
            use()
    after = product.arrays()
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)


@pytest.mark.parametrize("column", [c for c in POLICY_STATE if c != "learning_rate"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_policy_state_that_is_not_finite_is_refused(column, number):
    product = sleeping()
    values = product.state.policy_state.numpy()
    values[POLICY_STATE.index(column)] = number
    product.state.policy_state.assign(values)
    uses = (
        lambda: product.step([0], np.ones([1, 2])),
        product.optimizer.settle,
        product.optimizer.skip_stats,
    )
    for use in uses:
        with pytest.raises(REFUSED, match="not restored whole"):
            use()


def test_a_learning_rate_that_was_nan_when_it_was_saved_is_the_users_again():
    product = sleeping()
    values = product.state.policy_state.numpy()
    values[POLICY_STATE.index("learning_rate")] = np.nan
    product.state.policy_state.assign(values)
    product.step([0], np.ones([1, 2]))
    assert product.state.policy_state.numpy()[POLICY_STATE.index("learning_rate")] == 0.125


@pytest.mark.parametrize("rate", [np.nan, np.inf])
def test_a_learning_rate_that_is_not_finite_is_refused(rate, native_or_fallback):
    product = Product(np.zeros([4, 2]), "adam", None)
    product.step([1], np.ones([1, 2]))
    before = product.arrays()
    with pytest.raises(tf.errors.InvalidArgumentError, match="learning rate"):
        product.step([1], np.ones([1, 2]), learning_rate=rate)
    after = product.arrays()
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)


@pytest.mark.parametrize("steps", [-5, 2**61, 2**63 - 1])
def test_a_number_of_steps_that_makes_no_sense_is_refused(steps, native_or_fallback):
    product = Product(np.zeros([4, 2]), "adam", None)
    product.step([1], np.ones([1, 2]))
    product.optimizer.iterations.assign(steps)
    with pytest.raises(tf.errors.InvalidArgumentError, match="number of a step"):
        product.step([1], np.ones([1, 2]))


def test_a_window_that_no_training_makes_does_not_take_for_ever():
    """With momentum of 1 no term of the noise's sum is small."""
    product = Product(np.zeros([4, 2]), "momentum_1", policies())
    for _ in range(6):
        product.step([0], np.ones([1, 2]))
    ints = product.state.pool_ints.numpy()
    ints[0, POOL_INTS.index("window_updates")] = 2**60
    product.state.pool_ints.assign(ints)
    for _ in range(20):
        product.step([0], np.ones([1, 2]))
    assert product.state.pool_ints.numpy()[0, POOL_INTS.index("window_updates")] < 2**60
