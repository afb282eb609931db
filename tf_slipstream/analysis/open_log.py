"""From a file to what reads it."""

import pathlib

from tf_slipstream.analysis.chunk import LogError

_PARQUET_MAGIC = b"PAR1"
_RECORD_SUFFIXES = (".tfrecord", ".tfrecords", ".tfr")


def open_log(path, fields=None, label=None, time=None):
    """Opens a log, whose format is told by its content, or for TFRecords by its name.

    Args:
        path: File: text of comma- or tab-separated values, Criteo's among it, plain or gzipped;
            parquet; or TFRecords of `tf.Example` named .tfrecord, plain or gzipped (.gz).
        fields: Names of the columns that hold ids; None: all of integers or text but the others.
        label: Name of the column with 0 and 1; None: one named label, click or alike, if any.
        time: Name of the column with times, numbers since 1970 or dates; None: none.

    Returns:
        An object with `columns`, a `Columns`, and `chunks()`, which yields `Chunk`s.

    Raises:
        LogError: If it cannot be read, is empty, or lacks a column.
        ImportError: For parquet without pyarrow.
        OSError: If there is no such file, or it may not be read.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise LogError(f"{path} is a folder. Pass one of the files in it.")
    with path.open("rb") as stream:
        head = stream.read(4)
    if not head:
        raise LogError(f"{path} is empty. Pass a log with examples.")
    if head == _PARQUET_MAGIC:
        from tf_slipstream.analysis.parquet_log import ParquetLog

        return ParquetLog(path, fields, label, time)
    if path.name.removesuffix(".gz").endswith(_RECORD_SUFFIXES):
        from tf_slipstream.analysis.record_log import RecordLog

        return RecordLog(path, fields, label, time)
    from tf_slipstream.analysis.text_log import TextLog

    if b"\x00" in head and not head.startswith(b"\x1f\x8b"):
        raise LogError(
            f"{path} is neither text nor parquet. Convert it; TFRecords need a name that ends with "
            ".tfrecord."
        )
    return TextLog(path, fields, label, time)
