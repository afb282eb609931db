"""Raw ids as int64 words, on stock TensorFlow ops."""

import tensorflow as tf

from tf_slipstream.state.vocabulary import END, TOO_LONG


def encoded_ids(settings, ids):
    """Returns ids as words, int64 `[num, num_words]`; no two ids have the same.

    Strings are their bytes, one that marks the end, and zeros. All that are too long for their
    words have a mark as the last byte, which no other has.

    Args:
        settings: `VocabularySettings`.
        ids: int64 or string `[num]`.
    """
    if not settings.is_string:
        return ids[:, tf.newaxis]
    num_bytes = 8 * settings.num_words
    marks = tf.constant([bytes([END]), bytes([TOO_LONG])])
    is_too_long = tf.cast(tf.strings.length(ids) >= num_bytes, tf.int32)
    kept = tf.strings.substr(ids, 0, num_bytes - 1)
    ended = tf.strings.join([kept, tf.gather(marks, is_too_long)])
    return tf.io.decode_raw(ended, tf.int64, little_endian=True, fixed_length=num_bytes)


def decoded_ids(settings, words):
    """Returns the ids of words, a list of bytes for strings, or int64 `[num]`.

    Args:
        settings: `VocabularySettings`.
        words: NumPy int64 `[num, num_words]`.
    """
    if not settings.is_string:
        return words[:, 0]
    return [row.astype("<i8").tobytes().rstrip(b"\0")[:-1] for row in words]
