"""What a published version says about itself: `assets.extra/slipstream.json`.

`assets.extra` is the place that SavedModel leaves to others; TensorFlow reads nothing there.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import typing

from tf_slipstream.delta import fields
from tf_slipstream.delta.errors import ExportError
from tf_slipstream.file_errors import naming, read_bytes

# Format 1 has neither `files` nor `sha256`.
FORMAT = 2
RECORD = pathlib.PurePath("assets.extra", "slipstream.json")
INDEX = pathlib.PurePath("variables", "variables.index")
_READ_BYTES = 1 << 20


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

    # By field, what it must be in JSON.
    KINDS: typing.ClassVar = {
        "key": fields.TEXT,
        "name": fields.TEXT,
        "dtype": fields.TEXT,
        "shape": fields.COUNTS,
        "table": fields.TEXT_OR_NULL,
    }

    @classmethod
    def from_json(cls, value):
        fields.check_fields(value, "a tensor", **cls.KINDS)
        return cls(**value | {"shape": tuple(value["shape"])})


@dataclasses.dataclass(frozen=True)
class VersionRecord:
    """The identity of a version.

    Attributes:
        id: 16 hexadecimal digits, another for every version published.
        version: Its number.
        tensors: Tuple of `Tensor`, in the order of the model's variables.
        index_sha256: SHA-256 of `variables.index`, and with it of the checksums of all tensors.
        files: Dict from each other file of the version, the graph say, to its SHA-256.
    """

    id: str
    version: int
    tensors: tuple
    index_sha256: str
    files: dict

    def write(self, folder):
        """Writes it into a version's folder."""
        path = pathlib.Path(folder, RECORD)
        path.parent.mkdir(exist_ok=True)
        value = {"format": FORMAT} | dataclasses.asdict(self)
        path.write_text(json.dumps(value | {"sha256": _digest_of(value)}))


def read_record(folder):
    """Returns a version's `VersionRecord`; None where it has none.

    Raises:
        ExportError: If it is altered or malformed.
    """
    path = pathlib.Path(folder, RECORD)
    if not path.is_file():
        return None
    try:
        return _record_of(fields.read_json(read_bytes(path)))
    except ExportError as error:
        raise ExportError(f"{path} cannot be read ({error}): copy the version again") from None


def files_of(folder):
    """Returns the files of a version that its record has the SHA-256 of: dict to this.

    These are all but the record, and the variables, which have checksums of their own.
    """
    digests = {}
    for path in paths_in(folder):
        name = path.relative_to(folder)
        if path.is_file() and name != RECORD and name.parts[0] != INDEX.parts[0]:
            digests[name.as_posix()] = sha256_of_file(path)
    return digests


def paths_in(folder):
    """Yields the paths of the folders and files in a version's folder, which may be a link itself.

    Raises:
        ExportError: If a link in it leads out of it or to a folder: who makes a version must not
            have the files of others read, copied and served, nor have us go round in circles.
    """
    inside = os.path.realpath(folder)
    for parent, folders, names in os.walk(folder):
        for name in (*sorted(folders), *sorted(names)):
            path = pathlib.Path(parent, name)
            if path.is_symlink():
                target = os.path.realpath(path)
                if not (target.startswith(inside + os.sep) and os.path.isfile(target)):
                    raise ExportError(
                        f"{path} is a link that leads out of the version, to a folder or to "
                        "nothing: put a copy in its place"
                    )
            elif not path.is_file() and not path.is_dir():
                raise ExportError(f"{path} is neither a file nor a folder: remove it")
            yield path


def sha256(data):
    """Returns the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path):
    """Returns the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with naming(path), open(path, "rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _record_of(value):
    file_format = value.pop("format", None)
    if file_format not in (1, FORMAT):
        raise ExportError(f"its format is not 1 or {FORMAT}")
    kinds = {
        "id": fields.ID,
        "version": fields.COUNT,
        "tensors": fields.LIST,
        "index_sha256": fields.SHA256,
    }
    if file_format == FORMAT:
        kinds |= {"files": fields.values_are(fields.SHA256), "sha256": fields.SHA256}
    fields.check_fields(value, "it", **kinds)
    digest = value.pop("sha256", None)
    if digest is not None and digest != _digest_of({"format": file_format} | value):
        raise ExportError("it was altered")
    tensors = tuple(map(Tensor.from_json, value.pop("tensors")))
    return VersionRecord(tensors=tensors, **{"files": {}} | value)


def _digest_of(value):
    """Returns the SHA-256 of a record's fields, whatever their order."""
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
