"""Publishes what changed since a version."""

import dataclasses
import os

import numpy as np
import tensorflow as tf

from tf_slipstream.delta.delta_file import ROWS, VersionId, write_delta
from tf_slipstream.delta.errors import ExportError
from tf_slipstream.delta.published_version import PublishedVersion
from tf_slipstream.export import model_variables
from tf_slipstream.export.tracker import tracker_of
from tf_slipstream.export.versions import as_number, publication

# Rows that are compared at a time.
_CHUNK_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class SavedDelta:
    """What was published.

    Attributes:
        path: The delta's file.
        base_version: Number of the version that it fits.
        version: Number of the version that it makes.
        num_rows: Rows that it changes, by table or variable.
        num_bytes: Bytes of the file.
    """

    path: str
    base_version: int
    version: int
    num_rows: dict
    num_bytes: int


def save_delta(model, base_version, path, *, version=None, tracker=None):
    """Publishes what changed since a version, for `tf-slipstream apply-delta`.

    The file has the changed rows of every table, and every other variable that changed, whole. It
    is as good as a full version at this step: later deltas may be made against it.

    Args:
        model: The model that `save_version` published, or one made like it.
        base_version: Number of a version that was published with the model's `DeltaTracker`: what
            changed is then known without looking. Or the folder of a version: then every value is
            compared with it, which takes as long as reading it, and sees every change.
        path: File to make. It appears when it is complete.
        version: Number of the version that the delta makes. None: 1 more than the latest.
        tracker: `DeltaTracker` that marks the version. None: the model's.

    Returns:
        `SavedDelta`.

    Raises:
        ExportError: If the base is not known or is of another model, or if a string variable
            changed, which a delta cannot hold. Nothing has been published then.
    """
    tracker = tracker_of(model) if tracker is None else tracker
    variables = model_variables.model_variables(model)
    tables = [] if tracker is None else tracker.tables.values()
    tensors = model_variables.describe(variables, tables)
    by_number = isinstance(base_version, (int, np.integer))
    if by_number:
        base = _marked(tracker, int(base_version), tensors)
        base_id = VersionId(f"{base.id:016x}", base.version)
    else:
        base = PublishedVersion(base_version)
        base.verify()
        _check_same_model(str(base_version), base.record.tensors, tensors)
        base_id = VersionId(base.record.id, base.record.version)
    if version is None:
        version = 1 + max([base_id.version, *([] if tracker is None else tracker.versions)])
    version = as_number(version)
    with publication(tracker, version, variables, tensors) as (version_id, mark):
        if by_number:
            changed = _since_mark(tracker, base, mark, variables, tensors)
        else:
            changed = _since_folder(base, base_version, variables, tensors)
        changes = ((tensor, *changed[tensor.key]) for tensor in tensors)
        with write_delta(path, base_id, VersionId(version_id, version), changes) as written:
            pass
    if not by_number:
        for tensor in tensors:
            # So that later deltas see what was not seen when it changed.
            if tensor.table is not None:
                tracker.mark_rows(tensor.table, changed[tensor.key][0])
    num_rows = {change.tensor.name: change.num_rows for change in written if change.change == ROWS}
    return SavedDelta(str(path), base_id.version, version, num_rows, os.path.getsize(path))


def _marked(tracker, version, tensors):
    """Returns the `Mark` of a base."""
    if tracker is None:
        raise ExportError(
            f"what changed since version {version} is not known: make a DeltaTracker before "
            "publishing, or give the folder of the base instead of its number"
        )
    mark = tracker.mark_of(version)
    _check_same_model(f"version {version}", mark.tensors, tensors)
    return mark


def _since_mark(tracker, base, mark, variables, tensors):
    """Returns by key what changed from a mark to another, as the tracker knows it."""
    rows = tracker.rows_between(base, mark)
    changed = {}
    for tensor in tensors:
        variable = variables[tensor.key]
        if tensor.table is not None:
            ids = rows[tensor.table]
            changed[tensor.key] = (ids, model_variables.rows_of(variable, ids))
        elif base.digests[tensor.key] == model_variables.digest_of(variable):
            changed[tensor.key] = (None, None)
        else:
            changed[tensor.key] = (None, _whole(variable, tensor))
    return changed


def _since_folder(base, folder, variables, tensors):
    """Returns by key what changed since a `PublishedVersion`, comparing every value."""
    changed = {}
    for tensor in tensors:
        variable, old = variables[tensor.key], base.index.bytes_of(tensor.key)
        if tensor.dtype == "string":
            changed[tensor.key] = (None, None)
            _check_strings(folder, tensor, variable)
            continue
        if len(tensor.shape) == 2 and tensor.shape[0] > 1:
            ids = _differing_rows(variable, old)
            if len(ids) * 2 < tensor.shape[0] or tensor.table is not None:
                changed[tensor.key] = (ids, model_variables.rows_of(variable, ids))
                continue
        is_same = np.array_equal(model_variables.value_of(variable), old)
        changed[tensor.key] = (None, None if is_same else _whole(variable, tensor))
    return changed


def _differing_rows(variable, old):
    """Returns the rows whose bits differ from `old`, uint8 `[size]`: int64 `[num_differing]`."""
    num_rows = variable.shape[0]
    row_bytes = old.size // num_rows
    step = max(1, _CHUNK_BYTES // max(1, row_bytes))
    differing = []
    for first in range(0, num_rows, step):
        ids = np.arange(first, min(first + step, num_rows))
        (new,) = model_variables.rows_of(variable, ids)
        new = np.ascontiguousarray(new).view(np.uint8).reshape(len(ids), row_bytes)
        is_other = (new != old[first * row_bytes :][: new.size].reshape(new.shape)).any(axis=1)
        differing.append(ids[is_other])
    return np.concatenate(differing)


def _check_same_model(base, base_tensors, model_tensors):
    def shapes(tensors):
        return [(tensor.dtype, tensor.shape) for tensor in tensors]

    pairs = zip(shapes(base_tensors), shapes(model_tensors))
    for of_base, of_model in [*pairs, (len(base_tensors), len(model_tensors))]:
        if of_base != of_model:
            raise ExportError(
                f"the model's variables are not those of {base} ({of_model} where it has "
                f"{of_base}): publish a full version"
            )


def _check_strings(folder, tensor, variable):
    """Checks that a string variable has the values that are in a version's folder."""
    reader = tf.train.load_checkpoint(os.path.join(folder, "variables", "variables"))
    if not np.array_equal(reader.get_tensor(tensor.key), variable.numpy()):
        _whole(variable, tensor)


def _whole(variable, tensor):
    """Returns what a delta has of a variable that changed."""
    if tensor.dtype == "string":
        raise ExportError(
            f"'{tensor.name}' changed, and a delta cannot hold strings: publish a full version"
        )
    return [model_variables.value_of(variable)]
