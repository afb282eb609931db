"""The delta: what turns one published version into another.

A sealed file of kind "delta". Its header has, beside the sections,

    base, result   {id, version} of the version that it fits, and of the one that it makes
    tensors        one per variable of the model: {key, name, dtype, shape, table, change, num_rows}

where `change` is "none", "rows" (sections `N.ids`, int32 or int64 `[num_rows]`, ascending, and
`N.rows`, `[num_rows, ...]`) or "whole" (section `N.values`); N is the tensor's place in the list.
"""

import contextlib
import dataclasses

import numpy as np

from tf_slipstream.export.errors import ExportError
from tf_slipstream.export.sealed_file import SealedFile, write_sealed
from tf_slipstream.export.version_record import Tensor

KIND = "delta"
NONE, ROWS, WHOLE = "none", "rows", "whole"


@dataclasses.dataclass(frozen=True)
class VersionId:
    """A version: `id`, unlike any other's, and `version`, its number."""

    id: str
    version: int


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
        value = dict(value)
        change, num_rows = value.pop("change"), value.pop("num_rows")
        return cls(Tensor.from_json(value), change, num_rows)


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
    """A delta, opened.

    Attributes:
        base: `VersionId` of the version that it fits.
        result: `VersionId` of the version that it makes.
        changes: List of `Change`, in the order of the model's variables.

    Raises:
        ExportError: If the file is no delta, of another format, cut off, or altered.
    """

    def __init__(self, path):
        self.path = path
        self._file = SealedFile(path, KIND)
        header = self._file.header
        self.base = VersionId(**header["base"])
        self.result = VersionId(**header["result"])
        self.changes = [Change.from_json(value) for value in header["tensors"]]

    def verify(self, progress=lambda num_bytes: None):
        """Checks every byte; see `SealedFile.verify`."""
        self._file.verify(progress)

    def rows(self, number, row_bytes):
        """Returns ids int `[num_rows]` and rows uint8 `[num_rows, row_bytes]` of a tensor.

        Raises:
            ExportError: If an id is outside the tensor or they are not in ascending order.
        """
        tensor = self.changes[number].tensor
        ids = self._file.section(f"{number}.ids", _id_dtype(tensor))
        if ids[0] < 0 or ids[-1] >= tensor.shape[0] or (np.diff(ids) <= 0).any():
            raise ExportError(
                f"{self.path}: the ids of '{tensor.name}' make no sense: make it again"
            )
        return ids, self._file.section(f"{number}.rows", np.uint8, (len(ids), row_bytes))

    def values(self, number):
        """Returns the bytes of a whole tensor: uint8 `[size]`."""
        return self._file.section(f"{number}.values")


def _id_dtype(tensor):
    return np.dtype("<i4") if tensor.shape[0] < 1 << 31 else np.dtype("<i8")
