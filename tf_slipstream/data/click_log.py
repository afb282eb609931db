"""The interface that every click log shares: batches in NumPy and as a `tf.data.Dataset`."""

import abc

import numpy as np

MAX_CARDINALITY = 2**31 - 1  # Ids are int32.


class ClickLog(abc.ABC):
    """A sequence of examples: dense features, one id per field, and whether it was clicked.

    Examples are numbered from 0, and example `i` is the same whatever batch it is read in.

    Attributes:
        cardinalities: Tuple `[num_fields]`; the ids of field `f` are in `[0, cardinalities[f])`.
        num_dense: Number of dense features.
        num_examples: Number of examples, or `None` for a log without end.
    """

    cardinalities: tuple
    num_dense: int
    num_examples: int | None

    @abc.abstractmethod
    def _blocks(self, start, stop):
        """Yields the examples `[start, stop)` in order, in blocks of any size.

        Args:
            start: Index of the first example.
            stop: Index after the last example, or `None` for the end of the log.

        Yields:
            `(dense, ids, label)` with the dtypes and shapes of `batches`.
        """

    def batches(self, num_examples, batch_size, start=0):
        """Yields batches in order, holding a bounded number of examples in memory.

        Args:
            num_examples: How many examples to read, or `None` for the rest of the log. A log
                that ends earlier gives fewer.
            batch_size: Examples per batch; the last batch may be smaller.
            start: Index of the first example.

        Returns:
            Generator of `((dense, ids), label)`: float32 `[batch, num_dense]`, int32
            `[batch, num_fields]` and float32 `[batch]`, which is 0 or 1.

        Raises:
            ValueError: If a count is negative or not an integer, or `batch_size` is 0.
        """
        check_count("start", start, minimum=0)
        check_count("batch_size", batch_size, minimum=1)
        if num_examples is None:
            stop = None
        else:
            check_count("num_examples", num_examples, minimum=0)
            stop = start + num_examples
        return _rebatch(self._blocks(start, stop), batch_size)

    def dataset(self, num_examples, batch_size, start=0, drop_remainder=False):
        """Returns what `batches` gives as a `tf.data.Dataset` that reads ahead.

        Args:
            num_examples: As in `batches`.
            batch_size: As in `batches`.
            start: As in `batches`.
            drop_remainder: Whether to leave out a smaller last batch, which makes the batch
                dimension static.

        Returns:
            A `tf.data.Dataset` of `((dense, ids), label)`; every pass over it starts anew. It
            knows its number of batches where the log has no end.
        """
        # Here, because who only reads batches needs no TensorFlow.
        from tf_slipstream.data.log_dataset import as_dataset

        self.batches(num_examples, batch_size, start)  # Refuses bad arguments here, not in a step.
        return as_dataset(self, num_examples, batch_size, start, drop_remainder)


def _rebatch(blocks, batch_size):
    """Cuts and joins `(dense, ids, label)` blocks into batches of `batch_size`."""
    parts = []
    num_missing = batch_size
    for block in blocks:
        size = len(block[-1])
        begin = 0
        while begin < size:
            end = min(begin + num_missing, size)
            parts.append([column[begin:end] for column in block])
            num_missing -= end - begin
            begin = end
            if num_missing == 0:
                yield _join(parts)
                parts = []
                num_missing = batch_size
    if parts:
        yield _join(parts)


def _join(parts):
    dense, ids, label = (
        parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
    )
    return (dense, ids), label


def check_count(name, value, minimum):
    """Raises a `ValueError` unless argument `name` is an integer of at least `minimum`."""
    if not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(
            f"Expected `{name}` to be an integer of at least {minimum}; got {value!r}. "
            f"Change `{name}`."
        )
