"""Criteo's tab-separated text, parsed by NumPy about a megabyte at a time."""

import functools
import gzip

import numpy as np

from tf_slipstream.data.click_log import ClickLog
from tf_slipstream.data.criteo_schema import (
    COLUMNS,
    DENSE_COLUMNS,
    ID_COLUMNS,
    check_hash_size,
    log_counts,
)

_DEFAULT_HASH_SIZE = 100_000
_BLOCK_BYTES = 2**20
_NEWLINE, _TAB, _MINUS = b"\n\t-"
_MAX_DIGITS = 15  # What an int64 holds in base 16.

_NO_DIGIT = 255
_DIGIT_OF_BYTE = np.full(256, _NO_DIGIT, np.uint8)
_DIGIT_OF_BYTE[list(b"0123456789abcdef")] = range(16)
_DIGIT_OF_BYTE[list(b"ABCDEF")] = range(10, 16)


class TextClickLog(ClickLog):
    """Criteo's tab-separated text; see `open_click_log`.

    Args:
        path: A `pathlib.Path`.
        hash_size: Number of ids of each field, at least 2, or `None` for 100,000.
        is_gzipped: Whether the file is gzipped.

    Raises:
        ValueError: If the file has no lines or `hash_size` is too small.
    """

    def __init__(self, path, hash_size, is_gzipped):
        self._path = path
        self._hash_size = _DEFAULT_HASH_SIZE if hash_size is None else hash_size
        check_hash_size(self._hash_size)
        self._open = gzip.open if is_gzipped else open
        self.cardinalities = (self._hash_size,) * len(ID_COLUMNS)
        self.num_dense = len(DENSE_COLUMNS)
        with self._open(path, "rb") as stream:
            if not stream.read(1):
                raise ValueError(f"Expected a Criteo click log; {path} has no lines.")

    @functools.cached_property
    def num_examples(self):
        """Number of lines. The first use reads the whole file."""
        return sum(text.count(b"\n") for text in self._text_blocks())

    def _blocks(self, start, stop):
        first = 0  # Index of the block's first line.
        for text in self._text_blocks():
            if stop is not None and first >= stop:
                return
            num_lines = text.count(b"\n")
            begin = max(start - first, 0)
            end = num_lines if stop is None else min(stop - first, num_lines)
            if begin < end:
                yield self._parse(_cut_lines(text, begin, end), first + begin)
            first += num_lines

    def _text_blocks(self):
        """Yields bytes that end with a newline; the last line gets one if it has none."""
        with self._open(self._path, "rb") as stream:
            while text := stream.read(_BLOCK_BYTES):
                text += stream.readline(_BLOCK_BYTES)
                if not text.endswith(b"\n"):
                    if stream.read(1):
                        raise ValueError(
                            f"Expected lines of text; {self._path} has one of over "
                            f"{_BLOCK_BYTES} bytes. Pass Criteo's tab-separated text."
                        )
                    text += b"\n"
                yield text

    def _parse(self, text, first):
        """Turns whole lines into examples.

        Args:
            text: Uint8 array, the lines.
            first: Index of the first line in the file, for messages.

        Returns:
            `(dense, ids, label)` as `ClickLog.batches` gives them.
        """
        starts, ends = self._split(text, first)  # Both [num_lines, num_columns].
        is_empty = starts == ends
        begin_ids = 1 + len(DENSE_COLUMNS)
        numbers, is_number = _parse_decimals(text, starts[:, :begin_ids], ends[:, :begin_ids])
        values, is_value = _parse_digits(text, starts[:, begin_ids:], ends[:, begin_ids:], base=16)
        label = numbers[:, 0]
        is_valid = np.concatenate([is_number, is_value], axis=1)
        is_valid[:, 0] &= ((label == 0) | (label == 1)) & ~is_empty[:, 0]
        if not is_valid.all():
            line, column = np.argwhere(~is_valid)[0]
            field = text[starts[line, column] : ends[line, column]].tobytes()
            self._refuse(first + line, _expected_value(column), repr(field)[1:])

        ids = np.where(is_empty[:, begin_ids:], 0, 1 + values % (self._hash_size - 1))
        return log_counts(numbers[:, 1:]), ids.astype(np.int32), label.astype(np.float32)

    def _split(self, text, first):
        """Returns where each value starts and ends, both int64 `[num_lines, num_columns]`."""
        ends = np.flatnonzero((text == _TAB) | (text == _NEWLINE))
        widths = np.diff(np.flatnonzero(text[ends] == _NEWLINE), prepend=-1)
        wrong_lines = np.flatnonzero(widths != len(COLUMNS))
        if wrong_lines.size:
            line = wrong_lines[0]
            expected = f"{len(COLUMNS)} values separated by tabs"
            self._refuse(first + line, expected, str(widths[line]))
        starts = np.concatenate([[0], ends[:-1] + 1])
        return starts.reshape(-1, len(COLUMNS)), ends.reshape(-1, len(COLUMNS))

    def _refuse(self, index, expected, got):
        raise ValueError(
            f"{self._path}, line {index + 1}: expected {expected}; got {got}. "
            f"Correct the line or remove it."
        )


def _cut_lines(text, begin, end):
    """Returns the lines `[begin, end)` of `text` as a uint8 array."""
    text = np.frombuffer(text, np.uint8)
    line_ends = np.flatnonzero(text == _NEWLINE) + 1
    return text[line_ends[begin - 1] if begin else 0 : line_ends[end - 1]]


def _expected_value(column):
    if column == 0:
        return "label 0 or 1"
    kind = "decimal" if column <= len(DENSE_COLUMNS) else "hexadecimal"
    return f"{COLUMNS[column]} to be nothing or up to {_MAX_DIGITS} {kind} digits"


def _parse_decimals(text, starts, ends):
    """Parses integers that may have a minus sign; arguments and results as `_parse_digits`."""
    is_negative = text[starts] == _MINUS
    values, is_valid = _parse_digits(text, starts + is_negative, ends, base=10)
    is_valid &= ~is_negative | (ends - starts > 1)
    return np.where(is_negative, -values, values), is_valid


def _parse_digits(text, starts, ends, base):
    """Parses unsigned integers, all of them at once, digit by digit.

    Args:
        text: Uint8 array.
        starts: Int64 array, where in `text` each integer starts.
        ends: Same shape, where it ends.
        base: 10 or 16.

    Returns:
        Int64 array of the values, 0 for one without digits, and a boolean array that is false
        where something is not a digit or there are too many.
    """
    digits = _DIGIT_OF_BYTE[text]
    lengths = ends - starts
    is_valid = lengths <= _MAX_DIGITS
    values = np.zeros(starts.shape, np.int64)
    for offset in range(min(lengths.max(initial=0), _MAX_DIGITS)):
        is_inside = offset < lengths
        digit = digits.take(starts + offset, mode="clip")
        is_valid &= ~is_inside | (digit < base)
        values = np.where(is_inside, values * base + digit, values)
    return values, is_valid
