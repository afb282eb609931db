"""An index whose checksums are right and which makes no sense is refused with a clear error."""

import struct

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_slipstream.delta.errors import ExportError
from tf_slipstream.delta.tensor_index import TensorIndex, _block_crc
from tf_slipstream.delta.verification import verify_tensors


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Returns the path of the index of a checkpoint, in a folder of its own."""
    variables = {
        f"v{number}": tf.Variable(tf.ones([number, 2]), name=f"v{number}") for number in range(5)
    }
    prefix = str(tmp_path_factory.mktemp("index") / "c")
    return tf.train.Checkpoint(**variables, text=tf.Variable("abc")).write(prefix) + ".index"


def blocks_of(data):
    """Returns offset and size of an index's blocks, that of their handles last."""
    index = TensorIndex.__new__(TensorIndex)
    index._data, index._blocks = data, []
    index.entries, index.slices, index.num_shards = {}, [], 1
    index._read()
    ends = [offset + size + 5 for offset, size in index._blocks]
    # The meta index, which is empty, has 8 bytes.
    last = max(ends) + 8 + 5
    return [*index._blocks, (last, len(data) - 48 - 5 - last)]


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=4))
def test_no_altered_block_raises_anything_else(checkpoint, changes):
    with open(checkpoint, "rb") as file:
        original = file.read()
    data, blocks = bytearray(original), blocks_of(original)
    for number, byte in changes:
        offset, size = blocks[number % len(blocks)]
        data[offset + number // len(blocks) % size] = byte
    for offset, size in blocks:
        struct.pack_into("<I", data, offset + size + 1, _block_crc(data, offset, size))
    with open(checkpoint, "wb") as file:
        file.write(data)
    try:
        verify_tensors(TensorIndex(checkpoint))
    except ExportError as error:
        assert checkpoint.rpartition("/")[0] in str(error)
    finally:
        with open(checkpoint, "wb") as file:
            file.write(original)


def test_the_blocks_are_found(checkpoint):
    with open(checkpoint, "rb") as file:
        data = file.read()
    for offset, size in blocks_of(data):
        assert struct.unpack_from("<I", data, offset + size + 1)[0] == _block_crc(
            data, offset, size
        )
    assert set(TensorIndex(checkpoint).entries) > {"v3/.ATTRIBUTES/VARIABLE_VALUE"}


def test_a_new_checksum_is_written_in_its_place(checkpoint, tmp_path):
    index = TensorIndex(checkpoint)
    key = "v3/.ATTRIBUTES/VARIABLE_VALUE"
    (tmp_path / "c.index").write_bytes(index.patched({key: 0x01020304}))
    patched = TensorIndex(tmp_path / "c.index")
    assert patched.entries[key].crc == 0x01020304
    others = set(index.entries) - {key}
    assert all(patched.entries[other] == index.entries[other] for other in others)
