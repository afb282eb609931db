"""Criteo's columns in parquet, read by pyarrow block by block; import it only where needed."""

import numpy as np

from tf_slipstream.data.click_log import MAX_CARDINALITY, ClickLog
from tf_slipstream.data.criteo_schema import (
    COLUMNS,
    DENSE_COLUMNS,
    ID_COLUMNS,
    check_hash_size,
    log_counts,
)

try:
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet
except ImportError as error:
    raise ImportError(
        'Parquet files need pyarrow; install it with `pip install "tf_slipstream[data]"`.'
    ) from error

_BLOCK_ROWS = 2**15


class ParquetClickLog(ClickLog):
    """A parquet file with Criteo's columns; see `open_click_log`.

    Args:
        path: A `pathlib.Path`.
        hash_size: Number of ids of each field, at least 2, or `None` for each field's greatest
            value + 1.

    Raises:
        ValueError: If the file is no parquet, lacks a column, has one of a wrong type or has no
            rows, or if `hash_size` is too small, or needed because of values past int32.
    """

    def __init__(self, path, hash_size):
        if hash_size is not None:
            check_hash_size(hash_size)
        self._path = path
        self._hash_size = hash_size
        with self._open() as file:
            self._check_columns(file.schema_arrow)
            self.num_examples = file.metadata.num_rows
            if not self.num_examples:
                raise ValueError(f"Expected a Criteo click log; {path} has no rows.")
            if hash_size is None:
                self.cardinalities = tuple(self._count_ids(file, name) for name in ID_COLUMNS)
            else:
                self.cardinalities = (hash_size,) * len(ID_COLUMNS)
        self.num_dense = len(DENSE_COLUMNS)

    def _open(self):
        try:
            return pyarrow.parquet.ParquetFile(self._path)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(
                f"Expected a parquet file; {self._path} is damaged: {error}"
            ) from error

    def _check_columns(self, schema):
        missing = [name for name in COLUMNS if name not in schema.names]
        if missing:
            raise ValueError(
                f"Expected columns label, I1 to I13 and C1 to C26; {self._path} lacks "
                f"{', '.join(missing)}. Add or rename columns."
            )
        for name in COLUMNS:
            column_type = schema.field(name).type
            is_number = pyarrow.types.is_integer(column_type)
            if name not in ID_COLUMNS:
                is_number |= pyarrow.types.is_floating(column_type)
            if not is_number:
                expected = "integers" if name in ID_COLUMNS else "numbers"
                raise ValueError(
                    f"Expected {expected} in column {name}; {self._path} has {column_type}. "
                    f"Convert the column."
                )

    def _count_ids(self, file, name):
        """Returns a column's greatest value + 1, by the file's statistics where it has them."""
        schema = file.metadata.schema
        column = next(index for index in range(len(schema)) if schema.column(index).path == name)
        greatest = 0
        for group in range(file.num_row_groups):
            statistics = file.metadata.row_group(group).column(column).statistics
            if statistics is not None and statistics.has_min_max:
                group_max = statistics.max
            else:
                values = file.read_row_group(group, columns=[name]).column(0)
                group_max = pyarrow.compute.max(values).as_py() or 0
            greatest = max(greatest, group_max)
        if greatest >= MAX_CARDINALITY:
            raise ValueError(
                f"Expected values below {MAX_CARDINALITY} in column {name}; {self._path} has "
                f"{greatest}. Pass `hash_size`."
            )
        return greatest + 1

    def _blocks(self, start, stop):
        stop = self.num_examples if stop is None else min(stop, self.num_examples)
        with self._open() as file:
            groups, first = _overlapping_groups(file.metadata, start, stop)
            for block in file.iter_batches(_BLOCK_ROWS, row_groups=groups, columns=list(COLUMNS)):
                begin = max(start - first, 0)
                end = min(stop - first, block.num_rows)
                if begin < end:
                    yield self._convert(block.slice(begin, end - begin), first + begin)
                first += block.num_rows

    def _convert(self, block, first):
        """Turns a record batch whose first row is number `first` into `(dense, ids, label)`."""
        label = _to_numpy(block.column("label"))
        self._check_rows("label", "0 or 1", label, (label == 0) | (label == 1), first)
        ids = np.empty((block.num_rows, len(ID_COLUMNS)), np.int32)
        for field, name in enumerate(ID_COLUMNS):
            values = _to_numpy(block.column(name).fill_null(0))
            self._check_rows(name, "at least 0", values, values >= 0, first)
            ids[:, field] = values if self._hash_size is None else values % self._hash_size
        counts = [_to_numpy(block.column(name)) for name in DENSE_COLUMNS]
        return log_counts(np.stack(counts, axis=1)), ids, label.astype(np.float32)

    def _check_rows(self, name, expected, values, is_valid, first):
        if not is_valid.all():
            row = int(np.argmin(is_valid))
            raise ValueError(
                f"{self._path}, example {first + row}: expected {name} to be {expected}; got "
                f"{values[row]}. Correct the row or remove it."
            )


def _overlapping_groups(metadata, start, stop):
    """Returns the row groups with rows of `[start, stop)`, and the first group's first row."""
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    begins = np.cumsum([0, *sizes])
    groups = [
        group for group in range(len(sizes)) if begins[group] < stop and start < begins[group + 1]
    ]
    return groups, int(begins[groups[0]]) if groups else 0


def _to_numpy(column):
    # An integer column with missing values becomes float64, where they are NaN.
    return column.to_numpy(zero_copy_only=False)
