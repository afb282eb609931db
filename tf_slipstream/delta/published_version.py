"""A version's folder, as the base of the next."""

import pathlib

from tf_slipstream.delta.errors import ExportError
from tf_slipstream.delta.tensor_index import TensorIndex
from tf_slipstream.delta.verification import verify_tensors
from tf_slipstream.delta.version_record import INDEX, RECORD, files_of, read_record, sha256


class PublishedVersion:
    """A version's folder: its record, and the index of its checkpoint.

    Args:
        folder: The folder.

    Attributes:
        folder: The folder, a `pathlib.Path`.
        index: `TensorIndex` of its variables.
        record: Its `VersionRecord`.

    Raises:
        ExportError: If the folder is not one that `save_version` or `apply-delta` made, or if its
            variables are not those that it was published with.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.index = index_of_saved_model(folder)
        self.record = read_record(folder)
        if self.record is None:
            raise ExportError(
                f"{folder} cannot be a base: it has no {RECORD}; publish with "
                "slipstream.export.save_version, not with model.export"
            )
        check_index(self.record, self.index)
        self.index.check_data_files()

    def verify(self, progress=lambda num_bytes: None):
        """Checks every byte that there is a checksum of; see `verify_saved_model`."""
        return verify_saved_model(self.folder, self.index, self.record, progress)


def index_of_saved_model(folder):
    """Returns the `TensorIndex` of a SavedModel's variables."""
    path = pathlib.Path(folder, INDEX)
    if not path.is_file():
        raise ExportError(f"{folder} is not a SavedModel: there is no {path}")
    return TensorIndex(path)


def check_index(record, index):
    """Checks that the index is the one that the version was published with.

    Raises:
        ExportError: If it is not.
    """
    if sha256(index.data_bytes) != record.index_sha256:
        raise ExportError(
            f"{index.path} is not the one that this version was published with: copy the version "
            "again"
        )


def verify_saved_model(folder, index, record, progress=lambda num_bytes: None):
    """Checks every byte of a SavedModel that there is a checksum of.

    Args:
        folder: Its folder.
        index: `TensorIndex` of its variables.
        record: Its `VersionRecord`; None where it has none.
        progress: Called with the number of bytes of the variables read since its last call.

    Returns:
        Names of files and keys of tensors that there is no checksum of: what a user has added, and
        the graph and assets of a SavedModel without a record, or with one of format 1.

    Raises:
        ExportError: If a byte was altered, or a file is missing.
    """
    known = {} if record is None else record.files
    actual = files_of(folder)
    for name, digest in known.items():
        if actual.get(name) != digest:
            what = "was altered" if name in actual else "is missing"
            raise ExportError(f"{pathlib.Path(folder, name)} {what}: copy the version again")
    return [*(name for name in actual if name not in known), *verify_tensors(index, progress)]
