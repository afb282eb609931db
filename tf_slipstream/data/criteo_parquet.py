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
_MAX_COUNT = np.finfo(np.float32).max


class ParquetClickLog(ClickLog):
    """A parquet file with Criteo's columns; see `open_click_log`.

    Args:
        path: A `pathlib.Path`.
        hash_size: Number of ids of each field, at least 2, or `None` for each field's greatest
            value + 1.

    Raises:
        ValueError: If the file is damaged, lacks a column, has one twice or of a wrong type, or has
            no rows, or if `hash_size` is too small, or needed because of values past int32.
    """

    def __init__(self, path, hash_size):
        self._path = path
        self._hash_size = None if hash_size is None else check_hash_size(hash_size)
        try:
            with self._open() as file:
                self._check_columns(file.schema_arrow)
                self.num_examples = file.metadata.num_rows
                if hash_size is None:
                    self.cardinalities = tuple(self._count_ids(file, name) for name in ID_COLUMNS)
                else:
                    self.cardinalities = (self._hash_size,) * len(ID_COLUMNS)
        except (pyarrow.ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        if not self.num_examples:
            raise ValueError(f"Expected a Criteo click log; {path} has no rows.")
        self.num_dense = len(DENSE_COLUMNS)

    def _open(self):
        # Pages have checksums where their writer was asked for them.
        return pyarrow.parquet.ParquetFile(self._path, page_checksum_verification=True)

    def _unreadable(self, error, first=None):
        where = "" if first is None else f", example {first:,} or later"
        return ValueError(
            f"{self._path}{where}: expected parquet; it is cut off, damaged or of a kind that "
            f"pyarrow {pyarrow.__version__} cannot read ({error}). Get the file anew or rewrite it."
        )

    def _check_columns(self, schema):
        counts = {name: schema.names.count(name) for name in COLUMNS}
        missing = [name for name in COLUMNS if counts[name] == 0]
        repeated = [name for name in COLUMNS if counts[name] > 1]
        if missing or repeated:
            has = f"lacks {', '.join(missing)}" if missing else f"has two of {', '.join(repeated)}"
            raise ValueError(
                f"Expected columns label, I1 to I13 and C1 to C26; {self._path} {has}. "
                f"Add, rename or remove columns."
            )
        for name in COLUMNS:
            column_type = _plain_type(schema.field(name).type)
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
                values = _plain(file.read_row_group(group, columns=[name]).column(0))
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
        first = None
        try:
            with self._open() as file:
                groups, first = _overlapping_groups(file.metadata, start, stop)
                names = list(COLUMNS)
                for block in file.iter_batches(_BLOCK_ROWS, row_groups=groups, columns=names):
                    begin = max(start - first, 0)
                    end = min(stop - first, block.num_rows)
                    if begin < end:
                        yield self._convert(block.slice(begin, end - begin), first + begin)
                    first += block.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise self._unreadable(error, first) from error

    def _convert(self, block, first):
        """Turns a record batch whose first row is number `first` into `(dense, ids, label)`."""
        label = _to_numpy(block.column("label"))
        self._check_rows("label", "0 or 1", label, (label == 0) | (label == 1), first)
        ids = np.empty((block.num_rows, len(ID_COLUMNS)), np.int32)
        for field, name in enumerate(ID_COLUMNS):
            ids[:, field] = self._ids(name, block.column(name), self.cardinalities[field], first)
        counts = np.empty((block.num_rows, len(DENSE_COLUMNS)), np.float32)
        for feature, name in enumerate(DENSE_COLUMNS):
            values = _to_numpy(block.column(name))
            # A comparison with NaN, which is a missing count, is false.
            is_valid = ~(np.abs(values) > _MAX_COUNT)
            self._check_rows(name, "finite in float32", values, is_valid, first)
            counts[:, feature] = values
        return log_counts(counts), ids, label.astype(np.float32)

    def _ids(self, name, column, cardinality, first):
        values = _plain(column).fill_null(0).to_numpy(zero_copy_only=False)
        if self._hash_size is None:
            expected = f"in [0, {cardinality}), or `hash_size` to be passed"
            is_valid = (values >= 0) & (values < cardinality)
            self._check_rows(name, expected, values, is_valid, first)
            return values
        # In a dtype that holds the hash size too.
        wide = np.uint64 if values.dtype == np.uint64 else np.int64
        return values.astype(wide, copy=False) % self._hash_size

    def _check_rows(self, name, expected, values, is_valid, first):
        if is_valid.all():
            return
        row = int(np.argmin(is_valid))
        num_others = len(values) - np.count_nonzero(is_valid) - 1
        others = ""
        if num_others:
            others = f"So are {num_others:,} more of the {len(values):,} rows read with it. "
        raise ValueError(
            f"{self._path}, example {first + row}: expected {name} to be {expected}; got "
            f"{values[row]}. {others}Correct the row or remove it."
        )


def _overlapping_groups(metadata, start, stop):
    """Returns the row groups with rows of `[start, stop)`, and the first group's first row."""
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    begins = np.cumsum([0, *sizes])
    groups = [
        group for group in range(len(sizes)) if begins[group] < stop and start < begins[group + 1]
    ]
    return groups, int(begins[groups[0]]) if groups else 0


def _plain_type(column_type):
    """Returns the type of a column's values once they are out of their dictionary, if any."""
    if pyarrow.types.is_dictionary(column_type):
        column_type = column_type.value_type
    if pyarrow.types.is_boolean(column_type):
        return pyarrow.int8()
    # What pandas writes for a column without a value.
    return pyarrow.int64() if pyarrow.types.is_null(column_type) else column_type


def _plain(column):
    return column.cast(_plain_type(column.type))


def _to_numpy(column):
    # An integer column with missing values becomes float64, where they are NaN.
    return _plain(column).to_numpy(zero_copy_only=False)
