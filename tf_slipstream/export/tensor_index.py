"""The index file of a TensorFlow checkpoint: where each tensor's bytes are, and their checksum.

`variables.index` is a LevelDB table from a tensor's key to a `BundleEntryProto`. A delta changes
neither keys nor sizes, only values; so all that changes in the index are the 4 bytes of some
tensors' checksums, and the checksum of the blocks that they are in. They are written in place, so
that the file is the one that TensorFlow would have written.
"""

import dataclasses
import pathlib
import struct

import numpy as np

from tf_slipstream.export import _wire
from tf_slipstream.export.crc32c import crc32c, masked
from tf_slipstream.export.errors import ExportError

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # compression, checksum

_DTYPES = dict(
    enumerate(
        "float32 float64 int32 uint8 int16 int8 string complex64 int64 bool qint8 quint8 qint32 "
        "bfloat16 qint16 quint16 uint16 complex128 float16 resource variant uint32 uint64".split(),
        start=1,
    )
)


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """Where a tensor is.

    Attributes:
        key: Its name in the checkpoint.
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

    Raises:
        ExportError: For a file that is not such an index, or damaged, or of a kind that is not
            supported.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self._data = self.path.read_bytes()
        self._blocks = []
        self.entries = {}
        self.num_shards = 1
        try:
            self._read()
        except (ExportError, IndexError, struct.error, UnicodeDecodeError) as error:
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
            struct.pack_into("<I", data, offset + size + 1, masked(self._crc(data, offset, size)))
        return bytes(data)

    def _read(self):
        footer = self._data[-_FOOTER_BYTES:]
        if len(footer) < _FOOTER_BYTES or struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
            raise ExportError("no table's end mark: it is cut off, or another kind of file")
        position = 0
        for _ in range(2):  # the handle of the meta index, which is empty, then that of the index
            offset, position = _wire.read_varint(footer, position)
            size, position = _wire.read_varint(footer, position)
        self._check_block(offset, size)
        for _, start, end in self._read_block(offset, size):
            block_offset, after = _wire.read_varint(self._data, start)
            block_size, _ = _wire.read_varint(self._data[:end], after)
            self._check_block(block_offset, block_size)
            self._blocks.append((block_offset, block_size))
            for key, value_start, value_end in self._read_block(block_offset, block_size):
                self._add(key, value_start, self._data[value_start:value_end])

    @staticmethod
    def _crc(data, offset, size):
        return crc32c(bytes(data[offset : offset + size + 1]))

    def _check_block(self, offset, size):
        compression, stored = struct.unpack_from("<BI", self._data, offset + size)
        if masked(self._crc(self._data, offset, size)) != stored:
            raise ExportError("a block's checksum is wrong: the file was altered")
        if compression != 0:
            raise ExportError("its blocks are compressed, which TensorFlow's are not")

    def _read_block(self, offset, size):
        """Yields key, and start and end of the value in the file, of each entry of a block."""
        block = self._data[: offset + size]
        (num_restarts,) = struct.unpack_from("<I", block, offset + size - 4)
        end = offset + size - 4 - 4 * num_restarts
        position, key = offset, b""
        while position < end:
            shared, position = _wire.read_varint(block, position)
            unshared, position = _wire.read_varint(block, position)
            value_size, position = _wire.read_varint(block, position)
            key = key[:shared] + block[position : position + unshared]
            start = position + unshared
            position = start + value_size
            yield key, start, position

    def _add(self, key, start, value):
        fields = _wire.read_fields(value)
        if key == b"":  # BundleHeaderProto
            header = {field.number: field.value for field in fields}
            self.num_shards = header.get(1, 1)
            if header.get(2, 0) != 0:
                raise ExportError("its tensors are big-endian")
            return
        by_number = {field.number: field for field in fields}
        number_of = {number: field.value for number, field in by_number.items()}
        dims = [dim.value for dim in _wire.read_fields(number_of.get(2, b"")) if dim.number == 2]
        crc = by_number.get(6)
        if not all(byte >= 32 for byte in key):
            return  # a slice of a sliced tensor; its own entry says so
        key = key.decode()
        self.entries[key] = TensorEntry(
            key=key,
            dtype=_DTYPES.get(number_of.get(1, 0), f"type {number_of.get(1, 0)}"),
            shape=tuple(_dim_size(dim) for dim in dims),
            shard=number_of.get(3, 0),
            offset=number_of.get(4, 0),
            size=number_of.get(5, 0),
            crc=0 if crc is None else crc.value,
            crc_position=None if crc is None else start + crc.start,
            is_sliced=7 in by_number,
        )

    def bytes_of(self, key, folder=None):
        """Returns a tensor's bytes in its data file: uint8 `[size]`, read when used."""
        entry = self.entries[key]
        path = self.data_path(entry.shard)
        if folder is not None:
            path = pathlib.Path(folder) / path.name
        if entry.size == 0:
            return np.zeros([0], np.uint8)
        return np.memmap(path, np.uint8, "r", entry.offset, (entry.size,))


def _dim_size(dim):
    return next((field.value for field in _wire.read_fields(dim) if field.number == 1), 0)
