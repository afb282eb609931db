"""Rows of ids that have one, on stock TensorFlow ops: what an exported model does."""

import numpy as np
import tensorflow as tf

from tf_slipstream.state.vocabulary import SLOTS


def find_ids(index, row_ids, settings, words):
    """Returns the rows of ids, int64 `[num]`. Writes nothing.

    An id without a row of its own has one of those for such ids; that of padding has row 0.

    Args:
        index: `tf.Variable`, int64 `[num_buckets, SLOTS]`.
        row_ids: `tf.Variable`, int64 `[capacity, num_words]`.
        settings: `VocabularySettings`.
        words: int64 `[num, num_words]`.
    """
    hashes = _hashes(words)
    num_buckets = int(index.shape[0])
    tags = _lower(hashes)
    rows = settings.first_oov + _scaled(tags, settings.num_oov)
    if settings.padding:
        padding = tf.constant([settings.padding], tf.int64)
        rows = tf.where(tf.reduce_all(words == padding, axis=1), tf.zeros_like(rows), rows)

    def look(places, buckets, begins, rows):
        """Looks for a match in a slot of a bucket each, from some slot on."""
        slots = tf.gather(index, buckets)  # [num, SLOTS]
        is_used = slots != 0
        is_match = is_used & (_upper(slots) == tf.gather(tags, places)[:, tf.newaxis])
        is_match &= tf.range(SLOTS, dtype=tf.int64) >= begins[:, tf.newaxis]
        has_match = tf.reduce_any(is_match, axis=1)
        at = tf.argmax(tf.cast(is_match, tf.int32), axis=1)
        found = _lower(tf.gather(slots, at, batch_dims=1)) - 1
        found = tf.where(has_match, found, tf.zeros_like(found))
        is_id = tf.reduce_all(tf.gather(row_ids, found) == tf.gather(words, places), axis=1)
        is_id &= has_match
        where = tf.boolean_mask(places, is_id)[:, tf.newaxis]
        rows = tf.tensor_scatter_nd_update(rows, where, tf.boolean_mask(found, is_id))
        goes_on = ~is_id & (has_match | tf.reduce_all(is_used, axis=1))
        buckets = tf.where(has_match, buckets, (buckets + 1) % num_buckets)
        begins = tf.where(has_match, at + 1, tf.zeros_like(at))
        return *(tf.boolean_mask(one, goes_on) for one in (places, buckets, begins)), rows

    places = tf.range(tf.shape(words, tf.int64)[0])
    shape = tf.TensorShape([None])
    # A damaged index without a free slot is gone through once.
    *_, rows = tf.while_loop(
        lambda places, *_: tf.size(places) > 0,
        look,
        (places, _scaled(_upper(hashes), num_buckets), tf.zeros_like(places), rows),
        shape_invariants=(shape, shape, shape, rows.shape),
        maximum_iterations=min(num_buckets * (SLOTS + 1), tf.int32.max),
    )
    return rows


def lower_hashes(words):
    """Returns the lower halves of the hashes of words, int64 `[num]`."""
    return _lower(_hashes(words))


def _hashes(words):
    """Returns `state.vocabulary.hash_ids` of words, uint64 `[num]`."""
    words = tf.bitcast(words, tf.uint64)
    hashes = tf.fill(tf.shape(words)[:1], _uint64(0x9E3779B97F4A7C15))
    for column in tf.unstack(words, axis=1):
        hashes = _times(tf.bitwise.bitwise_xor(hashes, column), 0xFF51AFD7ED558CCD, 32)
        hashes = _times(hashes, 0xC4CEB9FE1A85EC53, 29)
    return hashes


def _times(hashes, factor, shift):
    hashes = hashes * _uint64(factor)
    return tf.bitwise.bitwise_xor(hashes, tf.bitwise.right_shift(hashes, _uint64(shift)))


def _uint64(value):
    return tf.constant(np.uint64(value), tf.uint64)


def _upper(values):
    """Returns the upper halves of 64-bit values, int64."""
    values = values if values.dtype == tf.uint64 else tf.bitcast(values, tf.uint64)
    return tf.bitcast(tf.bitwise.right_shift(values, _uint64(32)), tf.int64)


def _lower(values):
    """Returns the lower halves of 64-bit values, int64."""
    values = values if values.dtype == tf.int64 else tf.bitcast(values, tf.int64)
    return tf.bitwise.bitwise_and(values, tf.constant(0xFFFFFFFF, tf.int64))


def _scaled(halves, num):
    return tf.bitwise.right_shift(halves * tf.constant(num, tf.int64), tf.constant(32, tf.int64))
