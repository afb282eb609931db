"""A vocabulary on parameter servers: each has a part of the ids, by their hash, and of the rows.

A shard is a vocabulary of its own, whose rows begin at its start among those of the whole. Rows for
padding and for ids without a row are the first ones of the whole; those that a later shard would
have for them are nobody's.
"""

import contextlib

import numpy as np
import tensorflow as tf

from tf_slipstream.engine.server_table import is_on_worker
from tf_slipstream.ops.admit_ids import admit_ids
from tf_slipstream.ops.find_ids import find_ids, lower_hashes
from tf_slipstream.state.vocabulary import hash_ids

# Rows for ids that a shard has at least.
_LEAST_ROWS = 64


def row_starts(capacity, settings, num_servers):
    """Returns where the rows of each shard begin, and the end of the last."""
    num = max(1, min(num_servers, capacity // (settings.first_row + _LEAST_ROWS)))
    return [capacity * shard // num for shard in range(num + 1)]


def shards_of(words, num_shards):
    """Returns the shard of each id of an int64 array `[num, num_words]`."""
    halves = hash_ids(words) & np.uint64(0xFFFFFFFF)
    return (halves * np.uint64(num_shards) >> np.uint64(32)).astype(np.int64)


def admit(name, shards, settings, starts, words):
    """Does a training step of all shards; as `admit_ids`.

    Args:
        name: The vocabulary's.
        shards: For each a dict of `tf.Variable`s by name.
        settings: `VocabularySettings`.
        starts: As of `row_starts`.
        words: int64 `[num, num_words]`.

    Returns:
        Rows int64 `[num]`; rows that were taken back, of all shards; the shards' steps; and for
        each shard how many it took back.
    """
    places, parts = _divided(words, len(shards))
    found, taken, steps = [], [], []
    for shard, start, end, part in zip(shards, starts, starts[1:], parts):
        with _on_server(shard):
            # Between a step of one worker and its resets there are those of others.
            rows, taken_back, step = admit_ids(name, shard, settings, part, num_unreset=end - start)
        found.append(_of_whole(rows, settings, start))
        taken.append(taken_back + start)
        steps.append(step)
    rows = tf.dynamic_stitch(places, found)
    return rows, tf.concat(taken, 0), steps, [tf.size(one, tf.int64) for one in taken]


def find(shards, settings, starts, words):
    """Returns the rows of ids, int64 `[num]`; as `find_ids`."""
    places, parts = _divided(words, len(shards))
    found = []
    for shard, start, part in zip(shards, starts, parts):
        with _on_server(shard):
            rows = find_ids(shard["index"], shard["row_ids"], settings, part)
        found.append(_of_whole(rows, settings, start))
    return tf.dynamic_stitch(places, found)


def _divided(words, num_shards):
    """Returns for each shard the places of its ids, int32, and their words."""
    halves = lower_hashes(words)
    shards = tf.cast(
        tf.bitwise.right_shift(halves * num_shards, tf.constant(32, tf.int64)), tf.int32
    )
    places = tf.dynamic_partition(tf.range(tf.shape(words)[0]), shards, num_shards)
    return places, tf.dynamic_partition(words, shards, num_shards)


def _of_whole(rows, settings, start):
    return tf.where(rows < settings.first_row, rows, rows + start)


def _on_server(shard):
    """Has a worker give a server the whole search, not one read after another."""
    return tf.device(shard["index"].device) if is_on_worker() else contextlib.nullcontext()
