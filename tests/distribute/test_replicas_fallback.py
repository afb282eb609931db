"""Checks that replicas on plain TensorFlow ops do what they do on native ones."""

import pytest

from tests.distribute.replicas import POLICIES, Replicated, alone, assert_same, batches
from tf_slipstream.ops import _library


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_plain_tensorflow_ops_do_the_same(name):
    with _library.fallback():
        replicated, single = Replicated(2, name, None), alone(name, None)
        for batch in batches(2, 80):
            replicated.step(batch)
            single.step(batch.ids, batch.grads)
        assert_same(replicated, single)
        replicated.optimizer.wake_all()
        single.optimizer.wake_all()
        assert_same(replicated, single)


def test_every_row_stays_live_and_a_warning_says_so():
    with _library.fallback(), pytest.warns(RuntimeWarning, match="row of table 'user' stays live"):
        replicated, single = Replicated(2, "sgd", POLICIES["defer"]), alone("sgd", None)
    assert replicated.state.policy is None and replicated.state.local_held is None
    with _library.fallback():
        for batch in batches(2, 20):
            replicated.step(batch)
            single.step(batch.ids, batch.grads)
        assert_same(replicated, single)
    stats = replicated.optimizer.skip_stats()["user"]
    assert stats == single.optimizer.skip_stats()["user"]
    assert stats.num_lookups > 0 == stats.num_deferred_lookups
