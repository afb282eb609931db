"""What can be said of parameter servers without any."""

import gc
import types
import weakref

import numpy as np
import pytest
import tensorflow as tf

import tf_slipstream as slipstream
from tests.models import embedding_of, random_table
from tf_slipstream import _compat
from tf_slipstream.distribute import CacheStats, ParameterServerTrainer, WorkerCache
from tf_slipstream.distribute.trainer import Rounds
from tf_slipstream.engine.server_table import server_tables
from tf_slipstream.state.stats import SkipStats, sum_stats


@pytest.mark.parametrize("wrong", [{"num_bytes": -1}, {"max_age": -1}, {"max_age": 0.5}])
def test_a_bound_that_makes_no_sense_is_named(wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be an integer >= 0"):
        WorkerCache(**wrong)


def shard(num_rows, dim, policy=None):
    table = tf.zeros([num_rows, dim])
    return types.SimpleNamespace(num_rows=num_rows, table=table, policy=policy)


def test_tables_share_a_workers_memory_and_want_no_more_than_may_sleep():
    policy = slipstream.StalenessPolicy()
    groups = {
        "a": [shard(6000, 8, policy), shard(6000, 8, policy)],
        "b": [shard(100, 56, policy)],
        "c": [shard(100, 8)],
    }

    def capacities(num_bytes):
        tables = server_tables(groups, WorkerCache(num_bytes=num_bytes), 0.0)
        return [table.cache.capacity for table in tables]

    assert capacities(1 << 30) == [2 * 4096, 100, 0]
    # A row of "a" takes 160 bytes, one of "b" 544.
    wanted = 8192 * 160 + 100 * 544
    assert capacities(wanted // 2) == [4096, 50, 0]
    assert capacities(0) == [0, 0, 0]


def test_a_tables_shards_follow_each_other():
    groups = {"a": [shard(5, 8), shard(4, 8)], "b": [shard(5, 8)]}
    a, b = server_tables(groups, WorkerCache(), 0.5)
    assert a.cache.row_starts == (0, 5, 9) and b.cache.row_starts == (0, 5)
    assert a.cache.name != b.cache.name and a.cache.clip_value == 0.5


def traced_step():
    """Returns weak references to a table that was looked up in a function, and to its graph."""
    layer = embedding_of(random_table(), name="user")
    optimizer = slipstream.SlipstreamOptimizer(_compat.keras.optimizers.SGD(0.5))
    optimizer.build(layer.trainable_variables)
    (state,) = optimizer.tables.values()
    (table,) = server_tables({"user": [state]}, WorkerCache(), 0.0)

    @tf.function
    def step(ids):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(table.lookup(ids, tf.constant(1, tf.int64)) ** 2)
        gradient = table.take_gradient(tape.gradient(loss, [state.table]))
        return gradient.ids, gradient.values, gradient.num_lookups

    ids, values, counts = step(tf.constant([3, 1, 3]))
    assert ids.numpy().tolist() == [3, 1] and counts.numpy().tolist() == [2, 1]
    np.testing.assert_allclose(values, random_table()[[3, 1]] * [[4], [2]], rtol=1e-6)
    graph = step.get_concrete_function(tf.constant([3, 1, 3])).graph
    return [weakref.ref(one) for one in (table, state.table, graph)]


def test_a_traced_lookup_keeps_neither_its_table_nor_its_graph_alive():
    known = traced_step()
    gc.collect()
    assert [one() for one in known] == [None] * 3


def test_an_initializer_whose_seed_cannot_be_another_is_named():
    class Own(_compat.keras.initializers.Initializer):
        def __init__(self, scale, seed):
            self.scale, self.seed = scale, seed

        def __call__(self, shape, dtype=None, **kwargs):
            return tf.random.stateless_uniform(shape, [self.seed, 0]) * self.scale

    initializer = Own(2.0, seed=3)
    assert _compat.with_another_seed(initializer, 0) is initializer
    if not _compat.IS_KERAS_3:
        assert _compat.with_another_seed(initializer, 1) is initializer
        return
    with pytest.raises(
        ValueError, match="Own.*has a seed.*`get_config` that returns all arguments"
    ):
        _compat.with_another_seed(initializer, 1)
    Own.get_config = lambda self: {"scale": self.scale, "seed": self.seed}
    assert _compat.with_another_seed(initializer, 1).seed not in (3, None)


def test_a_dtype_that_rows_cannot_travel_in_is_named():
    with pytest.raises(ValueError, match='`wire_dtype` must be "float32" or "bfloat16".*float16'):
        server_tables({"a": [shard(5, 8)]}, WorkerCache(), 0.0, "float16")


def test_statistics_of_shards_add_up_but_for_their_threshold():
    one = SkipStats(10, 1, 2, 8, 1, 2, 3, 100, 2.0)
    assert sum_stats([one, one]) == SkipStats(20, 2, 4, 16, 2, 4, 6, 200, 2.0)


def test_the_hit_rate_is_of_distinct_rows():
    assert CacheStats(75, 25, 0, 0).hit_rate == 0.25
    assert CacheStats(0, 0, 0, 0).hit_rate == 0


def test_the_trainer_is_for_keras_3_and_parameter_servers():
    with pytest.raises(
        ValueError, match="ParameterServerStrategy" if _compat.IS_KERAS_3 else "fit"
    ):
        ParameterServerTrainer(None, tf.distribute.get_strategy())


class Step:
    """A step that workers do when somebody waits for it."""

    def __init__(self, done):
        self._done = done

    def fetch(self):
        self._done.append(self)


@pytest.mark.parametrize("max_delay", [0, 1, 3])
def test_a_step_waits_for_the_rounds_before_its_own(max_delay):
    num_workers, sent, done = 3, [], []
    rounds = Rounds(num_workers, max_delay)
    for step in range(20):
        rounds.wait()
        # Those that were waited for, and no others: workers are kept as busy as they may be.
        num_done = max(0, step // num_workers - max_delay) * num_workers
        assert done == sent[:num_done], step
        sent.append(Step(done))
        rounds.add(sent[-1])


def test_without_a_bound_nobody_waits():
    rounds, done = Rounds(2, None), []
    for _ in range(9):
        rounds.wait()
        rounds.add(Step(done))
    assert not done


@pytest.mark.skipif(not _compat.IS_KERAS_3, reason="the trainer is for Keras 3")
@pytest.mark.parametrize("wrong", [-1, 0.5, True])
def test_a_delay_that_makes_no_sense_is_named(wrong, monkeypatch):
    monkeypatch.setattr(tf.distribute, "ParameterServerStrategy", object)
    with pytest.raises(ValueError, match="`max_delay` must be an integer >= 0 or None, got"):
        ParameterServerTrainer(None, None, max_delay=wrong)


def test_without_servers_there_is_nothing_cached_to_count():
    optimizer = slipstream.SlipstreamOptimizer(_compat.keras.optimizers.SGD(0.1))
    assert optimizer.cache_stats() == {}
    optimizer.flush_workers()
