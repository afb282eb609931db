"""From keys of any size to rows of arrays, in a bounded memory."""

import numpy as np

from tf_slipstream.analysis.chunk import mixed

_MOST_LOAD = 0.75
_MIN_BUCKETS = 2**10
# An empty bucket, and what a key of that value is taken for.
_EMPTY, _NOT_EMPTY = np.uint64(0), np.uint64(1)


class RowSpace:
    """A hash table for each field, all in one array, of fixed size.

    Keys have rows of their own until a field's part is three quarters full. New keys then share
    the rows that they hash to, as ids of a hashed table do, and `is_full` says so.

    Args:
        num_distinct: Distinct keys of each field in the log's begin.
        max_buckets: Buckets in all, about.

    Attributes:
        size: Rows in all.
        starts: int64 `[num_fields + 1]`; field `f` has the rows `[starts[f], starts[f + 1])`.
        num_keys: int64 `[num_fields]`, keys that have a row of their own.
        is_full: Bool `[num_fields]`.
    """

    def __init__(self, num_distinct, max_buckets):
        num_fields = len(num_distinct)
        # Tails grow with the log: fields that have many in its begin get more than their share.
        wanted = np.maximum(_MIN_BUCKETS, 64 * np.asarray(num_distinct, np.int64))
        sizes = 2 ** np.ceil(np.log2(wanted)).astype(np.int64)
        while sizes.sum() > max(max_buckets, num_fields * _MIN_BUCKETS):
            sizes[sizes == sizes.max()] //= 2
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        self.size = int(self.starts[-1])
        self._masks = (sizes - 1).astype(np.uint64)
        self._keys = np.zeros(self.size, np.uint64)
        self.num_keys = np.zeros(num_fields, np.int64)
        self.is_full = np.zeros(num_fields, bool)
        self._most = (_MOST_LOAD * sizes).astype(np.int64)

    def rows_of(self, keys):
        """Returns the rows of keys, uint64 `[num_examples, num_fields]`, as int64 of that shape."""
        fields = np.broadcast_to(np.arange(keys.shape[1]), keys.shape).ravel()
        keys = np.where(keys == _EMPTY, _NOT_EMPTY, keys).ravel()
        masks, starts = self._masks[fields], self.starts[fields]
        places = (mixed(keys) & masks).astype(np.int64)
        rows = starts + places
        left = np.flatnonzero(self._keys[rows] != keys)
        while left.size:
            found = self._keys[rows[left]]
            is_empty = (found == _EMPTY) & ~self.is_full[fields[left]]
            new = left[is_empty]
            if new.size:
                # Of several keys that want a bucket the last one gets it.
                self._keys[rows[new]] = keys[new]
                won = np.unique(rows[new])
                field_of = np.searchsorted(self.starts, won, "right") - 1
                self.num_keys += np.bincount(field_of, minlength=len(self.num_keys))
                self.is_full = self.num_keys >= self._most
            found = self._keys[rows[left]]
            # An empty bucket of a full field ends the search: the key shares the row that it
            # hashes to.
            ended = left[found == _EMPTY]
            rows[ended] = starts[ended] + (mixed(keys[ended]) & masks[ended]).astype(np.int64)
            left = left[(found != keys[left]) & (found != _EMPTY)]
            rows[left] = starts[left] + (
                (rows[left] - starts[left] + 1) & masks[left].astype(np.int64)
            )
            left = left[self._keys[rows[left]] != keys[left]]
        return rows.reshape(-1, len(self.num_keys))
