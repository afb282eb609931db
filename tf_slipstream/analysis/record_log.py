"""Logs of `tf.Example`s in TFRecord files, read by TensorFlow; import it only where needed."""

import numpy as np
import tensorflow as tf

from tf_slipstream.analysis.chunk import (
    Chunk,
    LogError,
    as_seconds,
    choose_columns,
    hashed_cells,
    mixed,
)
from tf_slipstream.file_errors import naming

_BATCH = 2**14
_GZIP_MAGIC = b"\x1f\x8b"


class RecordLog:
    """A TFRecord file of `tf.Example`s, plain or gzipped.

    Every example has each field once; the first example says what there is.

    Args:
        path: A `pathlib.Path`.
        fields, label, time: As of `choose_columns`.

    Raises:
        LogError: If the file is empty, damaged, or lacks a feature.
    """

    def __init__(self, path, fields=None, label=None, time=None):
        self._path, self._size = path, max(1, path.stat().st_size)
        with naming(path), path.open("rb") as stream:
            is_gzipped = stream.read(2) == _GZIP_MAGIC
        self._records = tf.data.TFRecordDataset(str(path), "GZIP" if is_gzipped else "")
        with _explained(path):
            first = next(iter(self._records.take(1)), None)
            if first is None:
                raise LogError(f"{path} has no records: an empty log. Pass one with examples.")
            example = tf.train.Example.FromString(first.numpy())
        features = example.features.feature
        self._kinds = {name: _kind(features[name]) for name in sorted(features)}
        id_names = [n for n, kind in self._kinds.items() if kind in (tf.int64, tf.string)]
        self.columns = choose_columns(path, [*self._kinds], id_names, fields, label, time)

    def chunks(self, takes=lambda: True):
        """Yields `Chunk`s in order, for those parts of the log for which `takes()` is true."""
        columns, num_bytes = self.columns, 0
        names = [*columns.fields, *filter(None, (columns.label, columns.time))]
        spec = {name: tf.io.FixedLenFeature([], self._kinds[name]) for name in names}
        with _explained(self._path):
            for records in self._records.batch(_BATCH):
                # A record has 16 bytes around it.
                num_bytes += int(tf.reduce_sum(tf.strings.length(records) + 16))
                if not takes():
                    continue
                parsed = tf.io.parse_example(records, spec)
                keys = [_keys(parsed[name].numpy()) for name in columns.fields]
                label, time = (
                    None if name is None else parsed[name].numpy().astype(np.float64)
                    for name in (columns.label, columns.time)
                )
                time = None if time is None else as_seconds(time)
                done = min(1.0, num_bytes / self._size)
                yield Chunk(np.stack(keys, axis=1), label, time, done)


def _kind(feature):
    kinds = {"int64_list": tf.int64, "float_list": tf.float32, "bytes_list": tf.string}
    return kinds.get(feature.WhichOneof("kind"), tf.string)


def _keys(values):
    if values.dtype == np.int64:
        return mixed(values.view(np.uint64))
    ends = np.cumsum([len(value) for value in values])
    starts = np.concatenate([[0], ends[:-1]])
    text = np.frombuffer(b"".join(values) + bytes(8), np.uint8)
    return hashed_cells(text, starts, ends)


class _explained:
    """Turns TensorFlow's errors into one sentence."""

    def __init__(self, path):
        self._path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, (tf.errors.OpError, ValueError)) and not isinstance(error, LogError):
            reason = str(error).splitlines()[0]
            raise LogError(
                f"{self._path}: expected TFRecords of tf.Example with one value of each field; a "
                f"record is cut off, damaged or other ({reason}). Get the file anew, or name other "
                "--fields."
            ) from error
