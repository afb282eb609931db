"""Protocol buffers' wire format, as far as a few small messages of TensorFlow need it.

A serving host then needs neither TensorFlow nor protobuf.
"""

import dataclasses

from tf_slipstream.export.errors import ExportError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {FIXED64: 8, FIXED32: 4}


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a message.

    Attributes:
        number: Its number.
        kind: `VARINT`, `FIXED64`, `BYTES` or `FIXED32`.
        value: An int, or for `BYTES` a bytes object.
        start: Where the value begins in the message.
    """

    number: int
    kind: int
    value: int | bytes
    start: int


def read_varint(data, position):
    """Returns the number at a position, and the position after it."""
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ExportError("a number in a protocol buffer is cut off or too long")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def write_varint(value):
    """Returns a number that is not negative, encoded."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_fields(data):
    """Returns the `Field`s of a message, in its order."""
    fields, position = [], 0
    while position < len(data):
        tag, position = read_varint(data, position)
        number, kind = tag >> 3, tag & 7
        start = position
        if kind == VARINT:
            value, position = read_varint(data, position)
        else:
            if kind == BYTES:
                size, start = read_varint(data, position)
            elif kind in _FIXED_SIZES:
                size = _FIXED_SIZES[kind]
            else:
                raise ExportError(f"a protocol buffer has a field of unknown kind {kind}")
            position = start + size
            if position > len(data):
                raise ExportError("a protocol buffer is cut off")
            value = bytes(data[start:position])
            if kind != BYTES:
                value = int.from_bytes(value, "little")
        fields.append(Field(number, kind, value, start))
    return fields


def write_fields(fields):
    """Returns the message of `(number, kind, value)`s, in their order."""
    out = bytearray()
    for number, kind, value in fields:
        out += write_varint(number << 3 | kind)
        if kind == VARINT:
            out += write_varint(value)
        elif kind == BYTES:
            out += write_varint(len(value)) + value
        else:
            out += value.to_bytes(_FIXED_SIZES[kind], "little")
    return bytes(out)
