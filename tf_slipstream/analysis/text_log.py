"""Logs of text: Criteo's, and any table of comma- or tab-separated values."""

import csv
import gzip
import io
import zlib

import numpy as np

from tf_slipstream.analysis.chunk import (
    Chunk,
    LogError,
    as_seconds,
    choose_columns,
    hashed_cells,
)
from tf_slipstream.file_errors import naming

_BLOCK_BYTES = 2**22
_GZIP_MAGIC = b"\x1f\x8b"
_CRITEO = ("label", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27)))
_DELIMITERS = ("\t", ",", ";", "|")
# In place of a delimiter, in lines that had quotes.
_UNIT = "\x1f"


class TextLog:
    """A table of text, plain or gzipped.

    The first line has the names of the columns, unless one of its cells is a number: columns are
    then named by their place, "1", "2" and so on, and Criteo's 40 as Criteo names them. Cells may
    be quoted, but not over several lines.

    Args:
        path: A `pathlib.Path`.
        fields, label, time: As of `choose_columns`.

    Raises:
        LogError: If the file is empty, damaged, or lacks a column.
    """

    def __init__(self, path, fields=None, label=None, time=None):
        self._path, self._size = path, max(1, path.stat().st_size)
        with naming(path), path.open("rb") as stream:
            self._is_gzipped = stream.read(2) == _GZIP_MAGIC
        first = next((raw for raw, _, _ in self._blocks()), None)
        if first is None:
            raise LogError(f"{path} has no lines: an empty log. Pass one with examples.")
        line = first.split(b"\n", 1)[0].rstrip(b"\r").decode(errors="replace")
        self._delimiter = max(_DELIMITERS, key=line.count)
        cells = self._rows(line)[0]
        self._has_header = not any(map(_is_number, cells))
        if self._has_header:
            names = [cell.strip() for cell in cells]
        elif len(cells) == len(_CRITEO) and self._delimiter == "\t":
            names = list(_CRITEO)
        else:
            names = [str(place) for place in range(1, len(cells) + 1)]
        if len(set(names)) != len(names):
            raise LogError(f"{path} names a column twice in its first line. Rename one.")
        id_names = names[14:] if names == list(_CRITEO) else names
        self.columns = choose_columns(path, names, id_names, fields, label, time)
        self._num_columns = len(names)
        self._places = {name: place for place, name in enumerate(names)}

    def chunks(self, takes=lambda: True):
        """Yields `Chunk`s in order, for those parts of the log for which `takes()` is true."""
        line = 1
        for raw, done, is_first in self._blocks():
            num_lines = raw.count(b"\n")
            if is_first and self._has_header:
                raw = raw.split(b"\n", 1)[1]
                line, num_lines = line + 1, num_lines - 1
            if raw and takes():
                yield self._chunk(raw, done, line)
            line += num_lines

    def _blocks(self):
        """Yields whole lines, how much was read with them, and whether they are the first."""
        is_first = True
        try:
            with naming(self._path), self._path.open("rb") as file:
                stream = gzip.GzipFile(fileobj=file) if self._is_gzipped else file
                while raw := stream.read(_BLOCK_BYTES):
                    raw += stream.readline(_BLOCK_BYTES)
                    if not raw.endswith(b"\n"):
                        raw += b"\n"
                    if is_first:
                        raw = raw.removeprefix(b"\xef\xbb\xbf")
                    if b"\r\n" in raw:
                        raw = raw.replace(b"\r\n", b"\n")
                    if raw.strip():
                        yield raw, min(1.0, file.tell() / self._size), is_first
                        is_first = False
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise LogError(
                f"{self._path} is gzipped text that is cut off or damaged ({error}). Get it anew."
            ) from error

    def _chunk(self, raw, done, line):
        delimiter = self._delimiter.encode()
        if b'"' in raw:
            raw, delimiter = self._unquoted(raw), _UNIT.encode()
        if b"\n\n" in raw or raw.startswith(b"\n"):
            raw = b"".join(one + b"\n" for one in raw.split(b"\n") if one)
        text = np.frombuffer(raw + bytes(8), np.uint8)
        ends = np.flatnonzero((text == ord(delimiter)) | (text == ord("\n")))
        num_cells = np.diff(np.flatnonzero(text[ends] == ord("\n")), prepend=-1)
        is_bad = num_cells != self._num_columns
        if is_bad.any():
            where = int(is_bad.argmax())
            raise LogError(
                f"{self._path}, line {line + where:,} or soon after: expected {self._num_columns} "
                f"values, as in the first line; got {num_cells[where]}. Correct it or remove it."
            )
        starts = np.concatenate([[0], ends[:-1] + 1]).reshape(-1, self._num_columns)
        ends = ends.reshape(-1, self._num_columns)
        places = [self._places[name] for name in self.columns.fields]
        keys = hashed_cells(text, starts[:, places], ends[:, places])
        label, time = (
            None if name is None else self._numbers(raw, starts, ends, name, line)
            for name in (self.columns.label, self.columns.time)
        )
        return Chunk(keys, label, None if time is None else as_seconds(time), done)

    def _unquoted(self, raw):
        lines = (_UNIT.join(r).replace("\n", " ") for r in self._rows(raw.decode(errors="replace")))
        return "".join(f"{one}\n" for one in lines).encode()

    def _rows(self, text):
        """Returns the cells of lines, some of which may be quoted: a list of lists."""
        try:
            return [*csv.reader(io.StringIO(text), delimiter=self._delimiter)] or [[]]
        except csv.Error as error:
            raise LogError(
                f"{self._path}: a line of quoted cells cannot be read ({error}). Correct it or "
                "remove it."
            ) from None

    def _numbers(self, raw, starts, ends, name, line):
        """Returns the numbers of a column; dates are seconds since 1970, empty cells NaN."""
        place, known = self._places[name], {b"": np.nan}
        digits = np.frombuffer(raw, np.uint8)[np.minimum(starts[:, place], len(raw) - 1)] - ord("0")
        if (ends[:, place] - starts[:, place] == 1).all() and (digits <= 9).all():
            return digits.astype(np.float64)  # labels, and nothing else so often
        numbers = np.empty(len(starts))
        for row, (start, end) in enumerate(zip(starts[:, place].tolist(), ends[:, place].tolist())):
            cell = raw[start:end]
            number = known.get(cell)
            if number is None:
                number = known[cell] = self._number(cell, name, line + row)
            numbers[row] = number
        return numbers

    def _number(self, cell, name, line):
        try:
            return float(cell)
        except ValueError:
            pass
        try:
            text = cell.decode().strip().removesuffix("Z")
            return float(np.datetime64(text, "us").astype(np.int64)) / 1e6
        except ValueError:
            raise LogError(
                f"{self._path}, line {line:,}: expected a number or a date in column {name!r}; got "
                f"{cell.decode(errors='replace')!r}. Name another column, or correct the line."
            ) from None


def _is_number(cell):
    try:
        float(cell)
    except ValueError:
        return False
    return True
