"""Makes the next version's folder from its base and a delta."""

import dataclasses
import os
import pathlib

from tf_slipstream.delta import atomic, file_ranges
from tf_slipstream.delta.delta_file import NONE, ROWS, DeltaFile
from tf_slipstream.delta.errors import ExportError
from tf_slipstream.delta.fingerprint import updated_fingerprint
from tf_slipstream.delta.patched_copy import copy_patched
from tf_slipstream.delta.published_version import PublishedVersion
from tf_slipstream.delta.version_record import INDEX, RECORD, VersionRecord, paths_in, sha256
from tf_slipstream.file_errors import read_bytes

_FINGERPRINT = pathlib.PurePath("fingerprint.pb")


@dataclasses.dataclass(frozen=True)
class AppliedDelta:
    """What was done.

    Attributes:
        out: The folder made.
        version: The number of the version that is in it.
        num_rows: Rows that were changed, by table or variable.
        num_bytes: Bytes of the version's files.
        is_verified: Whether the base was compared with its checksums.
        unverified: Of a base that was, names of files that it has no checksum of.
    """

    out: str
    version: int
    num_rows: dict
    num_bytes: int
    is_verified: bool
    unverified: tuple


def apply_delta(base, delta, out, progress=None, *, verify=True):
    """Makes the folder of a version from that of its base and a delta.

    The variables get the bits that a full export would have. Files that do not change, the graph
    and its assets say, are the base's, hard-linked where possible. Needs no TensorFlow.

    Args:
        base: Folder of the version that the delta was made against.
        delta: The delta's file.
        out: The folder to make, `models/m/2` say. It appears when it is complete.
        progress: None, or called with what is being done, bytes done, and bytes in all.
        verify: Whether to compare all of the base with its checksums first. Without it what is
            damaged in the base is damaged in the version made, which TensorFlow then refuses.

    Returns:
        `AppliedDelta`.

    Raises:
        ExportError: If the delta does not fit the base, one of them is incomplete, altered or
            malformed, or `out` exists. Nothing has been made then.
        OSError: If the file system fails, the disk being full, say. Nothing has been made then.
    """
    delta, base = DeltaFile(delta), PublishedVersion(base)
    _check_fit(base, delta)
    base_bytes = sum(base.index.shard_sizes.values()) if verify else 0
    count = _counter(progress, "checking", os.path.getsize(delta.path) + base_bytes)
    delta.verify(count)
    unverified = base.verify(count) if verify else ()
    with atomic.new_folder(out) as folder:
        index = _copy_files(base, delta, folder, progress)
        (folder / INDEX).write_bytes(index)
        files = base.record.files | _write_fingerprint(base, delta, folder, index)
        tensors = tuple(change.tensor for change in delta.changes)
        result = delta.result
        VersionRecord(result.id, result.version, tensors, sha256(index), files).write(folder)
        num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if progress is not None:
            progress("waiting for the disk", num_bytes, num_bytes)
    num_rows = {c.tensor.name: c.num_rows for c in delta.changes if c.change == ROWS}
    return AppliedDelta(str(out), result.version, num_rows, num_bytes, verify, tuple(unverified))


def _check_fit(base, delta):
    if base.record.id != delta.base.id:
        raise ExportError(
            f"{delta.path} changes version {delta.base.version} (id {delta.base.id}), and "
            f"{base.folder} is version {base.record.version} (id {base.record.id}): use the delta "
            "or the base that belongs to it"
        )
    for change in delta.changes:
        tensor = change.tensor
        entry = base.index.entries.get(tensor.key)
        if entry is None:
            raise ExportError(
                f"{base.folder} has no variable {tensor.key} ('{tensor.name}'): the delta is of "
                "another model"
            )
        if (entry.dtype, entry.shape) != (tensor.dtype, tensor.shape):
            raise ExportError(
                f"'{tensor.name}' is {entry.dtype} {list(entry.shape)} in {base.folder}, and "
                f"{tensor.dtype} {list(tensor.shape)} in the delta: publish a full version"
            )
        if entry.is_sliced and change.change != NONE:
            raise ExportError(
                f"'{tensor.name}' is stored in slices in {base.folder}, which a delta cannot "
                "change: publish a full version"
            )


def _copy_files(base, delta, folder, progress):
    """Links the base's files, and copies those that change; returns the index that fits them."""
    entries = base.index.entries
    shards = {entries[c.tensor.key].shard for c in delta.changes if c.change != NONE}
    changing = {base.index.data_path(shard): shard for shard in shards}
    count = _counter(progress, "copying", sum(path.stat().st_size for path in changing))
    left_out = {base.folder / name for name in (INDEX, RECORD, _FINGERPRINT)}
    crcs = {}
    for path in paths_in(base.folder):
        target = folder / path.relative_to(base.folder)
        if path.is_dir():
            target.mkdir()
        elif path in changing:
            crcs |= copy_patched(base, delta, changing[path], target, count)
        elif path not in left_out:
            file_ranges.link_file(path, target)
    return base.index.patched(crcs)


def _write_fingerprint(base, delta, folder, index):
    """Writes the new version's fingerprint, if its base has one; returns its SHA-256 by name."""
    path = base.folder / _FINGERPRINT
    if not path.is_file():  # releases of TensorFlow before 2.12 write none
        return {}
    # From the delta, so that every host makes the same files.
    uuid = int(sha256(f"{delta.result.id} {sha256(index)}".encode())[:32], 16)
    try:
        fingerprint = updated_fingerprint(read_bytes(path), index, uuid)
    except ExportError as error:
        raise ExportError(f"{path} cannot be read ({error}): copy the version again") from None
    (folder / _FINGERPRINT).write_bytes(fingerprint)
    return {_FINGERPRINT.name: sha256(fingerprint)}


def _counter(progress, what, total):
    """Returns a function that adds up bytes and tells `progress` of them."""
    done = 0

    def count(num_bytes):
        nonlocal done
        done += num_bytes
        if progress is not None:
            progress(what, done, total)

    return count
