"""Logs in parquet, read by pyarrow; import it only where needed."""

import numpy as np

from tf_slipstream.analysis.chunk import (
    Chunk,
    LogError,
    as_seconds,
    choose_columns,
    hashed_cells,
    mixed,
)

try:
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet
except ImportError as error:
    raise ImportError(
        'Parquet files need pyarrow; install it with `pip install "tf_slipstream[data]"`.'
    ) from error

_BLOCK_ROWS = 2**16


class ParquetLog:
    """A parquet file.

    Args:
        path: A `pathlib.Path`.
        fields, label, time: As of `choose_columns`.

    Raises:
        LogError: If the file is empty, damaged, or lacks a column.
    """

    def __init__(self, path, fields=None, label=None, time=None):
        self._path = path
        with _explained(path):
            with pyarrow.parquet.ParquetFile(path) as file:
                schema, self._num_rows = file.schema_arrow, file.metadata.num_rows
        if not self._num_rows:
            raise LogError(f"{path} has no rows: an empty log. Pass one with examples.")
        id_names = [field.name for field in schema if _may_be_ids(field.type)]
        self.columns = choose_columns(path, schema.names, id_names, fields, label, time)
        for name in self.columns.fields:
            if not _may_be_ids(schema.field(name).type):
                raise LogError(
                    f"{path}: expected integers or text in column {name!r}; it has "
                    f"{schema.field(name).type}. Convert it or leave it out by --fields."
                )

    def chunks(self, takes=lambda: True):
        """Yields `Chunk`s in order, for those parts of the log for which `takes()` is true."""
        columns, num_done = self.columns, 0
        names = [*columns.fields, *filter(None, (columns.label, columns.time))]
        with _explained(self._path), pyarrow.parquet.ParquetFile(self._path) as file:
            for block in file.iter_batches(_BLOCK_ROWS, columns=list(dict.fromkeys(names))):
                num_done += block.num_rows
                if not takes():
                    continue
                keys = [_keys(block.column(name)) for name in columns.fields]
                label, time = (
                    None if name is None else self._numbers(block.column(name), name)
                    for name in (columns.label, columns.time)
                )
                time = None if time is None else as_seconds(time)
                yield Chunk(np.stack(keys, axis=1), label, time, num_done / self._num_rows)

    def _numbers(self, column, name):
        if pyarrow.types.is_temporal(column.type):
            column = column.cast(pyarrow.timestamp("us")).cast(pyarrow.int64())
            return column.to_numpy(zero_copy_only=False) / 1e6
        try:
            return np.asarray(column.cast(pyarrow.float64()).to_numpy(zero_copy_only=False))
        except pyarrow.ArrowException as error:
            raise LogError(
                f"{self._path}: expected numbers in column {name!r}; it has {column.type}. Name "
                "another by --label or --time."
            ) from error


def _may_be_ids(kind):
    types = pyarrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)


def _keys(column):
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pyarrow.types.is_integer(column.type):
        # A missing value is an id like any other.
        column = pyarrow.compute.fill_null(column.cast(pyarrow.int64(), safe=False), -1)
        return mixed(column.to_numpy(zero_copy_only=False).view(np.uint64))
    column = pyarrow.compute.fill_null(column.cast(pyarrow.large_string()), "")
    _, offsets, data = column.buffers()
    offsets = np.frombuffer(offsets, np.int64)[column.offset :][: len(column) + 1]
    text = np.frombuffer((b"" if data is None else data.to_pybytes()) + bytes(8), np.uint8)
    return hashed_cells(text, offsets[:-1], offsets[1:])


class _explained:
    """Turns pyarrow's errors into one sentence."""

    def __init__(self, path):
        self._path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, pyarrow.ArrowException):
            raise LogError(
                f"{self._path} is parquet that is cut off, damaged or of a kind that pyarrow "
                f"{pyarrow.__version__} cannot read ({error}). Get the file anew or rewrite it."
            ) from error
