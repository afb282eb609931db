"""The index file of a TensorFlow checkpoint: where each tensor's bytes are, and their checksum.

`variables.index` is a LevelDB table from a tensor's key to a `BundleEntryProto`. A delta changes
neither keys nor sizes, only values; so all that changes in the index are the 4 bytes of some
tensors' checksums, and the checksum of the blocks that they are in. They are written in place, so
that the file is the one that TensorFlow would have written.
"""

import dataclasses
import math
import pathlib
import struct

import numpy as np

from tf_slipstream.delta import dtypes, wire
from tf_slipstream.delta.crc32c import crc32c, masked
from tf_slipstream.delta.errors import ExportError
from tf_slipstream.file_errors import read_bytes

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # compression, checksum

# Fields of BundleHeaderProto, of BundleEntryProto, and of its TensorShapeProto.
_NUM_SHARDS, _ENDIANNESS = 1, 2
_DTYPE, _SHAPE, _SHARD, _OFFSET, _SIZE, _CRC, _SLICES = range(1, 8)
_DIM, _DIM_SIZE = 2, 1
# Keys share beginnings, so that a small file may hold many long ones; TensorFlow's hold few times
# the file's size.
_KEY_BYTES_PER_BYTE = 100


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """Where a tensor is, or a slice of one.

    Attributes:
        key: Its name in the checkpoint; for a slice, what it is stored under.
        dtype: TensorFlow's name of its type.
        shape: Tuple.
        shard: Number of its data file.
        offset: Where it begins there.
        size: Its bytes there.
        crc: Its CRC-32C, masked.
        crc_position: Where in the index file that is; None where it is not stored, being 0.
        is_sliced: Whether it is stored in several slices, under keys of their own.
    """

    key: str
    dtype: str
    shape: tuple
    shard: int
    offset: int
    size: int
    crc: int
    crc_position: int | None
    is_sliced: bool


class TensorIndex:
    """The index of a checkpoint, read and checked.

    Args:
        path: The index file, `variables.index` say.

    Attributes:
        entries: Dict from a tensor's key to its `TensorEntry`.
        slices: List of `TensorEntry` of all slices.
        num_shards: Number of data files.

    Raises:
        ExportError: For a file that is not such an index, or damaged, or of a kind that is not
            supported.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self._data = read_bytes(path)
        self._blocks = []
        self.entries, self.slices, self.num_shards = {}, [], 1
        try:
            self._read()
        except (ExportError, UnicodeDecodeError) as error:
            raise ExportError(
                f"{path} is not a readable index of a TensorFlow checkpoint ({error}): export or "
                "copy it again"
            ) from None

    @property
    def data_bytes(self):
        return self._data

    def data_path(self, shard):
        """Returns the path of a data file."""
        return self.path.with_suffix(f".data-{shard:05d}-of-{self.num_shards:05d}")

    @property
    def shard_sizes(self):
        """The bytes of each data file that has some: dict from its number."""
        sizes = {}
        for entry in [*self.entries.values(), *self.slices]:
            sizes[entry.shard] = max(sizes.get(entry.shard, 0), entry.offset + entry.size)
        return sizes

    def check_data_files(self):
        """Checks that the data files are there and have their sizes.

        Raises:
            ExportError: If one is missing or of another size.
        """
        for shard, size in self.shard_sizes.items():
            path = self.data_path(shard)
            if not path.is_file():
                raise ExportError(f"{path} is missing: copy the version again")
            actual = path.stat().st_size
            if actual != size:
                raise ExportError(
                    f"{path} has {actual} bytes where {size} belong: copy the version again"
                )

    def bytes_of(self, key):
        """Returns a tensor's bytes in its data file: uint8 `[size]`, read when used."""
        entry = self.entries[key]
        if entry.size == 0:
            return np.zeros([0], np.uint8)
        return np.memmap(self.data_path(entry.shard), np.uint8, "r", entry.offset, (entry.size,))

    def patched(self, crcs):
        """Returns the bytes of an index with other checksums.

        Args:
            crcs: Dict from key to CRC-32C, masked.
        """
        data = bytearray(self._data)
        for key, crc in crcs.items():
            position = self.entries[key].crc_position
            if position is None:
                # One tensor in 2**32.
                raise ExportError(
                    f"{self.path} stores no checksum for {key}, because it is 0: publish a full "
                    "version instead"
                )
            struct.pack_into("<I", data, position, crc)
        for offset, size in self._blocks:
            struct.pack_into("<I", data, offset + size + 1, _block_crc(data, offset, size))
        return bytes(data)

    def _read(self):
        footer = self._data[-_FOOTER_BYTES:]
        if len(footer) < _FOOTER_BYTES or struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
            raise ExportError("no table's end mark: it is cut off, or another kind of file")
        _, position = _read_handle(footer, 0)  # of the meta index, which is empty
        (offset, size), _ = _read_handle(footer, position)
        self._check_block(offset, size)
        for _, start, end in self._read_block(offset, size):
            (block_offset, block_size), _ = _read_handle(self._data, start, end)
            self._check_block(block_offset, block_size)
            self._blocks.append((block_offset, block_size))
            for key, value_start, value_end in self._read_block(block_offset, block_size):
                self._add(key, value_start, self._data[value_start:value_end])

    def _check_block(self, offset, size):
        if size < 4 or offset + size + _TRAILER_BYTES > len(self._data):
            raise ExportError("a block is said to be where the file has ended")
        compression, stored = struct.unpack_from("<BI", self._data, offset + size)
        if _block_crc(self._data, offset, size) != stored:
            raise ExportError("a block's checksum is wrong: the file was altered")
        if compression != 0:
            raise ExportError("its blocks are compressed, which TensorFlow's are not")

    def _read_block(self, offset, size):
        """Yields key, and start and end of the value in the file, of each entry of a block."""
        data = self._data
        (num_restarts,) = struct.unpack_from("<I", data, offset + size - 4)
        end = offset + size - 4 - 4 * num_restarts
        if end < offset:
            raise ExportError("a block has more restart points than it has bytes")
        position, key, key_bytes = offset, b"", 0
        while position < end:
            num_shared, position = wire.read_varint(data, position, end)
            num_own, position = wire.read_varint(data, position, end)
            value_size, position = wire.read_varint(data, position, end)
            start = position + num_own
            if num_shared > len(key) or start + value_size > end:
                raise ExportError("an entry reaches past its block")
            key_bytes += num_shared + num_own
            if key_bytes > _KEY_BYTES_PER_BYTE * len(data):
                raise ExportError("its keys are far larger than itself")
            key = key[:num_shared] + data[position:start]
            position = start + value_size
            yield key, start, position

    def _add(self, key, start, value):
        found = wire.read_fields(value)
        if key == b"":  # BundleHeaderProto
            self.num_shards = wire.value_of(found, _NUM_SHARDS) or 1
            if wire.value_of(found, _ENDIANNESS) != 0:
                raise ExportError("its tensors are big-endian")
            return
        entry = _entry_of(key, start, found)
        if all(byte >= 32 for byte in key):
            if entry.key in self.entries:
                raise ExportError(f"it has two tensors {entry.key}")
            self.entries[entry.key] = entry
        else:
            self.slices.append(entry)


def _entry_of(key, start, found):
    """Returns the `TensorEntry` of a BundleEntryProto.

    Args:
        key: Bytes.
        start: Where the message begins in the index file.
        found: Its fields.
    """
    dims = wire.fields_of(
        wire.read_fields(wire.value_of(found, _SHAPE, wire.BYTES)), _DIM, wire.BYTES
    )
    shape = [wire.value_of(wire.read_fields(dim.value), _DIM_SIZE) for dim in dims]
    crcs = wire.fields_of(found, _CRC, wire.FIXED32)
    is_slice = any(byte < 32 for byte in key)
    entry = TensorEntry(
        key=key.decode(errors="replace" if is_slice else "strict"),
        dtype=dtypes.name_of(wire.value_of(found, _DTYPE)),
        shape=tuple(shape),
        shard=wire.value_of(found, _SHARD),
        offset=wire.value_of(found, _OFFSET),
        size=wire.value_of(found, _SIZE),
        crc=crcs[-1].value if crcs else 0,
        crc_position=start + crcs[-1].start if crcs else None,
        is_sliced=bool(wire.fields_of(found, _SLICES, wire.BYTES)),
    )
    element = dtypes.bytes_of_element(entry.dtype)
    if not entry.is_sliced and element is not None and entry.size != element * math.prod(shape):
        raise ExportError(f"{entry.key} has {entry.size} bytes, which its shape has not")
    return entry


def _read_handle(data, position, end=None):
    """Returns offset and size of a block, and the position after them."""
    offset, position = wire.read_varint(data, position, end)
    size, position = wire.read_varint(data, position, end)
    return (offset, size), position


def _block_crc(data, offset, size):
    """Returns the checksum of a block, masked; its compression is part of it."""
    return masked(crc32c(bytes(data[offset : offset + size + 1])))
