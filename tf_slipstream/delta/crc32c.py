"""The CRC-32C of TensorFlow's checkpoints, and how it changes when a few rows of a tensor do.

A CRC without its start and end values is linear: `remainder(a ^ b) = remainder(a) ^ remainder(b)`,
and zeros before a message do not change it. Three things follow:

- A tensor's checksum follows from the old one and the rows that changed, whatever the size of the
  rest: each row's remainder of `old ^ new` is moved by the bytes that follow the row, which is a
  matrix over GF(2), and added: `O(rows * log(bytes))`.
- A word of 8 bytes may be added to three later ones in its stead, where the powers of x in between
  cancel modulo the polynomial. So a long message shrinks to its last `_WINDOW` words by nothing but
  XOR of arrays, at the speed of the cache.
- What is left is cut into lanes, whose remainders come from a table side by side.
"""

import functools

import numpy as np

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_ONES = 0xFFFFFFFF
_MASK_DELTA = 0xA282EAD8
_LANE_BYTES = 512
# Lanes that go through the table at a time: their state, and one column of them, stay in cache.
_LANES_AT_ONCE = 1 << 14

# y**6777 = 1 + y**100 + y**484 modulo the polynomial, where y = x**64 moves by a word of 8 bytes.
# Found by search; a test checks it. So a word counts as much as its copies these distances later.
_DISTANCES = (6777 - 484, 6777 - 100, 6777)
_WINDOW = max(_DISTANCES)
# Read at a time: 256 KB, which stay in the processor's cache.
_WORDS_AT_ONCE = 1 << 15


def crc32c(data):
    """Returns the CRC-32C of bytes, an int."""
    data, done = np.frombuffer(data, np.uint8), 0

    def read(buffer):
        nonlocal done
        buffer[:] = data[done : done + buffer.size]
        done += buffer.size

    return crc32c_of_read(read, data.size)


def crc32c_of_read(read, size):
    """Returns the CRC-32C of bytes that come in pieces, an int.

    Args:
        read: Called with uint8 arrays, one after the other, to fill with the next bytes.
        size: Number of bytes in all.
    """
    # Zeros in front do not change a remainder.
    padding = -size % 8
    num_left = (size + padding) // 8
    words = np.zeros(min(num_left, _WINDOW + _WORDS_AT_ONCE), np.uint64)
    num_kept = 0
    while num_left:
        piece = words[num_kept : num_kept + num_left]
        read(piece.view(np.uint8)[padding:])
        num_left -= piece.size
        num_kept, padding = _fold(words[: num_kept + piece.size]), 0
    remainder = _remainder(words[:num_kept].view(np.uint8))
    start = _moved(np.array([_ONES], np.uint32), np.array([size]))
    return int(start[0]) ^ remainder ^ _ONES


def crc32c_change(old_rows, new_rows, bytes_after):
    """Returns what to xor a tensor's CRC-32C with when some of its rows change.

    Args:
        old_rows: uint8 `[num_changed, row_bytes]`.
        new_rows: Same shape.
        bytes_after: int64 `[num_changed]`, how many bytes of the tensor follow each row.
    """
    return _sum_of_moved(_remainders(old_rows ^ new_rows), bytes_after)


def masked(crc):
    """Returns a CRC as TensorFlow stores it."""
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & _ONES


def unmasked(stored):
    """Returns the CRC that TensorFlow stored so."""
    rotated = (stored - _MASK_DELTA) & _ONES
    return (rotated >> 17 | rotated << 15) & _ONES


def _fold(words):
    """Makes words shorter and keeps their remainder; they are at the front then.

    Returns:
        How many there are then, at most `_WINDOW`.
    """
    num_folded = words.size - _WINDOW
    if num_folded <= 0:
        return words.size
    for first in range(0, num_folded, min(_DISTANCES)):
        piece = words[first : min(first + min(_DISTANCES), num_folded)]
        for distance in _DISTANCES:
            later = words[first + distance :][: piece.size]
            np.bitwise_xor(later, piece, out=later)
    words[:_WINDOW] = words[num_folded:]
    return _WINDOW


def _remainder(data):
    """Returns the remainder of bytes, uint8 `[size]`."""
    num_lanes = -(-data.size // _LANE_BYTES)
    lanes = np.zeros(num_lanes * _LANE_BYTES, np.uint8)
    lanes[lanes.size - data.size :] = data
    after = _LANE_BYTES * np.arange(num_lanes - 1, -1, -1)
    return _sum_of_moved(_remainders(lanes.reshape(num_lanes, _LANE_BYTES)), after)


def _remainders(rows):
    """Returns uint32 `[num_rows]`, the remainder of each row of uint8 `[num_rows, row_bytes]`."""
    if rows.shape[1] % 2:
        rows = np.pad(rows, [(0, 0), (1, 0)])
    words = np.ascontiguousarray(rows).view("<u2")  # [num_rows, row_bytes / 2]
    table = _two_byte_table()
    remainders = np.empty(len(words), np.uint32)
    for first in range(0, len(words), _LANES_AT_ONCE):
        columns = np.ascontiguousarray(words[first : first + _LANES_AT_ONCE].T)
        state = np.zeros(columns.shape[1], np.uint32)
        for column in columns:
            state = table[(state ^ column) & 0xFFFF] ^ (state >> 16)
        remainders[first : first + _LANES_AT_ONCE] = state
    return remainders


def _sum_of_moved(remainders, bytes_after):
    return int(np.bitwise_xor.reduce(_moved(remainders, bytes_after), initial=np.uint32(0)))


def _moved(remainders, bytes_after):
    """Returns the remainders after so many zero bytes more."""
    moved = remainders.copy()
    bytes_after = np.asarray(bytes_after, np.int64)
    for bit in range(int(bytes_after.max(initial=0)).bit_length()):
        where = np.flatnonzero(bytes_after >> bit & 1)
        if where.size:
            moved[where] = _apply(_zeros_tables(bit), moved[where])
    return moved


def _apply(tables, states):
    a, b, c, d = tables
    return a[states & 255] ^ b[states >> 8 & 255] ^ c[states >> 16 & 255] ^ d[states >> 24]


@functools.cache
def _zeros_tables(bit):
    """Returns the matrix of `2**bit` zero bytes as a table per byte of the state: `[4, 256]`."""
    unit = np.uint32(1) << np.arange(32, dtype=np.uint32)
    if bit == 0:
        columns = _byte_table()[unit & 255] ^ (unit >> 8)
    else:
        half = _zeros_tables(bit - 1)
        columns = _apply(half, _apply(half, unit))
    tables = np.zeros([4, 256], np.uint32)
    for state_bit, column in enumerate(columns):
        has_bit = (np.arange(256) >> state_bit % 8 & 1).astype(bool)
        tables[state_bit // 8, has_bit] ^= column
    return tables


@functools.cache
def _byte_table():
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table.astype(np.uint32)


@functools.cache
def _two_byte_table():
    table = _byte_table()
    state = np.arange(1 << 16, dtype=np.uint32)
    for _ in range(2):
        state = table[state & 255] ^ (state >> 8)
    return state
