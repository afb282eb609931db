"""The delta: what turns one published version into another.

A sealed file of kind "delta". Its header has, beside the sections,

    base, result   {id, version} of the version that it fits, and of the one that it makes
    tensors        one per variable of the model: {key, name, dtype, shape, table, change, num_rows}

where `change` is "none", "rows" (sections `N.ids`, int32 or int64 `[num_rows]`, ascending, and
`N.rows`, `[num_rows, ...]`) or "whole" (section `N.values`); N is the tensor's place in the list.
"""

import contextlib
import dataclasses
import math

import numpy as np

from tf_slipstream.delta import fields
from tf_slipstream.delta.dtypes import bytes_of_element
from tf_slipstream.delta.errors import ExportError
from tf_slipstream.delta.sealed_file import SealedFile, write_sealed
from tf_slipstream.delta.version_record import Tensor

KIND = "delta"
NONE, ROWS, WHOLE = "none", "rows", "whole"


@dataclasses.dataclass(frozen=True)
class VersionId:
    """A version: `id`, unlike any other's, and `version`, its number."""

    id: str
    version: int

    @classmethod
    def from_json(cls, value, what):
        kinds = {"id": fields.ID, "version": fields.COUNT}
        return cls(**fields.check_fields(value, what, **kinds))


@dataclasses.dataclass(frozen=True)
class Change:
    """What becomes of one tensor.

    Attributes:
        tensor: The `Tensor`.
        change: `NONE`, `ROWS` or `WHOLE`.
        num_rows: How many rows change, for `ROWS`; else 0.
    """

    tensor: Tensor
    change: str
    num_rows: int = 0

    def to_json(self):
        rest = {"change": self.change, "num_rows": self.num_rows}
        return dataclasses.asdict(self.tensor) | rest

    @classmethod
    def from_json(cls, value):
        own = {"change": fields.one_of(NONE, ROWS, WHOLE), "num_rows": fields.COUNT}
        fields.check_fields(value, "a tensor", **Tensor.KINDS, **own)
        tensor = {name: value[name] for name in Tensor.KINDS}
        change = cls(Tensor.from_json(tensor), value["change"], value["num_rows"])
        change._check()
        return change

    def _check(self):
        tensor = self.tensor
        if self.change != NONE and bytes_of_element(tensor.dtype) is None:
            raise ExportError(f"'{tensor.name}' is {tensor.dtype}, which a delta cannot change")
        least, most = 0, 0
        if self.change == ROWS:
            least, most = 1, tensor.shape[0] if tensor.shape else 0
        if not least <= self.num_rows <= most:
            raise ExportError(f"'{tensor.name}' has {self.num_rows} rows changed, of {most}")
        if self.change == ROWS and 0 in tensor.shape:
            raise ExportError(f"'{tensor.name}' has rows of no bytes")

    def section_sizes(self, number):
        """Returns the sections that a change has: dict from name to bytes.

        Args:
            number: The tensor's place in the list.
        """
        shape = self.tensor.shape
        if self.change == NONE:
            return {}
        element = bytes_of_element(self.tensor.dtype)
        if self.change == WHOLE:
            return {f"{number}.values": element * math.prod(shape)}
        return {
            f"{number}.ids": self.num_rows * _id_dtype(self.tensor).itemsize,
            f"{number}.rows": self.num_rows * element * math.prod(shape[1:]),
        }


@contextlib.contextmanager
def write_delta(path, base, result, changes):
    """Writes a delta, which appears at `path` when the block ends well.

    Args:
        path: The file to make.
        base: `VersionId` of the version that the delta fits.
        result: `VersionId` of the version that it makes.
        changes: One `(tensor, ids, values)` per variable: for rows, ids int64 `[num_rows]`,
            ascending, and an iterable of arrays that are their rows; for a whole tensor None and
            an iterable of arrays; for one that did not change None and None.

    Yields:
        List of `Change`.
    """
    written = []
    with write_sealed(path, KIND) as file:
        for number, (tensor, ids, values) in enumerate(changes):
            change = NONE
            if ids is not None and len(ids):
                change = ROWS
                file.add(f"{number}.ids", [ids.astype(_id_dtype(tensor))])
                file.add(f"{number}.rows", values)
            elif ids is None and values is not None:
                change = WHOLE
                file.add(f"{number}.values", values)
            written.append(Change(tensor, change, len(ids) if change == ROWS else 0))
        file.header["base"] = dataclasses.asdict(base)
        file.header["result"] = dataclasses.asdict(result)
        file.header["tensors"] = [change.to_json() for change in written]
        yield written


class DeltaFile:
    """A delta, opened: all that its header says is checked.

    Attributes:
        base: `VersionId` of the version that it fits.
        result: `VersionId` of the version that it makes.
        changes: List of `Change`, in the order of the model's variables.

    Raises:
        ExportError: If the file is no delta, of another format, cut off, altered or malformed.
    """

    def __init__(self, path):
        self.path = path
        self._file = SealedFile(path, KIND)
        with self._file.refusing():
            self._read(self._file.header)

    def _read(self, header):
        kinds = {"base": fields.OBJECT, "result": fields.OBJECT, "tensors": fields.LIST}
        fields.check_fields(header, "its header", **kinds)
        self.base = VersionId.from_json(header["base"], "its base")
        self.result = VersionId.from_json(header["result"], "its result")
        self.changes = [Change.from_json(value) for value in header["tensors"]]
        for name in ("key", "name"):
            values = [getattr(change.tensor, name) for change in self.changes]
            if len(set(values)) < len(values):
                raise ExportError(f"two of its tensors have the same {name}")
        needed = {}
        for number, change in enumerate(self.changes):
            needed |= change.section_sizes(number)
        if self._file.section_sizes != needed:
            raise ExportError("its sections are not those of its changes")

    def verify(self, progress=lambda num_bytes: None):
        """Checks every byte, and that the ids are rows of their tensors.

        Args:
            progress: Called with the number of bytes read since its last call.

        Raises:
            ExportError: If a byte was altered, or ids are outside a tensor or not ascending.
        """
        self._file.verify(progress)
        for number, change in enumerate(self.changes):
            if change.change == ROWS:
                ids = self.ids(number)
                if ids[0] < 0 or ids[-1] >= change.tensor.shape[0] or (ids[1:] <= ids[:-1]).any():
                    raise self._file.error(f"the ids of '{change.tensor.name}' make no sense")

    def ids(self, number):
        """Returns the changed rows' ids of a tensor, int `[num_rows]`. Call `verify` first."""
        return self._file.section(f"{number}.ids", _id_dtype(self.changes[number].tensor))

    def rows(self, number):
        """Returns the changed rows of a tensor, uint8 `[num_rows, row_bytes]`."""
        num_rows = self.changes[number].num_rows
        row_bytes = self._file.section_sizes[f"{number}.rows"] // num_rows
        return self._file.section(f"{number}.rows", np.uint8, (num_rows, row_bytes))

    def values(self, number):
        """Returns the bytes of a whole tensor: uint8 `[size]`."""
        return self._file.section(f"{number}.values")


def _id_dtype(tensor):
    return np.dtype("<i4") if tensor.shape[0] < 1 << 31 else np.dtype("<i8")
