"""Messages are read as the protobuf library reads them, altered ones too; or refused."""

import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tensorflow.core.protobuf import fingerprint_pb2
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto

from tf_slipstream.delta import dtypes, wire
from tf_slipstream.delta.errors import ExportError
from tf_slipstream.delta.tensor_index import _entry_of

# A string, whose bytes are not its shape's.
ENTRY = BundleEntryProto(dtype=7, shard_id=3, offset=300, size=1 << 40, crc32c=0xDEADBEEF)
for _size in (1 << 20, 1 << 18):
    ENTRY.shape.dim.add(size=_size)


def signed(value, bits=64):
    """Returns a varint as protobuf gives it of an `int64` or `int32` field."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def agree(data):
    """Asserts that both read a BundleEntryProto alike, if ours reads it at all."""
    try:
        entry = _entry_of(b"key", 0, wire.read_fields(data))
    except ExportError:
        return False
    other = BundleEntryProto.FromString(data)
    # The library cuts numbers to 32 bits; here such a type is one that is not known.
    assert entry.dtype == dtypes.name_of(other.dtype) or entry.dtype.startswith("type ")
    assert [signed(size) for size in entry.shape] == [dim.size for dim in other.shape.dim]
    assert signed(entry.shard, 32) == other.shard_id
    assert (signed(entry.offset), signed(entry.size)) == (other.offset, other.size)
    assert (entry.crc, entry.is_sliced) == (other.crc32c, len(other.slices) > 0)
    if entry.crc_position is not None:
        assert int.from_bytes(data[entry.crc_position :][:4], "little") == other.crc32c
    return True


def test_a_message_is_read():
    assert agree(ENTRY.SerializeToString())
    assert agree(BundleEntryProto().SerializeToString())


@settings(max_examples=1000)
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 255)), max_size=3), st.integers(0, 40))
@example([], 40)
def test_altered_messages_are_read_alike_or_refused(changes, size):
    data = bytearray(ENTRY.SerializeToString())
    for place, byte in changes:
        data[place % len(data)] = byte
    agree(bytes(data[:size]))


@settings(max_examples=500)
@given(st.binary(max_size=40))
def test_any_bytes_are_read_alike_or_refused(data):
    agree(data)


@pytest.mark.parametrize(
    "data",
    [b"\x08", b"\x08" + b"\xff" * 11, b"\x08" + b"\xff" * 9 + b"\x7f", b"\x12\x05ab", b"\x0b\x0c"]
    + [b"\x00\x01", b"\x35\x01\x02", b"\x10\x01", b"\x0d\x01\x02\x03\x04"],
    ids=["cut off", "too long", "too large", "past the end", "group", "number 0", "cut off fixed"]
    + ["a number for a message", "fixed for a number"],
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(ExportError):
        _entry_of(b"key", 0, wire.read_fields(data))


@given(st.integers(0, (1 << 64) - 1))
def test_numbers_are_read_as_written(value):
    data = wire.write_varint(value)
    assert wire.read_varint(b"\xff" + data, 1) == (value, 1 + len(data))
    message = fingerprint_pb2.FingerprintDef(checkpoint_hash=value)
    assert message.SerializeToString() == (
        wire.write_fields([(5, wire.VARINT, value)]) if value else b""
    )


def test_a_message_is_written_as_it_was_read():
    data = ENTRY.SerializeToString()
    fields = wire.read_fields(data)
    assert wire.write_fields((f.number, f.kind, f.value) for f in fields) == data


def test_types_have_the_names_and_sizes_that_tensorflow_gives_them():
    for number in range(1, 24):
        dtype = tf.as_dtype(number)
        assert dtypes.name_of(number) == dtype.name
        num_bytes = dtypes.bytes_of_element(dtype.name)
        assert num_bytes is None or num_bytes == dtype.size
        is_fixed = dtype not in (tf.string, tf.resource, tf.variant)
        assert (num_bytes is not None) == is_fixed
