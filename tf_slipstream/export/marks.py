"""Which rows changed from one published version to another, whatever was restored in between.

Publishing puts a *mark*: a random number, kept in the optimizer's state and so saved and restored
with it, and a bitmap per table of the rows written since the mark before, its parent. Marks form a
tree: restoring an older checkpoint goes back to the mark that it was saved under. Rows that differ
between any two marks were written on the way from one to the other, up the tree and down again.
"""

import dataclasses
import pathlib
import zlib

import numpy as np

from tf_slipstream.delta import fields
from tf_slipstream.delta.errors import ExportError
from tf_slipstream.delta.sealed_file import SealedFile, write_sealed
from tf_slipstream.delta.version_record import Tensor

KIND = "mark"
# By field of a mark's file, what it must be.
_KINDS = {
    "id": fields.COUNT,
    "version": fields.COUNT,
    "sequence": fields.COUNT,
    "tensors": fields.LIST,
    "digests": fields.values_are(fields.SHA256),
    "parents": fields.values_are(fields.COUNT),
}


@dataclasses.dataclass(frozen=True)
class Mark:
    """A published version, as the training process remembers it.

    Attributes:
        id: Positive int below `2**63`.
        version: The version's number.
        sequence: Counts marks; of two marks of one version the later counts.
        tensors: Tuple of `Tensor`, in the order of the model's variables.
        digests: Dict from the key of each tensor without a table to its value's SHA-256.
        parents: Dict from a table's name to the id of the mark before; 0: none.
        bitmaps: Dict from a table's name to the rows written since then, 1 bit each, compressed.
    """

    id: int
    version: int
    sequence: int
    tensors: tuple
    digests: dict
    parents: dict
    bitmaps: dict


def pack_bitmap(words):
    """Compresses the bits of int32 words."""
    return zlib.compress(words.astype("<i4").tobytes(), 1)


def unpack_bitmap(data, num_bytes):
    """Returns the bits that `pack_bitmap` compressed: uint8 `[bytes]`.

    Args:
        data: Bytes.
        num_bytes: How many there should be. Of more, which a small file may hold, one is read.

    Raises:
        ExportError: If it did not make this.
    """
    try:
        return np.frombuffer(zlib.decompressobj().decompress(data, num_bytes + 1), np.uint8)
    except zlib.error as error:
        raise ExportError(f"the rows of a mark cannot be read ({error})") from None


class MarkStore:
    """The marks of a training run.

    Args:
        directory: Folder with a file per mark; made when it is missing. None: marks are kept in
            memory only.
        max_marks: How many are kept by `prune`.
    """

    def __init__(self, directory, max_marks):
        self._directory = None if directory is None else pathlib.Path(directory)
        self._max_marks = max_marks
        self._marks = {}
        if self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
            for path in sorted(self._directory.glob("*.mark")):
                mark = _read_mark(path)
                self._marks[mark.id] = mark

    @property
    def versions(self):
        """Numbers of the versions that are marked, ascending."""
        return sorted({mark.version for mark in self._marks.values()})

    @property
    def next_sequence(self):
        return 1 + max((mark.sequence for mark in self._marks.values()), default=0)

    def of_version(self, version):
        """Returns the latest mark of a version; None where there is none."""
        marks = (mark for mark in self._marks.values() if mark.version == version)
        return max(marks, key=lambda mark: mark.sequence, default=None)

    def add(self, mark):
        """Keeps a mark; when this returns it is on the disk."""
        if self._directory is not None:
            _write_mark(self._path(mark), mark)
        self._marks[mark.id] = mark

    def discard(self, mark):
        """Forgets a mark, one that nothing was published under, say."""
        del self._marks[mark.id]
        if self._directory is not None:
            self._path(mark).unlink(missing_ok=True)

    def prune(self):
        """Forgets all marks but the latest `max_marks`.

        The way between two marks leads through later ones than the earlier of the two, unless an
        older checkpoint was restored. So what is kept stays of use without what is not.
        """
        marks = sorted(self._marks.values(), key=lambda mark: mark.sequence)
        for mark in marks[: -self._max_marks]:
            self.discard(mark)

    def changed_between(self, table, start, end, num_bytes):
        """Returns the rows of a table that may differ between two marks.

        Args:
            table: The table's name.
            start: A mark's id.
            end: A mark's id.
            num_bytes: Of the table's bitmap.

        Returns:
            List of bitmaps, uint8 `[bytes]`, to be joined; None where the marks have no common
            ancestor here, so that nothing is known.
        """
        before_start, before_end = self._line(table, start), self._line(table, end)
        common = next((mark for mark in before_start if mark in before_end), None)
        if common is None:
            return None
        way = before_start[: before_start.index(common)] + before_end[: before_end.index(common)]
        return [unpack_bitmap(self._marks[mark].bitmaps[table], num_bytes) for mark in way]

    def _line(self, table, mark):
        """Returns the ids of a mark and the marks before it, as far as they are known."""
        line = []
        while mark in self._marks and table in self._marks[mark].parents and mark not in line:
            line.append(mark)
            mark = self._marks[mark].parents[table]
        return line

    def _path(self, mark):
        return self._directory / f"{mark.sequence:08d}-{mark.id:016x}.mark"


def _write_mark(path, mark):
    with write_sealed(path, KIND) as file:
        for name, bitmap in mark.bitmaps.items():
            file.add(name, [bitmap])
        header = dataclasses.asdict(mark)
        del header["bitmaps"]
        file.header["mark"] = header


def _read_mark(path):
    file = SealedFile(path, KIND)
    with file.refusing():
        header = fields.check_fields(file.header, "its header", mark=fields.OBJECT)["mark"]
        fields.check_fields(header, "its mark", **_KINDS)
        header["tensors"] = tuple(map(Tensor.from_json, header["tensors"]))
        if set(file.section_sizes) != set(header["parents"]):
            raise ExportError("its sections are not its tables")
    file.verify()
    bitmaps = {name: file.section(name).tobytes() for name in header["parents"]}
    return Mark(**header, bitmaps=bitmaps)
