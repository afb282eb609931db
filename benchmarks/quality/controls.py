"""Controls that are no part of the product: they leave gradients out before the optimizer."""

import types

import numpy as np
import tensorflow as tf

from tf_slipstream.selection.selector import Selection


class Filter:
    """Leaves out lookups of a configuration's control, and counts what that saves.

    Rows are numbered through all tables.

    Args:
        configuration: `Configuration`; one without such a control keeps all.
        num_rows: Rows of all tables.
        seed: Of the random rows.
    """

    def __init__(self, configuration, num_rows, seed):
        self._random_rows = configuration.random_rows
        self._frozen_after = configuration.frozen_after
        self._seed = seed
        self.is_active = bool(self._random_rows or self._frozen_after)
        # Lookups, those left out, row updates, those left out.
        self._counts = tf.Variable(tf.zeros([4], tf.int64))
        size = num_rows if self._frozen_after else 0
        self._num_updates = tf.Variable(tf.zeros([size], tf.int32))

    def keep(self, rows, step):
        """Says which lookups of a step are kept.

        Args:
            rows: int32 `[num_lookups]`.
            step: int64 scalar.

        Returns:
            bool `[num_lookups]`, the same for all lookups of a row.
        """
        distinct, place = tf.unique(rows)
        kept = tf.fill(tf.shape(distinct), True)
        if self._random_rows:
            kept &= _uniform(distinct, step, self._seed) >= self._random_rows
        if self._frozen_after:
            kept &= tf.gather(self._num_updates, distinct) < self._frozen_after
            one = tf.cast(kept, tf.int32)
            self._num_updates.scatter_add(tf.IndexedSlices(one, distinct))
        keep_lookup = tf.gather(kept, place)
        left_out = [tf.math.count_nonzero(~keep_lookup), tf.math.count_nonzero(~kept)]
        sizes = [tf.size(rows, tf.int64), tf.size(distinct, tf.int64)]
        self._counts.assign_add(tf.stack([sizes[0], left_out[0], sizes[1], left_out[1]]))
        return keep_lookup

    def counts(self):
        """Returns lookups, those left out, row updates, those left out; so far."""
        return [int(count) for count in self._counts.numpy()]


class StaleInputs:
    """Leaves out the inputs of a batch whose rows have all been looked up often.

    It has what `training` uses of a `slipstream.InputSelector`.

    Args:
        sizes: Rows of each column's table; columns with a table in common have a part each.
        keep: Share of a batch that is kept: that with the youngest rows.
    """

    def __init__(self, sizes, keep):
        self._begins = np.cumsum([0, *sizes[:-1]]).astype(np.int32)
        self._num_lookups = tf.Variable(tf.zeros([sum(sizes)], tf.int32))
        self._keep = keep

    def select(self, inputs, labels):
        """Returns a `Selection` of a batch of `(ids, dense)`."""
        rows = inputs[0] + self._begins
        youngest = tf.reduce_min(tf.gather(self._num_lookups, rows), axis=1)
        ones = tf.ones([tf.size(rows)], tf.int32)
        self._num_lookups.scatter_add(tf.IndexedSlices(ones, tf.reshape(rows, [-1])))
        num_kept = round(self._keep * labels.shape[0])
        # Of equally young ones those that come first.
        positions = tf.sort(tf.argsort(youngest, stable=True)[:num_kept])
        zeros = tf.zeros([num_kept])
        return Selection(tf.cast(positions, tf.int64), zeros, zeros + 1, zeros)

    def stats(self):
        return types.SimpleNamespace(share_kept=self._keep)


def _uniform(rows, step, seed):
    """Returns numbers in [0, 1), float32 `[num_rows]`, by SplitMix64 of row, step and seed."""

    def constant(value):
        return tf.constant(value, tf.uint64)

    z = tf.cast(rows, tf.uint64) * constant(0x9E3779B97F4A7C15)
    z += tf.cast(step, tf.uint64) * constant(0xD1342543DE82EF95)
    z += constant(seed + 1) * constant(0xA0761D6478BD642F)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = tf.bitwise.bitwise_xor(z, tf.bitwise.right_shift(z, constant(shift)))
        z *= constant(factor)
    z = tf.bitwise.bitwise_xor(z, tf.bitwise.right_shift(z, constant(31)))
    return tf.cast(tf.bitwise.right_shift(z, constant(40)), tf.float32) / 2.0**24
