"""Criteo's tab-separated text.

Parsed here, not by pyarrow's CSV reader: that one reads hexadecimal numbers with "0x" before them
alone, which Criteo's have not, and refuses 3.0 as a count; its errors name no file and, where it
uses threads, no line (pyarrow 26). And training needs NumPy only.
"""

import functools

import numpy as np

from tf_slipstream.data import digits, text_lines
from tf_slipstream.data.click_log import ClickLog
from tf_slipstream.data.criteo_schema import (
    COLUMNS,
    DENSE_COLUMNS,
    ID_COLUMNS,
    check_hash_size,
    log_counts,
)

_DEFAULT_HASH_SIZE = 100_000
_NEWLINE, _TAB = b"\n\t"
_BEGIN_IDS = 1 + len(DENSE_COLUMNS)


class TextClickLog(ClickLog):
    """Criteo's tab-separated text; see `open_click_log`.

    Args:
        path: A `pathlib.Path`.
        hash_size: Number of ids of each field, at least 2, or `None` for 100,000.
        is_gzipped: Whether the file is gzipped.

    Raises:
        ValueError: If the file has no lines, its begin is damaged, or `hash_size` is too small.
    """

    def __init__(self, path, hash_size, is_gzipped):
        self._path = path
        self._is_gzipped = is_gzipped
        self._hash_size = check_hash_size(_DEFAULT_HASH_SIZE if hash_size is None else hash_size)
        self.cardinalities = (self._hash_size,) * len(ID_COLUMNS)
        self.num_dense = len(DENSE_COLUMNS)
        if not any(block.num_lines for block in self._line_blocks()):
            raise ValueError(f"Expected a Criteo click log; {path} has no lines.")

    @functools.cached_property
    def num_examples(self):
        """Number of lines that are not empty. The first use reads the whole file."""
        return sum(block.num_lines for block in self._line_blocks())

    def _line_blocks(self):
        return text_lines.line_blocks(self._path, self._is_gzipped)

    def _blocks(self, start, stop):
        first = 0  # Index of the block's first example.
        for block in self._line_blocks():
            if stop is not None and first >= stop:
                return
            begin = max(start - first, 0)
            end = block.num_lines if stop is None else min(stop - first, block.num_lines)
            if begin < end:
                yield self._parse(block, begin, end)
            first += block.num_lines

    def _parse(self, block, begin, end):
        """Turns lines `[begin, end)` of a block into examples as `ClickLog.batches` gives them."""
        text = block.cut(begin, end)
        starts, ends = self._split(text, block, begin)
        is_empty = starts == ends
        numbers, is_number = digits.parse_decimals(
            text, starts[:, :_BEGIN_IDS], ends[:, :_BEGIN_IDS]
        )
        values, is_value = digits.parse_hexadecimals(
            text, starts[:, _BEGIN_IDS:], ends[:, _BEGIN_IDS:]
        )
        label = numbers[:, 0]
        is_bad = ~np.concatenate([is_number, is_value], axis=1)
        is_bad[:, 0] |= is_empty[:, 0] | ((label != 0) & (label != 1))
        if is_bad.any():
            line, column = np.argwhere(is_bad)[0]
            got = text[starts[line, column] : ends[line, column]].tobytes()
            self._refuse(block, begin, is_bad.any(axis=1), _expected(column), repr(got)[1:])
        ids = np.where(is_empty[:, _BEGIN_IDS:], 0, 1 + values % (self._hash_size - 1))
        return log_counts(numbers[:, 1:]), ids.astype(np.int32), label.astype(np.float32)

    def _split(self, text, block, begin):
        """Returns where each value starts and ends, both int64 `[num_lines, num_columns]`."""
        ends = np.flatnonzero((text == _TAB) | (text == _NEWLINE))
        num_values = np.diff(np.flatnonzero(text[ends] == _NEWLINE), prepend=-1)
        is_bad = num_values != len(COLUMNS)
        if is_bad.any():
            expected = f"{len(COLUMNS)} values separated by tabs"
            self._refuse(block, begin, is_bad, expected, str(num_values[is_bad.argmax()]))
        starts = np.concatenate([[0], ends[:-1] + 1])
        return starts.reshape(-1, len(COLUMNS)), ends.reshape(-1, len(COLUMNS))

    def _refuse(self, block, begin, is_bad, expected, got):
        """Names the first of the bad lines, and counts the others that were read with it."""
        line = block.line_number(begin + is_bad.argmax())
        others = ""
        if is_bad.sum() > 1:
            others = (
                f"So are at least {is_bad.sum() - 1:,} more of the {len(is_bad):,} lines that were "
                f"read with it. "
            )
        raise ValueError(
            f"{self._path}, line {line}: expected {expected}; got {got}. {others}"
            f"Correct the line or remove it."
        )


def _expected(column):
    if column == 0:
        return "label 0 or 1"
    if column < _BEGIN_IDS:
        kind = f"a number of up to {digits.MAX_DECIMAL_DIGITS} digits"
    else:
        kind = f"up to {digits.MAX_HEXADECIMAL_DIGITS} hexadecimal digits"
    return f"{COLUMNS[column]} to be nothing or {kind}"
