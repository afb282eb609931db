"""From a file to what reads it."""

import pathlib

from tf_slipstream.analysis.chunk import LogError
from tf_slipstream.file_errors import naming

_PARQUET_MAGIC, _GZIP_MAGIC = b"PAR1", b"\x1f\x8b"
# That no text has.
_CONTROLS = bytes(range(9))
_HEAD_BYTES = 4096
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
        LogError: If it is not there, cannot be understood, is empty, or lacks a column.
        ImportError: For parquet without pyarrow.
        OSError: If it may not be read.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise LogError(
            f"There is no {path}; expected a log: text, parquet, or TFRecords named .tfrecord. "
            "Check the path."
        )
    if path.is_dir():
        raise LogError(f"{path} is a folder. Pass one of the files in it.")
    with naming(path), path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if not head:
        raise LogError(f"{path} is empty. Pass a log with examples.")
    if head.startswith(_PARQUET_MAGIC):
        from tf_slipstream.analysis.parquet_log import ParquetLog

        return ParquetLog(path, fields, label, time)
    if path.name.removesuffix(".gz").endswith(_RECORD_SUFFIXES):
        from tf_slipstream.analysis.record_log import RecordLog

        return RecordLog(path, fields, label, time)
    from tf_slipstream.analysis.text_log import TextLog

    if not head.startswith(_GZIP_MAGIC) and not set(_CONTROLS).isdisjoint(head):
        raise LogError(
            f"{path} is neither text nor parquet. Convert it; TFRecords need a name that ends with "
            ".tfrecord."
        )
    return TextLog(path, fields, label, time)
