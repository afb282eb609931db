"""Checks that replicas on plain TensorFlow ops do what they do on native ones."""

import pytest

from tests.distribute.replicas import POLICIES, Replicated, alone, assert_same, batches
from tf_slipstream.ops import _library


@pytest.mark.parametrize("policy", ["skip_below", "skip"])
def test_plain_tensorflow_ops_do_the_same(policy):
    with _library.fallback():
        replicated = Replicated(2, "sgd", POLICIES[policy])
        single = alone("sgd", POLICIES[policy])
        for batch in batches(2, 80):
            replicated.step(batch)
            single.step(batch.ids, batch.grads)
        assert_same(replicated, single)
        replicated.optimizer.wake_all()
        single.optimizer.wake_all()
        assert_same(replicated, single)
