"""A container in which no altered byte goes unseen.

    8 bytes    magic
    sections   bytes, one after the other
    header     JSON: {"format": 1, "kind": ..., "sections": [{name, size, sha256}], ...}
    32 bytes   SHA-256 of the header
    8 bytes    size of the header, little-endian
    8 bytes    magic

The header is at the end, so that sections are written as they come. Arrays in sections are
little-endian, in C order. The seal shows damage. It does not show who wrote the file: whoever can
write it can seal it as well, so every field is checked before it is used.
"""

import contextlib
import hashlib
import json
import os
import struct

import numpy as np

from tf_slipstream.delta import atomic, fields
from tf_slipstream.delta.errors import ExportError
from tf_slipstream.file_errors import naming

FORMAT = 1
_MAGIC = b"SLIPSTRM"
_TAIL = struct.Struct("<32sQ8s")
_READ_BYTES = 4 << 20


class SealedWriter:
    """Writes a file's sections; `write_sealed` makes one.

    Attributes:
        header: Dict that becomes the header; to be filled by the user.
    """

    def __init__(self, file, kind):
        self._file = file
        self.header = {"format": FORMAT, "kind": kind, "sections": []}
        file.write(_MAGIC)

    def add(self, name, arrays):
        """Writes a section: arrays, or bytes, one after the other."""
        digest, size = hashlib.sha256(), 0
        for array in arrays:
            data = memoryview(np.ascontiguousarray(np.frombuffer(array, np.uint8)))
            digest.update(data)
            self._file.write(data)
            size += len(data)
        section = {"name": name, "size": size, "sha256": digest.hexdigest()}
        self.header["sections"].append(section)

    def close(self):
        """Writes the header, after which the file is complete."""
        header = json.dumps(self.header, separators=(",", ":")).encode()
        digest = hashlib.sha256(header).digest()
        self._file.write(header + _TAIL.pack(digest, len(header), _MAGIC))


@contextlib.contextmanager
def write_sealed(path, kind):
    """Gives a `SealedWriter`; the file appears at `path`, whole, when the block ends well."""
    with atomic.new_file(path) as file:
        writer = SealedWriter(file, kind)
        yield writer
        writer.close()


class SealedFile:
    """A sealed file, opened. Its header is checked here, and its sections by `verify`.

    Args:
        path: The file.
        kind: What the file must be.

    Attributes:
        header: Dict of what the kind of file has in its header, not checked.
        section_sizes: Dict from a section's name to its bytes, in the file's order.

    Raises:
        ExportError: If the file is of another kind or format, cut off, altered or malformed.
    """

    def __init__(self, path, kind):
        self.path, self.kind = path, kind
        with naming(path), open(path, "rb") as file:
            data = self._read_header(file)
        with self.refusing():
            self.header = fields.read_json(data)
            file_format = self._pop(format=fields.COUNT)
            file_kind = self._pop(kind=fields.TEXT)
        if file_kind != kind:
            raise self.error(f"it is a {file_kind}")
        if file_format != FORMAT:
            raise ExportError(
                f"{path} has format {file_format}, and this program reads format {FORMAT}: use "
                "the release of tf_slipstream that wrote it"
            )
        with self.refusing():
            self._sections = self._places_of(self._pop(sections=fields.LIST))
        self.section_sizes = {name: size for name, (_, size, _) in self._sections.items()}

    def _read_header(self, file):
        size = os.fstat(file.fileno()).st_size
        start = file.read(len(_MAGIC))
        if start != _MAGIC[: len(start)] or not start:
            raise self.error("it does not begin as one")
        if size < len(_MAGIC) + _TAIL.size:
            raise self.error("it is cut off")
        file.seek(size - _TAIL.size)
        digest, header_size, magic = _TAIL.unpack(file.read(_TAIL.size))
        self._header_offset = size - _TAIL.size - header_size
        if magic != _MAGIC or self._header_offset < len(_MAGIC):
            raise self.error("it is cut off, or its end was altered")
        file.seek(self._header_offset)
        header = file.read(header_size)
        if hashlib.sha256(header).digest() != digest:
            raise self.error("its header was altered")
        return header

    def _pop(self, **kind):
        """Takes a field out of the header, after a check of its kind."""
        (name,) = kind
        found = {name: self.header.pop(name)} if name in self.header else {}
        return fields.check_fields(found, "its header", **kind)[name]

    def _places_of(self, sections):
        """Returns where sections are: dict from name to offset, size and SHA-256."""
        places, offset = {}, len(_MAGIC)
        kinds = {"name": fields.TEXT, "size": fields.COUNT, "sha256": fields.SHA256}
        for section in sections:
            fields.check_fields(section, "a section", **kinds)
            if section["name"] in places:
                raise ExportError(f"it has two sections '{section['name']}'")
            places[section["name"]] = (offset, section["size"], section["sha256"])
            offset += section["size"]
        if offset != self._header_offset:
            raise ExportError("its sections do not add up to its size")
        return places

    def verify(self, progress=lambda num_bytes: None):
        """Checks every section, reading the file once.

        Args:
            progress: Called with the number of bytes read since its last call.

        Raises:
            ExportError: If a section was altered.
        """
        with naming(self.path), open(self.path, "rb") as file:
            for name, (offset, size, sha256) in self._sections.items():
                file.seek(offset)
                digest = hashlib.sha256()
                while size > 0:
                    data = file.read(min(size, _READ_BYTES))
                    if not data:
                        break
                    digest.update(data)
                    size -= len(data)
                    progress(len(data))
                if digest.hexdigest() != sha256:
                    raise self.error(f"its section '{name}' was altered")

    def section(self, name, dtype=np.uint8, shape=(-1,)):
        """Returns a section as an array, read when used. Call `verify` first."""
        offset, size, _ = self._sections[name]
        if size == 0:
            return np.zeros([0], dtype).reshape([0, *shape[1:]] if len(shape) > 1 else [0])
        # A plain array: indexing is slow in np.memmap itself.
        data = np.asarray(np.memmap(self.path, np.uint8, "r", offset, (size,)))
        return data.view(dtype).reshape(shape)

    @contextlib.contextmanager
    def refusing(self):
        """Has an `ExportError` of the block say that this file is refused, and why."""
        try:
            yield
        except ExportError as error:
            raise self.error(error) from None

    def error(self, reason):
        """Returns the `ExportError` that says why this file is refused."""
        return ExportError(
            f"{self.path} is not an intact {self.kind} of tf_slipstream ({reason}): make or copy "
            "it again"
        )
