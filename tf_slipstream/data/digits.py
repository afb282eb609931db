"""Numbers in text, parsed by NumPy all at once."""

import numpy as np

MAX_DECIMAL_DIGITS = 15  # What a float64 holds exactly.
MAX_HEXADECIMAL_DIGITS = 16  # What a uint64 holds.
_MINUS, _POINT = b"-."

_NO_DIGIT = 255
_DIGIT_OF_BYTE = np.full(256, _NO_DIGIT, np.uint8)
_DIGIT_OF_BYTE[list(b"0123456789abcdef")] = range(16)
_DIGIT_OF_BYTE[list(b"ABCDEF")] = range(10, 16)


def parse_decimals(text, starts, ends):
    """Parses decimal numbers, which may have a minus sign and a fraction.

    Args:
        text: Uint8 array.
        starts: Int64 array, where in `text` each number starts, in ascending order.
        ends: Same shape, where it ends.

    Returns:
        Array of the values, int64 or, if one has a point, float64; and a boolean array that is
        false where something is no number. Nothing at all is 0.
    """
    is_negative = text[starts] == _MINUS
    starts = starts + is_negative
    points = _first_points(text, starts, ends)
    values, is_valid = _parse_digits(text, starts, points, 10, MAX_DECIMAL_DIGITS)
    values = values.astype(np.int64)
    has_point = points < ends
    num_digits = ends - starts - has_point
    if has_point.any():
        begins = points[has_point] + 1
        lengths = ends[has_point] - begins
        fractions, is_fraction = _parse_digits(
            text, begins, ends[has_point], 10, MAX_DECIMAL_DIGITS
        )
        values = values.astype(np.float64)
        values[has_point] += fractions / 10.0**lengths
        is_valid[has_point] &= is_fraction
    is_valid &= (num_digits > 0) | ~(is_negative | has_point)
    return np.where(is_negative, -values, values), is_valid


def parse_hexadecimals(text, starts, ends):
    """Parses unsigned hexadecimal numbers.

    Args:
        text: Uint8 array.
        starts: Int64 array, where in `text` each number starts.
        ends: Same shape, where it ends.

    Returns:
        Uint64 array of the values, and a boolean array that is false where something is no number.
        Nothing at all is 0.
    """
    return _parse_digits(text, starts, ends, 16, MAX_HEXADECIMAL_DIGITS)


def _first_points(text, starts, ends):
    """Returns where each number's first decimal point is, or its end if there is none."""
    first = ends.copy()
    points = np.flatnonzero(text == _POINT)
    if points.size:
        fields = np.searchsorted(ends.reshape(-1), points)
        fields, points = fields[fields < ends.size], points[fields < ends.size]
        is_inside = starts.reshape(-1)[fields] <= points
        # Backwards, so that of several points in a field the first is written last.
        first.reshape(-1)[fields[is_inside][::-1]] = points[is_inside][::-1]
    return first


def _parse_digits(text, starts, ends, base, max_digits):
    """Parses unsigned integers digit by digit; results as those of `parse_hexadecimals`."""
    digits = _DIGIT_OF_BYTE[text]
    lengths = ends - starts
    is_valid = lengths <= max_digits
    values = np.zeros(starts.shape, np.uint64)
    for offset in range(min(lengths.max(initial=0), max_digits)):
        is_inside = offset < lengths
        digit = digits.take(starts + offset, mode="clip")
        is_valid &= ~is_inside | (digit < base)
        values = np.where(is_inside, values * np.uint64(base) + digit, values)
    return values, is_valid
