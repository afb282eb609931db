"""Lines of a text file, plain or gzipped, about a megabyte at a time."""

import gzip
import zlib

import numpy as np

from tf_slipstream.file_errors import naming

_BLOCK_BYTES = 2**20
_NEWLINE = b"\n"[0]
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class LineBlock:
    """Whole lines of a file. Empty ones are left out, and each ends with a newline alone.

    Args:
        raw: The lines' bytes in the file; the last one is a newline.
        first_line: Number of the first line in the file, counted from 1.
    """

    def __init__(self, raw, first_line):
        self._raw = raw
        self._first_line = first_line
        text = raw.replace(b"\r\n", b"\n")
        if text.startswith(b"\n") or b"\n\n" in text:
            text = b"".join(line + b"\n" for line in text.split(b"\n") if line)
        self._text = text
        self.num_lines = text.count(b"\n")

    def cut(self, begin, end):
        """Returns the lines `[begin, end)` as a uint8 array."""
        text = np.frombuffer(self._text, np.uint8)
        line_ends = np.flatnonzero(text == _NEWLINE) + 1
        return text[line_ends[begin - 1] if begin else 0 : line_ends[end - 1]]

    def line_number(self, index):
        """Returns the number in the file of line `index` of this block."""
        lines = enumerate(self._raw.split(b"\n"), start=self._first_line)
        numbers = [number for number, line in lines if line not in (b"", b"\r")]
        return numbers[index]


def line_blocks(path, is_gzipped):
    """Yields a file's `LineBlock`s. The last line may lack its end, the first have a BOM.

    Args:
        path: A `pathlib.Path`.
        is_gzipped: Whether the file is gzipped.

    Raises:
        ValueError: If the gzipped data is cut off or damaged, or if there are no lines.
        OSError: If the file cannot be read.
    """
    line = 1
    try:
        with naming(path), (gzip.open if is_gzipped else open)(path, "rb") as stream:
            while raw := _read_lines(stream, path, line):
                yield LineBlock(raw.removeprefix(_BYTE_ORDER_MARK) if line == 1 else raw, line)
                line += raw.count(b"\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{path}, line {line} or later: expected gzipped text; it is cut off or damaged "
            f"({error}). Get the file anew."
        ) from error


def _read_lines(stream, path, line):
    raw = stream.read(_BLOCK_BYTES)
    raw += stream.readline(_BLOCK_BYTES)
    if raw and not raw.endswith(b"\n"):
        if stream.read(1):
            raise ValueError(
                f"{path}, line {line} or later: expected lines of text; got one of over "
                f"{_BLOCK_BYTES} bytes. Pass Criteo's tab-separated text."
            )
        raw += b"\n"
    return raw
