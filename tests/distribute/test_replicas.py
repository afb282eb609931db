"""Checks tables over replicas against one device."""

import pytest

from tests.distribute.replicas import POLICIES, Replicated, alone, assert_same, batches

CASES = [
    # name, policy, num_replicas, num_steps
    ("sgd", "none", 2, 60),
    ("sgd", "defer", 2, 300),
    ("adam", "defer", 2, 120),
    ("adagrad", "refresh", 2, 120),
    ("adam", "skip_below", 2, 120),
    ("sgd", "skip", 2, 120),
    ("adagrad", "target", 2, 220),
    ("sgd", "none", 4, 40),
    ("rmsprop", "refresh", 4, 120),
]


@pytest.mark.parametrize("name,policy,num_replicas,num_steps", CASES)
def test_replicas_are_alike_and_train_as_one_device_does(name, policy, num_replicas, num_steps):
    replicated = Replicated(num_replicas, name, POLICIES[policy])
    single = alone(name, POLICIES[policy])
    num_local = 0
    rates = [(num_steps // 2, 0.0625)]
    for number, batch in enumerate(batches(num_replicas, num_steps, rates=rates)):
        replicated.step(batch)
        single.step(batch.ids, batch.grads, batch.learning_rate)
        if number % 10 == 9:
            assert_same(replicated, single)
            if replicated.state.local_held is not None:
                holders = replicated.local_held().any(axis=2).sum(axis=0)
                num_local = max(num_local, holders.max())
    stats = replicated.optimizer.skip_stats()["user"]
    assert stats == single.optimizer.skip_stats()["user"]
    if policy == "skip":
        assert stats.num_skipped_lookups > 100
    elif policy != "none":
        # A row that is skipped defers nothing until it wakes.
        least = num_steps / 2 if policy == "skip_below" else num_steps
        assert stats.num_deferred_lookups > least
        assert (stats.num_skipped_lookups > least) == (policy == "skip_below")
        assert num_local > 1, "never did two replicas hold gradients of one row"
        assert not replicated.state.pool_floats.numpy()[:, :4].any()
    replicated.optimizer.wake_all()
    single.optimizer.wake_all()
    assert_same(replicated, single)
    if replicated.state.local_held is not None:
        assert not replicated.local_held().any()
