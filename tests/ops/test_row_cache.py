"""A worker's cache of rows that sleep, against what must come out, and a plain model of it."""

import dataclasses
import itertools

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

import tf_slipstream as slipstream
from tests.models import embedding_of
from tf_slipstream import _compat
from tf_slipstream.ops._library import needed_native_ops
from tf_slipstream.ops.row_cache import RowCache, pull_rows, push_rows, sum_gradients

NUM_ROWS, DIM = 12, 3
_names = (f"test{i}" for i in itertools.count())


def cache_of(**changes):
    settings = {
        "name": next(_names),
        "session": "one",
        "table_name": "user",
        "row_starts": (0, 5, NUM_ROWS),
        "dim": DIM,
        "capacity": 8,
        "max_age": 100,
        "clip_value": 0.0,
    }
    return RowCache(**{**settings, **changes})


def found_by(cache, ids, step):
    return needed_native_ops().slipstream_row_cache_find(
        tf.constant(ids, tf.int64),
        step,
        num_shards=len(cache.row_starts) - 1,
        max_age=cache.max_age,
        table_name=cache.table_name,
        **cache._attributes(),
    )


def find(cache, ids, step):
    """Returns `inverse`, `ids`, `num_lookups`, `cached` and the shards' `pulls`."""
    found = found_by(cache, ids, step)
    pulls = [pull.numpy().tolist() for pull in found.pulls]
    return (*(one.numpy() for one in found[:4]), pulls)


def look_up(cache, table, sleeps, ids, step):
    """Returns the rows `[num_lookups, dim]` that a step reads, distinct ids and their lookups."""
    found = found_by(cache, ids, step)
    pulled, asleep, known = [], [], found.known.numpy()
    for pull, hashes, start in zip(found.pulls, found.hashes, cache.row_starts):
        places = pull.numpy() + start
        words, is_sent = sleeps[places].astype(np.int32), np.full(len(places), True)
        values, known = known[: len(hashes)], known[len(hashes) :]
        # What the server does: it sends no row that is what the worker has.
        first = len(places) - len(hashes)
        is_sent[first:] = (table[places[first:]] != values).any(axis=1)
        words[~is_sent] |= np.iinfo(np.int32).min
        pulled.append(tf.constant(table[places[is_sent]].reshape(-1, DIM), tf.float32))
        asleep.append(tf.constant(words))
    kept = needed_native_ops().slipstream_row_cache_store(
        found.ids, found.known, found.hashes, pulled, asleep, step, **cache._attributes()
    )
    rows = np.concatenate([found.cached, *pulled, kept.same])[kept.places]
    return rows[found.inverse], found.ids.numpy(), found.num_lookups.numpy()


def push(cache, ids, grads, step, num_lookups=None, flush=False):
    """Returns dict from id to (gradient, batches, lookups), and the sum of the shards' counts."""
    num_lookups = np.ones(len(ids)) if num_lookups is None else num_lookups
    grads = tf.reshape(tf.constant(grads, tf.float32), [-1, cache.dim])
    pushes = push_rows(
        cache, tf.constant(ids, tf.int64), grads, tf.constant(num_lookups, tf.int32), step, flush
    )
    sent = {}
    for one, start in zip(pushes, cache.row_starts):
        for i, g, b in zip(one.ids.numpy(), one.grads.numpy(), one.batches.numpy()):
            assert i + start not in sent
            sent[int(i + start)] = (g.tolist(), *map(int, b))
    return sent, sum(one.counts.numpy()[:9] for one in pushes)


def table_of(num_rows=NUM_ROWS):
    return np.arange(num_rows * DIM, dtype=np.float32).reshape(num_rows, DIM)


def asleep(steps, max_batches=2000):
    """Returns what a server says of rows that sleep so long; without batches they are skipped."""
    return np.asarray(steps, np.int32) | np.int32(max_batches) << 20


AWAKE = np.zeros(NUM_ROWS, np.int32)


def test_each_row_is_asked_for_once_from_its_shard():
    ids = [7, 0, 7, 4, 5, 11, 0, 7]
    inverse, distinct, num_lookups, cached, pulls = find(cache_of(), ids, 1)
    assert distinct[inverse].tolist() == ids
    assert pulls == [[0, 4], [2, 0, 6]]
    assert distinct.tolist() == [0, 4, 7, 5, 11]
    assert num_lookups.tolist() == [2, 1, 3, 1, 1]
    assert cached.shape == (0, DIM)


def test_summed_gradients_come_in_the_order_in_which_ids_were_found():
    ids = [7, 0, 7, 4, 5, 11, 0, 7]
    cache, grads = cache_of(), np.arange(8 * DIM, dtype=np.float32).reshape(8, DIM)
    found = found_by(cache, ids, 1)
    distinct, sums = sum_gradients(cache, tf.constant(ids, tf.int64), grads)
    assert distinct.numpy().tolist() == [7, 0, 4, 5, 11]
    assert np.array_equal(distinct, tf.gather(found.ids, found.order))
    for one, total in zip(distinct.numpy(), sums.numpy()):
        assert np.array_equal(total, grads[np.array(ids) == one].sum(axis=0))


def test_a_gradient_that_is_not_finite_is_named():
    grads = np.ones([2, DIM], np.float32)
    grads[1, 2] = np.nan
    with pytest.raises(tf.errors.InvalidArgumentError, match="'user': the gradient of row 8"):
        sum_gradients(cache_of(), tf.constant([3, 8], tf.int64), grads)


@pytest.mark.parametrize("ids", [[], [3], [11] * 5])
def test_few_ids(ids):
    rows, distinct, _ = look_up(cache_of(), table_of(), AWAKE, ids, 1)
    assert np.array_equal(rows, table_of()[np.array(ids, int)])
    assert len(distinct) == len(set(ids))


@pytest.mark.parametrize("bad", [-1, NUM_ROWS, 2**40])
def test_an_id_outside_the_table_is_named(bad):
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"'user': id {bad} at position 1"):
        find(cache_of(), [3, bad], 1)


def test_a_row_that_sleeps_is_not_pulled_before_it_wakes():
    cache, sleeps = cache_of(), AWAKE.copy()
    sleeps[3] = asleep(4)
    look_up(cache, table_of(), sleeps, [3, 2], 10)
    for step, pulls in ((11, [[2], []]), (13, [[2], []]), (14, [[2, 3], []])):
        _, distinct, _, cached, found = find(cache, [3, 2], step)
        assert found == pulls, step
        assert np.array_equal(cached, table_of()[distinct[: len(cached)]])


@pytest.mark.parametrize("max_age, is_pulled", [(0, [True, True]), (2, [False, True])])
def test_a_row_is_pulled_again_when_it_is_too_old(max_age, is_pulled):
    cache, sleeps = cache_of(max_age=max_age), np.full(NUM_ROWS, asleep(50))
    look_up(cache, table_of(), sleeps, [3], 10)
    pulled = [find(cache, [3], step)[4][0] == [3] for step in (11, 12)]
    assert pulled == is_pulled


def test_a_row_that_has_not_changed_is_not_sent_again():
    cache, sleeps = cache_of(), AWAKE.copy()
    sleeps[[3, 8]] = asleep(2)
    look_up(cache, table_of(), sleeps, [3, 8, 2], 10)
    found = found_by(cache, [9, 8, 3, 4, 8], 12)
    # Known rows come last of a shard's, each with a hash of its value.
    assert [pull.numpy().tolist() for pull in found.pulls] == [[4, 3], [4, 3]]
    assert [len(hashes) for hashes in found.hashes] == [1, 1]
    assert np.array_equal(found.known, table_of()[[3, 8]])
    changed = table_of()
    changed[3] += 1
    ids = [9, 8, 3, 4, 8]
    rows, _, _ = look_up(cache, changed, sleeps, ids, 12)
    assert np.array_equal(rows, changed[ids])
    _, counts = push(cache, [], [], 12)
    # Of the three rows of step 10 and the four of two lookups of step 12 one was not sent.
    assert counts[6:8].tolist() == [3 + 4 + 3, 1]
    assert np.array_equal(look_up(cache, changed, sleeps, ids, 13)[0], changed[ids])


@pytest.mark.parametrize("wire_dtype", ["float32", "bfloat16"])
def test_a_server_sends_no_row_that_the_worker_has(wire_dtype):
    rows = np.random.default_rng(0).normal(size=(NUM_ROWS, DIM)).astype(np.float32)
    layer = embedding_of(rows, name="user")
    policy = slipstream.StalenessPolicy(min_updates=1, window=2, threshold=1e9, updates_per_sleep=1)
    optimizer = slipstream.SlipstreamOptimizer(_compat.keras.optimizers.SGD(0.1), policy=policy)
    optimizer.build(layer.trainable_variables)
    (state,) = optimizer.tables.values()
    ids = tf.constant([1, 4, 7, 4])
    for _ in range(20):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(ids) ** 2)
        tables = layer.trainable_variables
        grads = tape.gradient(loss, [_compat.tf_variable(table) for table in tables])
        optimizer.apply_gradients(zip(grads, tables))
    cache = cache_of(row_starts=(0, NUM_ROWS), max_age=10**6)
    every = tf.range(NUM_ROWS, dtype=tf.int64)

    def pull(step):
        """Returns how many rows were cached, came, and were the same."""
        found = pull_rows(cache, [state], every, tf.constant(step, tf.int64), wire_dtype)
        expected = tf.cast(tf.cast(state.table, wire_dtype), tf.float32)
        assert np.array_equal(tf.gather(tf.concat(found.parts, 0), found.inverse), expected)
        return [len(part) for part in found.parts]

    assert pull(21) == [0, NUM_ROWS, 0]
    num_asleep = pull(21)[0]
    assert 0 < num_asleep <= 3
    assert pull(1000) == [0, NUM_ROWS - num_asleep, num_asleep]
    # By whatever they changed.
    state.table.assign(rows)
    assert pull(1001) == [0, NUM_ROWS, 0]
    assert pull(1002) == [0, NUM_ROWS - num_asleep, num_asleep]


def test_a_row_is_known_by_all_of_its_bits():
    cache, sleeps, seen = cache_of(), np.full(NUM_ROWS, asleep(1)), set()
    for step, value in enumerate([0.0, -0.0, 1.0, np.nextafter(np.float32(1), 2), 1e-45], 1):
        for d in range(DIM):
            table = table_of()
            table[3, d] = value
            look_up(cache, table, sleeps, [3], 10 * (DIM * step + d))
            found = found_by(cache, [3], 10 * (DIM * step + d) + 5)
            seen.add(int(found.hashes[0][0]))
    # The row of `table_of` has neither of these values.
    assert len(seen) == 5 * DIM


def test_gradients_are_held_while_a_row_sleeps_and_sent_with_their_number():
    cache, sleeps = cache_of(), AWAKE.copy()
    sleeps[3] = asleep(2)
    look_up(cache, table_of(), sleeps, [3, 3, 8], 10)
    sent, counts = push(cache, [3, 8], [[1, 0, 0], [5, 5, 5]], 10, [2, 1])
    assert sent == {8: ([5, 5, 5], 1, 1)}
    assert counts.tolist() == [3, 0, 2, 2, 0, 1, 2, 0, 1]
    assert push(cache, [3], [[0, 2, 0]], 11)[0] == {}
    look_up(cache, table_of(), AWAKE, [3], 12)
    sent, counts = push(cache, [3], [[0, 0, 3]], 12)
    assert sent == {3: ([1, 2, 3], 3, 1)}
    assert counts[8] == 0


def test_a_row_that_has_held_enough_is_sent_and_pulled_again():
    cache, sleeps = cache_of(), AWAKE.copy()
    sleeps[3] = asleep(50, 2)
    look_up(cache, table_of(), sleeps, [3], 10)
    sent = [push(cache, [3], [[1, 1, 1]], step)[0] for step in (10, 11, 12)]
    assert sent == [{}, {}, {3: ([3, 3, 3], 3, 1)}]
    assert find(cache, [3], 13)[4] == [[3], []]


def test_a_row_that_another_worker_woke_first_is_sent_though_it_sleeps_again():
    cache, sleeps = cache_of(), AWAKE.copy()
    sleeps[3] = asleep(2)
    look_up(cache, table_of(), sleeps, [3], 10)
    push(cache, [3], [[1, 1, 1]], 10)
    look_up(cache, table_of() + 1, sleeps, [3], 12)
    assert push(cache, [3], [[2, 2, 2]], 12)[0] == {3: ([3, 3, 3], 2, 1)}
    # Its new value stays here, and what comes now is held for its next wake.
    assert find(cache, [3], 13)[3].tolist() == (table_of() + 1)[3:4].tolist()
    assert push(cache, [3], [[4, 4, 4]], 13)[0] == {}


def test_skipped_gradients_are_neither_held_nor_sent():
    cache, sleeps = cache_of(), AWAKE.copy()
    sleeps[3] = asleep(5, 0)
    look_up(cache, table_of(), sleeps, [3, 3], 10)
    sent, counts = push(cache, [3], [[1, 1, 1]], 10, [2])
    assert sent == {} and counts.tolist() == [2, 2, 0, 1, 1, 0, 1, 0, 0]
    assert push(cache, [], [], 11, flush=True)[0] == {}


def test_each_batch_is_clipped_before_it_is_summed():
    cache, sleeps = cache_of(clip_value=1.0), AWAKE.copy()
    sleeps[3] = asleep(2)
    look_up(cache, table_of(), sleeps, [3], 10)
    push(cache, [3], [[5, -5, 0.5]], 10)
    sent, _ = push(cache, [3, 4], [[5, 0, 0.5], [-9, 0.25, 9]], 12)
    assert sent == {3: ([2, -1, 1], 2, 1), 4: ([-1, 0.25, 1], 1, 1)}


def test_a_gradient_that_is_not_finite_is_named_and_holds_nothing():
    cache = cache_of()
    look_up(cache, table_of(), np.full(NUM_ROWS, asleep(9)), [3, 4], 10)
    for bad in (np.nan, np.inf):
        with pytest.raises(tf.errors.InvalidArgumentError, match="'user': the gradient of row 4"):
            push(cache, [3, 4], [[1, 1, 1], [0, bad, 0]], 10)
    assert push(cache, [], [], 10, flush=True)[0] == {}


def test_a_flush_sends_all_and_forgets_all():
    cache = cache_of()
    look_up(cache, table_of(), np.full(NUM_ROWS, asleep(90)), [3, 4, 9], 10)
    push(cache, [3, 9], [[1, 1, 1], [2, 2, 2]], 10)
    sent, counts = push(cache, [], [], 11, flush=True)
    assert sent == {3: ([1, 1, 1], 1, 0), 9: ([2, 2, 2], 1, 0)}
    assert counts[8] == 0
    assert find(cache, [3, 4, 9], 11)[4] == [[3, 4], [4]]


def test_it_keeps_no_more_rows_than_it_may():
    cache = cache_of(capacity=2)
    sleeps = np.full(NUM_ROWS, asleep(9))
    look_up(cache, table_of(), sleeps, [3, 4, 5, 6], 10)
    assert len(find(cache, [3, 4, 5, 6], 11)[3]) == 2
    # The others' gradients go to the server, which holds them.
    assert sorted(push(cache, [3, 4, 5, 6], np.ones((4, DIM)), 11)[0]) == [5, 6]
    # Awake, they make room, and what was held of them is sent.
    sent, _ = push(cache, [7], [[1, 1, 1]], 30)
    assert sorted(sent) == [3, 4, 7] and sent[3][1:] == (1, 0)
    look_up(cache, table_of(), sleeps, [5, 6], 31)
    assert len(find(cache, [5, 6], 32)[3]) == 2


def test_another_session_finds_nothing_of_the_last():
    cache = cache_of()
    look_up(cache, table_of(), np.full(NUM_ROWS, asleep(9)), [3], 10)
    push(cache, [3], [[1, 1, 1]], 10)
    cache = dataclasses.replace(cache, session="two")
    assert find(cache, [3], 11)[4] == [[3], []]
    assert push(cache, [], [], 11, flush=True)[0] == {}


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    st.integers(0, 6),
    st.integers(0, 3),
    st.integers(1, 3),
    st.lists(
        st.tuples(
            st.lists(st.integers(0, NUM_ROWS - 1), max_size=10),
            st.lists(st.integers(-3, 3), min_size=NUM_ROWS, max_size=NUM_ROWS),
        ),
        max_size=12,
    ),
)
def test_nothing_is_lost_and_no_row_is_read_that_changed(capacity, max_age, max_batches, steps):
    """Whatever sleeps: gradients sent and held add up, but for those of rows that are skipped."""
    cache = cache_of(capacity=capacity, max_age=max_age)
    expected, sent_sums = np.zeros((NUM_ROWS, DIM)), np.zeros((NUM_ROWS, DIM))
    batches, sent_batches = np.zeros(NUM_ROWS), np.zeros(NUM_ROWS)
    wake_steps, table = np.zeros(NUM_ROWS, int), table_of()
    skipped = np.zeros(NUM_ROWS, bool)
    num_skipped = 0
    for step, (ids, draws) in enumerate(steps, 1):
        # What is awake changes, and goes to sleep.
        for row in np.flatnonzero(step >= wake_steps):
            table[row] += 1
            wake_steps[row], skipped[row] = step + abs(draws[row]), draws[row] < 0
        sleeps = np.maximum(0, wake_steps - step)
        sleeps = np.where(skipped, asleep(sleeps, 0), asleep(sleeps, max_batches))
        rows, distinct, lookups = look_up(cache, table, sleeps, ids, step)
        assert np.array_equal(rows, table[np.array(ids, int)])
        grads = np.random.default_rng(step).integers(-4, 5, (len(distinct), DIM))
        sent, counts = push(cache, distinct, grads, step, lookups)
        num_skipped += counts[4]
        for row, (grad, num_batches, _) in sent.items():
            assert num_batches <= max_batches + 1
            sent_sums[row] += grad
            sent_batches[row] += num_batches
        np.add.at(expected, distinct, grads)
        np.add.at(batches, distinct, 1)
    sent, counts = push(cache, [], [], len(steps) + 1, flush=True)
    for row, (grad, num_batches, _) in sent.items():
        sent_sums[row] += grad
        sent_batches[row] += num_batches
    assert batches.sum() - sent_batches.sum() == num_skipped
    if num_skipped == 0:
        assert np.array_equal(sent_sums, expected) and np.array_equal(sent_batches, batches)
