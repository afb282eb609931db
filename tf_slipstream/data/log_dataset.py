"""A click log as a `tf.data.Dataset`."""

import collections
import threading

import numpy as np
import tensorflow as tf

from tf_slipstream.data.python_calls import PythonCalls

# One for each pass that is under way at a time, say training, validation and a spare. What an
# abandoned pass leaves behind is dropped in turn.
_MAX_IDLE = 4
_CALLS = PythonCalls()


def as_dataset(log, num_examples, batch_size, start, drop_remainder):
    """Implements `ClickLog.dataset`, whose arguments these are, already checked.

    The dataset maps batch numbers to batches. It is no `Dataset.from_generator` because that op
    sets glibc's `M_TRIM_THRESHOLD` to 128 KiB for the whole process (TF 2.21): from then on large
    buffers of every thread but the main one are faulted in anew each time. A pass over the
    synthetic log took 2.5 times as long.
    """
    _CALLS.end_before_python()
    reader = _BatchReader(log, num_examples, batch_size, start)
    num_fields = len(log.cardinalities)
    none_left = (
        np.zeros((0, log.num_dense), np.float32),
        np.zeros((0, num_fields), np.int32),
        np.zeros(0, np.float32),
    )

    def read(index):
        with _CALLS.one() as is_allowed:
            batch = reader.read(int(index)) if is_allowed else None
        if batch is None or (drop_remainder and len(batch[1]) < batch_size):
            return none_left
        (dense, ids), label = batch
        return dense, ids, label

    batch_dim = batch_size if drop_remainder else None

    def with_shapes(dense, ids, label):
        dense = tf.ensure_shape(dense, [batch_dim, log.num_dense])
        ids = tf.ensure_shape(ids, [batch_dim, num_fields])
        return (dense, ids), tf.ensure_shape(label, [batch_dim])

    dtypes = [tf.float32, tf.int32, tf.float32]
    dataset = (
        tf.data.Dataset.counter()
        .map(lambda index: tf.numpy_function(read, [index], dtypes))
        .take_while(lambda dense, ids, label: tf.size(label) > 0)
        .map(with_shapes)
    )
    if log.num_examples is None and num_examples is not None:
        # Keras warns of a dataset that ends before it was known to. Of a text the number of lines
        # is known only when it was read to its end, so its datasets stay without.
        round_up = 0 if drop_remainder else batch_size - 1
        num_batches = (num_examples + round_up) // batch_size
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_batches))
    return dataset.prefetch(tf.data.AUTOTUNE)


class _BatchReader:
    """Reads any batch of a log by its number, without seeking while numbers follow each other.

    Several passes may read at the same time. A pass that met an error ends after it, as a generator
    does, so that no pass reads on behind an error. Arguments as in `ClickLog.batches`.
    """

    def __init__(self, log, num_examples, batch_size, start):
        self._log = log
        self._num_examples = num_examples
        self._batch_size = batch_size
        self._start = start
        self._lock = threading.Lock()
        self._idle = collections.deque(maxlen=_MAX_IDLE)  # Of (next batch's number, generator).

    def read(self, index):
        """Returns batch number `index`, or `None` if the pass has ended before."""
        batches = self._take(index)
        try:
            batch = next(batches, None)
        except Exception:
            self._put(index + 1, iter(()))
            raise
        if batch is not None:
            self._put(index + 1, batches)
        return batch

    def _put(self, index, batches):
        with self._lock:
            self._idle.append((index, batches))

    def _take(self, index):
        with self._lock:
            # The last one first: an older one may be left of a pass that was given up.
            for entry in reversed(self._idle):
                if entry[0] == index:
                    self._idle.remove(entry)
                    return entry[1]
        skipped = index * self._batch_size
        num_left = None if self._num_examples is None else max(self._num_examples - skipped, 0)
        return self._log.batches(num_left, self._batch_size, self._start + skipped)
