"""Compares a checkpoint's data files with the checksums that are in its index.

TensorFlow does so when it loads a tensor. Here it is done before anything is made of it.
"""

import math

import numpy as np

from tf_slipstream.delta import wire
from tf_slipstream.delta.crc32c import crc32c, crc32c_of_read, masked
from tf_slipstream.delta.dtypes import bytes_of_element
from tf_slipstream.delta.errors import ExportError
from tf_slipstream.delta.file_ranges import read_at

_UINT32_MAX = (1 << 32) - 1


def verify_tensors(index, progress=lambda num_bytes: None):
    """Reads every tensor of a checkpoint and compares its checksum.

    Args:
        index: `TensorIndex`.
        progress: Called with the number of bytes read since its last call.

    Returns:
        Keys of the tensors whose type has no checksum that can be worked out here.

    Raises:
        ExportError: If a tensor was altered, or a data file is missing or of another size.
    """
    index.check_data_files()
    unverified = []
    stored = [entry for entry in index.entries.values() if not entry.is_sliced]
    for entry in sorted([*stored, *index.slices], key=lambda entry: (entry.shard, entry.offset)):
        is_string = entry.dtype == "string"
        if not is_string and bytes_of_element(entry.dtype) is None:
            unverified.append(entry.key)
            continue
        path = index.data_path(entry.shard)
        with open(path, "rb", buffering=0) as file:
            crc = (_crc_of_strings if is_string else _crc_of_bytes)(file, entry, progress)
        if crc is None or masked(crc) != entry.crc:
            raise ExportError(
                f"{path} was altered: tensor {entry.key} does not have its checksum; copy the "
                "version again"
            )
    return unverified


def _crc_of_bytes(file, entry, progress):
    done = entry.offset

    def read(buffer):
        nonlocal done
        read_at(file, buffer, done)
        done += buffer.size
        progress(buffer.size)

    return crc32c_of_read(read, entry.size)


def _crc_of_strings(file, entry, progress):
    """Returns the CRC-32C of a tensor of strings; None where their lengths make no sense.

    The file has a varint for the length of each, the masked CRC-32C of the lengths, and the
    strings. The checksum is that of lengths of 4 bytes each, or 8 where they need these, and of
    what follows the varints.
    """
    data = np.empty([entry.size], np.uint8)
    read_at(file, data, entry.offset)
    progress(entry.size)
    data, position, lengths, total = data.tobytes(), 0, bytearray(), 0
    try:
        for _ in range(math.prod(entry.shape)):
            length, position = wire.read_varint(data, position)
            lengths += length.to_bytes(4 if length <= _UINT32_MAX else 8, "little")
            total += length
    except ExportError:
        return None
    stored, strings = data[position : position + 4], data[position + 4 :]
    if len(strings) != total or int.from_bytes(stored, "little") != masked(crc32c(lengths)):
        return None
    return crc32c(bytes(lengths) + stored + strings)
