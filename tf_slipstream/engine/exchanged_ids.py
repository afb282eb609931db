"""The ids of all replicas, in one order."""

import tensorflow as tf

from tf_slipstream.engine.messages import all_gather
from tf_slipstream.engine.replicas import num_replicas


def exchanged_ids(words):
    """Gathers ids from all replicas of a step, alike on all.

    Args:
        words: int64 `[num, num_words]`, this replica's.

    Returns:
        int64 `[num_of_all, num_words]`, in the order of the replicas; and a function that returns
        of as many rows `[num_of_all]` those of this replica's ids.
    """
    if num_replicas() == 1:
        return words, lambda rows: rows
    (parts,) = all_gather([words])
    place = tf.distribute.get_replica_context().replica_id_in_sync_group
    sizes = tf.stack([tf.shape(part)[0] for part in parts])
    begin = tf.reduce_sum(tf.where(tf.range(len(parts)) < place, sizes, 0))
    end = begin + tf.shape(words)[0]
    words = tf.ensure_shape(tf.concat(parts, axis=0), [None, words.shape[1]])
    return words, lambda rows: rows[begin:end]
