"""Checksums against published ones, and of changed tensors against those of whole ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_slipstream.delta import crc32c as module
from tf_slipstream.delta.crc32c import crc32c, crc32c_change, crc32c_of_read, masked, unmasked


@pytest.mark.parametrize(
    "data, expected",
    [  # RFC 3720, B.4, and the check value of CRC catalogues
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_known_checksums(data, expected):
    assert crc32c(data) == expected


def bit_by_bit(crc):
    """Returns the remainder of a byte, 8 bits later."""
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


def one_by_one(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = bit_by_bit(crc ^ byte)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("size", [1, 2, 511, 512, 513, 3000])
def test_any_size_agrees_with_bit_by_bit(size):
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == one_by_one(data)


def table_driven(data):
    """As `one_by_one`, and fast enough for more bytes."""
    table = [bit_by_bit(byte) for byte in range(256)]
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


WINDOW = 8 * 6777  # bytes that are left when words are folded


@pytest.mark.parametrize(
    "size",
    [WINDOW - 1, WINDOW, WINDOW + 1, WINDOW + 8, 2 * WINDOW + 3, WINDOW + 8 * 6293 + 9, 700_001],
)
def test_folding_keeps_the_checksum(size):
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == table_driven(data)


def test_a_word_counts_as_much_as_its_copies_further_on():
    """`_DISTANCES` is what it says: a word before zeros has the remainder of its three copies."""
    word = np.arange(1, 9, dtype=np.uint8)[np.newaxis]
    before = np.zeros_like(word)
    last = 8 * max(module._DISTANCES)
    copies = [last - 8 * distance for distance in module._DISTANCES]
    expected = 0
    for bytes_after in copies:
        expected ^= crc32c_change(before, word, np.array([bytes_after]))
    assert crc32c_change(before, word, np.array([last])) == expected


def test_bytes_are_read_in_order_and_once():
    data, pieces = np.random.default_rng(0).integers(0, 256, 700_001, np.uint8), []

    def read(buffer):
        done = sum(pieces)
        buffer[:] = data[done : done + buffer.size]
        pieces.append(buffer.size)

    assert crc32c_of_read(read, data.size) == crc32c(data)
    assert sum(pieces) == data.size and len(pieces) > 1


@given(
    num_rows=st.integers(1, 40),
    row_bytes=st.integers(1, 9),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_changed_rows_change_the_checksum_as_reading_all_would(num_rows, row_bytes, seed, data):
    rng = np.random.default_rng(seed)
    old = rng.integers(0, 256, [num_rows, row_bytes], np.uint8)
    ids = np.array(sorted(data.draw(st.sets(st.integers(0, num_rows - 1)))), np.int64)
    new = old.copy()
    new[ids] = rng.integers(0, 256, [len(ids), row_bytes])
    change = crc32c_change(old[ids], new[ids], (num_rows - 1 - ids) * row_bytes)
    assert crc32c(old) ^ change == crc32c(new)


def test_far_more_bytes_after_a_row_than_fit_32_bits():
    row, after = np.ones([1, 4], np.uint8), (1 << 35) + 12
    halves = crc32c_change(np.zeros_like(row), row, np.array([1 << 34]))
    # The remainder after 2**34 bytes is a row of its own, which 2**34 + 12 bytes follow.
    as_row = np.frombuffer(halves.to_bytes(4, "little"), np.uint8)[np.newaxis]
    twice = crc32c_change(np.zeros_like(row), as_row, np.array([after - (1 << 34) - 4]))
    assert crc32c_change(np.zeros_like(row), row, np.array([after])) == twice


@given(st.integers(0, (1 << 32) - 1))
def test_unmasking_undoes_masking(crc):
    assert unmasked(masked(crc)) == crc
