"""Protocol buffers' wire format, as far as a few small messages of TensorFlow need it.

Not the `protobuf` library. It does not tell where in the file a field is, and `tensor_index` writes
a checksum in its place. A table's blocks have varints of their own, so half of this would stay. And
a serving host would need the library. What is read here is read alike by the library: a test alters
messages and asks both.
"""

import dataclasses

from tf_slipstream.delta.errors import ExportError

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


def read_varint(data, position, end=None):
    """Returns the number at a position of bytes, below 2**64, and the position after it.

    Args:
        data: Bytes.
        position: Where the number begins.
        end: Where it must have ended. None: at the end of `data`.
    """
    end = len(data) if end is None else min(end, len(data))
    value = shift = 0
    while True:
        if position >= end or shift > 63:
            raise ExportError("a number in a protocol buffer is cut off or too long")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            if value >> 64:
                raise ExportError("a number in a protocol buffer is too large")
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
        if not 0 < number < 1 << 29:
            raise ExportError(f"a protocol buffer has a field of number {number}")
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


def fields_of(fields, number, kind):
    """Returns those of a message's `Field`s that have a number, in its order.

    Raises:
        ExportError: If one is of another kind.
    """
    found = [field for field in fields if field.number == number]
    if any(field.kind != kind for field in found):
        raise ExportError(f"field {number} of a protocol buffer is of another kind than {kind}")
    return found


def value_of(fields, number, kind=VARINT):
    """Returns the value of a field; of several the last, and of none 0 or b"", as protobuf does."""
    found = fields_of(fields, number, kind)
    return found[-1].value if found else b"" if kind == BYTES else 0


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
