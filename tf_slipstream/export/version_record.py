"""What a published version says about itself: `assets.extra/slipstream.json`.

`assets.extra` is the place that SavedModel leaves to others; TensorFlow reads nothing there.
"""

import dataclasses
import hashlib
import json
import pathlib

from tf_slipstream.export.errors import ExportError
from tf_slipstream.export.tensor_index import TensorIndex

FORMAT = 1
RECORD = pathlib.PurePath("assets.extra", "slipstream.json")
INDEX = pathlib.PurePath("variables", "variables.index")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A variable of the published model.

    Attributes:
        key: Its key in the checkpoint.
        name: The variable's name.
        dtype: TensorFlow's name of its type.
        shape: Tuple.
        table: The table's name where it is one whose changes are tracked, else None.
    """

    key: str
    name: str
    dtype: str
    shape: tuple
    table: str | None

    @classmethod
    def from_json(cls, value):
        return cls(**value | {"shape": tuple(value["shape"])})


@dataclasses.dataclass(frozen=True)
class VersionRecord:
    """The identity of a version.

    Attributes:
        id: 16 hexadecimal digits, another for every version published.
        version: Its number.
        tensors: Tuple of `Tensor`, in the order of the model's variables.
        index_sha256: SHA-256 of `variables.index`, and with it of the checksums of all tensors.
    """

    id: str
    version: int
    tensors: tuple
    index_sha256: str

    def write(self, folder):
        """Writes it into a version's folder."""
        path = pathlib.Path(folder, RECORD)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"format": FORMAT} | dataclasses.asdict(self)))


class PublishedVersion:
    """A version's folder: its record, and the index of its checkpoint.

    Raises:
        ExportError: If the folder is not one that `save_version` or `apply-delta` made, or if its
            variables are not those that it was published with.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        if not (self.folder / INDEX).is_file():
            raise ExportError(f"{folder} is not a SavedModel: there is no {self.folder / INDEX}")
        self.index = TensorIndex(self.folder / INDEX)
        self.record = read_record(folder)
        if self.record is None:
            raise ExportError(
                f"{folder} cannot be a base: it has no {RECORD}; publish with "
                "slipstream.export.save_version, not with model.export"
            )
        if sha256(self.index.data_bytes) != self.record.index_sha256:
            raise ExportError(
                f"{self.folder / INDEX} is not the one that this version was published with: "
                "copy the version again"
            )
        self._check_data_files()

    def _check_data_files(self):
        needed = {}
        for entry in self.index.entries.values():
            needed[entry.shard] = max(needed.get(entry.shard, 0), entry.offset + entry.size)
        for shard, size in needed.items():
            path = self.index.data_path(shard)
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                raise ExportError(
                    f"{path} has {found} bytes where {size} belong: copy the version again"
                    if found is not None
                    else f"{path} is missing: copy the version again"
                )


def read_record(folder):
    """Returns a version's `VersionRecord`; None where it has none."""
    path = pathlib.Path(folder, RECORD)
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text())
        if value.pop("format") != FORMAT:
            raise ValueError("another format")
        tensors = tuple(map(Tensor.from_json, value.pop("tensors")))
        return VersionRecord(tensors=tensors, **value)
    except (ValueError, TypeError, KeyError) as error:
        raise ExportError(f"{path} cannot be read ({error}): copy the version again") from None


def sha256(data):
    """Returns the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
