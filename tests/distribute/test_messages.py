"""Checks what replicas exchange, without any: their collective is a function here."""

import types

import numpy as np
import pytest
import tensorflow as tf

from tf_slipstream.engine.messages import all_gather

ROWS = [(3, 0), (0, 0), (1, 4), (7, 2)]  # of two kinds of parts, of each replica


def parts_of(replica):
    num_ids, num_rows = ROWS[replica]
    ids = tf.range(num_ids, dtype=tf.int64) + 2**40 * (replica + 1)
    rows = tf.reshape(tf.range(3.0 * num_rows) + replica, [-1, 3])
    return [ids, rows, tf.fill([num_rows], replica)]


@pytest.fixture
def exchange(monkeypatch):
    """Returns what a replica receives from many, and sends."""

    def run(parts, words_of_all):
        sent = []

        def gather(words, axis):
            sent.append(words)
            return tf.concat(words_of_all or [words], axis)

        num = len(words_of_all) or 1
        context = types.SimpleNamespace(all_gather=gather, num_replicas_in_sync=num)
        monkeypatch.setattr(tf.distribute, "get_replica_context", lambda: context)
        return all_gather(parts), sent[0]

    return run


def test_each_part_comes_from_each_replica_to_the_bit(exchange):
    words = [exchange(parts_of(replica), [])[1] for replica in range(len(ROWS))]
    received, _ = exchange(parts_of(0), words)
    for replica in range(len(ROWS)):
        for part, found in zip(parts_of(replica), received, strict=True):
            assert found[replica].dtype == part.dtype
            np.testing.assert_array_equal(found[replica], part)


def test_reading_takes_time_in_proportion_to_what_is_read(exchange, monkeypatch):
    words = [exchange(parts_of(replica), [])[1] for replica in range(len(ROWS))] * 8
    split, sizes = tf.split, []

    def counting_split(value, *args, **kwargs):
        sizes.append(int(tf.size(value)))
        return split(value, *args, **kwargs)

    monkeypatch.setattr(tf, "split", counting_split)
    received, _ = exchange(parts_of(0), words)
    assert [len(found) for found in received] == [len(words)] * 3
    assert 0 < sum(sizes) <= sum(int(tf.size(one)) for one in words)
