"""Readers of Criteo click logs, streamed from tab-separated text or from parquet."""

import pathlib

from tf_slipstream.data.criteo_text import TextClickLog
from tf_slipstream.file_errors import naming

_PARQUET_MAGIC = b"PAR1"
_GZIP_MAGIC = b"\x1f\x8b"
# Criteo's own names are `train.txt` and `day_0`.
_TEXT_SUFFIXES = (".tsv", ".txt", "")


def open_click_log(path, hash_size=None):
    """Opens a Criteo click log, whose format is told by its content.

    ```python
    log = open_click_log("train.txt", hash_size=100_000)
    model.fit(log.dataset(1_000_000, batch_size=2048))
    ```

    A dense feature becomes `log(1 + max(value, 0))`, and 0 if it is missing. A missing
    categorical value becomes id 0.

    Text may have a byte-order mark, line ends as on Windows, and counts with a fraction such as
    `3.0`. Empty lines are no examples.

    Args:
        path: File in one of two formats. Text as Criteo publishes it (`.tsv`, `.txt` or no
            extension; or gzipped, whatever its name): per line a label, 13 numbers and 26
            hexadecimal values, separated by tabs, where a value may be empty. Or parquet with
            the columns `label`, `I1` to `I13` and `C1` to `C26`, the last ones integers; a column
            may be dictionary-encoded and may have nulls.
        hash_size: Number of ids of each field, at least 2. Text: a value `v` becomes id
            `1 + v mod (hash_size - 1)`; `None` stands for 100,000. Parquet: `v mod hash_size`,
            which is at least 0 also for a negative `v`; `None` keeps the values, and each field's
            cardinality is then this file's greatest value + 1. Files that share a model need the
            same `hash_size`.

    Returns:
        A `ClickLog`. Its `batches` raise a `ValueError` that names the file and the line or example
        where the file breaks its format, or is cut off or damaged.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        ImportError: If a parquet file is given and pyarrow is not installed.
        ValueError: If the path is no file, the file is empty, damaged or of another format, or
            `hash_size` is too small.
    """
    path = pathlib.Path(path)
    head = _head(path)
    is_gzipped = head.startswith(_GZIP_MAGIC)
    if head == _PARQUET_MAGIC:
        # Here, because pyarrow is optional.
        from tf_slipstream.data.criteo_parquet import ParquetClickLog

        return ParquetClickLog(path, hash_size)
    if is_gzipped or path.suffix in _TEXT_SUFFIXES:
        return TextClickLog(path, hash_size, is_gzipped)
    if path.suffix == ".gz":
        raise ValueError(
            f"Expected gzipped text; {path} is not gzipped, despite its name. Get the file anew, "
            f"or rename it to .txt if it is Criteo's tab-separated text."
        )
    raise ValueError(
        f"Expected parquet, gzipped text, or text named .tsv, .txt or without extension; {path} "
        f"is none of these. Convert it, or rename it if it is Criteo's tab-separated text."
    )


def _head(path):
    """Returns the first bytes of a file, or raises an error that says why it has none."""
    try:
        if not path.exists():
            raise FileNotFoundError(f"Expected a Criteo click log; there is no file {path}.")
        if path.is_dir():
            raise ValueError(f"Expected a file; {path} is a folder. Pass one of the files in it.")
        if not path.is_file():
            # A pipe, say. A log is read more than once.
            raise ValueError(f"Expected a regular file; {path} is none. Pass the path of a copy.")
        with naming(path), path.open("rb") as stream:
            head = stream.read(len(_PARQUET_MAGIC))
    except PermissionError as error:
        raise PermissionError(
            f"Expected a file that this user may read; {path} is none ({error.strerror}). "
            f"Change its permissions or those of its folder."
        ) from error
    if not head:
        raise ValueError(f"Expected a Criteo click log; {path} is empty.")
    return head
