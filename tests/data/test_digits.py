"""Numbers in text against Python's own."""

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tf_slipstream.data.digits import parse_decimals, parse_hexadecimals

DECIMAL = re.compile(r"(-?([0-9]{1,15}(\.[0-9]{0,15})?|\.[0-9]{1,15}))?")
HEXADECIMAL = re.compile(r"[0-9a-fA-F]{0,16}")
FIELDS = st.lists(
    st.from_regex(r"-?[0-9]{0,16}(\.[0-9]{0,16})?", fullmatch=True)
    | st.from_regex(r"[0-9a-fA-F]{0,17}", fullmatch=True)
    | st.text("0123456789.-aF x", max_size=18),
    min_size=1,
)


def parsed(parse, fields):
    """Parses fields that tabs end; those of odd number only, so that there is text between."""
    text = "".join(field + "\t" for field in fields)
    ends = np.flatnonzero(np.frombuffer(text.encode(), np.uint8) == ord("\t"))
    starts = ends - [len(field) for field in fields]
    return parse(np.frombuffer(text.encode(), np.uint8), starts[::2, None], ends[::2, None])


@given(FIELDS)
def test_decimals_are_what_python_reads(fields):
    values, is_valid = parsed(parse_decimals, fields)
    fields = fields[::2]
    expected = [DECIMAL.fullmatch(field) is not None for field in fields]
    assert is_valid[:, 0].tolist() == expected
    numbers = [float(field or 0) for field, valid in zip(fields, expected) if valid]
    # One rounding each of the fraction and of the sum.
    np.testing.assert_allclose(values[is_valid], numbers, rtol=4 * 2.0**-53)


@given(FIELDS)
def test_hexadecimals_are_what_python_reads(fields):
    values, is_valid = parsed(parse_hexadecimals, fields)
    fields = fields[::2]
    expected = [HEXADECIMAL.fullmatch(field) is not None for field in fields]
    assert is_valid[:, 0].tolist() == expected
    numbers = [int(field or "0", 16) for field, valid in zip(fields, expected) if valid]
    assert values[is_valid].tolist() == numbers
