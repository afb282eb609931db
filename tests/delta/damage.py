"""Damages files, and seals what makes no sense as if it did."""

import contextlib
import hashlib
import json
import struct

MAGIC = b"SLIPSTRM"


@contextlib.contextmanager
def flip_bit(path, place, bit):
    """Alters a file in the block, and no other name of it."""
    data = path.read_bytes()
    damaged = bytearray(data)
    damaged[place] ^= 1 << bit
    path.unlink()
    path.write_bytes(damaged)
    try:
        yield
    finally:
        path.write_bytes(data)


def varint(value):
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def pack_strings(lengths, size):
    """Returns the bytes of a tensor of strings with these lengths, cut or filled to a size."""
    return b"".join(map(varint, lengths)).ljust(size, b"\xff")[:size]


def header_of(data):
    """Returns the header of a sealed file's bytes, and the sections before it."""
    size = int.from_bytes(data[-16:-8], "little")
    start = len(data) - 48 - size
    return json.loads(data[start : start + size]), data[:start]


def sealed(header, sections):
    """Returns a sealed file's bytes.

    Args:
        header: What JSON can be, or bytes.
        sections: Bytes of the magic and of the sections.
    """
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return sections + text + struct.pack("<32sQ8s", hashlib.sha256(text).digest(), len(text), MAGIC)
