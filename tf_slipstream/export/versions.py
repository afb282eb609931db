"""Publishes a full version."""

import contextlib
import dataclasses
import os
import pathlib
import secrets

import numpy as np
import tensorflow as tf

from tf_slipstream.delta import atomic
from tf_slipstream.delta.version_record import INDEX, VersionRecord, files_of, sha256
from tf_slipstream.export import model_variables
from tf_slipstream.export.signatures import signatures_of
from tf_slipstream.export.stock_ops import check_stock_ops
from tf_slipstream.export.tracker import tracker_of
from tf_slipstream.file_errors import read_bytes

_LOOKUP_TABLES = (
    tf.lookup.StaticHashTable,
    tf.lookup.StaticVocabularyTable,
    tf.lookup.experimental.DenseHashTable,
    tf.lookup.experimental.MutableHashTable,
)


@dataclasses.dataclass(frozen=True)
class SavedVersion:
    """What was published: its folder, number, id, and bytes."""

    path: str
    version: int
    id: str
    num_bytes: int


def save_version(
    model, path, version=None, *, inputs=None, examples=None, allow_ops=(), tracker=None
):
    """Publishes a model: a SavedModel for TensorFlow Serving that deltas can be made against.

    It has the model's variables (each once, where Keras 3's `model.export` writes them twice),
    stock ops only, no training state, and these signatures:

    - `serving_default`: takes the model's inputs by name. A ragged input `x` is given as `x_values`
      and `x_row_splits`; a sparse one as `x_indices`, `x_values` and `x_dense_shape`.
    - `predict`: the same for serialized `tf.Example`s, called `examples`, with a feature per input.
    - `regression`: the same for Serving's Regress API, if the output is float32 `[batch, 1]`.

    Outputs are called `output_0`, ..., as `model.export` calls them, or by their keys in a dict.

    Args:
        model: Keras model or layer, built.
        path: Folder to make, `models/m/1` say. It appears when it is complete.
        version: The version's number. None: `path`'s last part.
        inputs: What the model is called with: a spec, or a dict, list or tuple of specs. None: what
            it was made with; needed for a subclassed model.
        examples: Whether to have the signatures for `tf.Example`. None: where the inputs allow it.
        allow_ops: Names of ops that the server has beside TensorFlow's.
        tracker: `DeltaTracker` that marks the version. None: the model's; without one a delta can
            be made only by comparing with the folder.

    Returns:
        `SavedVersion`.

    Raises:
        ExportError: If `path` exists, or the model needs an op that TensorFlow does not have.
            Nothing has been published then.
        ValueError: For arguments that make no sense.
    """
    version = number_of(path) if version is None else as_number(version)
    tracker = tracker_of(model) if tracker is None else tracker
    variables = model_variables.model_variables(model)
    tables = [] if tracker is None else tracker.tables.values()
    tensors = model_variables.describe(variables, tables)
    served = _served(model, variables)
    signatures = signatures_of(model, inputs, examples)
    with publication(tracker, version, variables, tensors) as (version_id, _):
        with atomic.new_folder(path) as folder:
            tf.saved_model.save(served, str(folder), signatures=signatures)
            check_stock_ops(folder, allow_ops)
            index_sha256 = sha256(read_bytes(folder / INDEX))
            record = VersionRecord(version_id, version, tensors, index_sha256, files_of(folder))
            record.write(folder)
            num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return SavedVersion(str(path), version, version_id, num_bytes)


@contextlib.contextmanager
def publication(tracker, version, variables, tensors):
    """Gives the new version's id and its mark, which is taken back unless the block ends well."""
    if tracker is None:
        yield f"{secrets.randbits(64):016x}", None
        return
    digests = {
        tensor.key: model_variables.digest_of(variables[tensor.key])
        for tensor in tensors
        if tensor.table is None
    }
    with tracker.publication(version, tensors, digests) as mark:
        yield f"{mark.id:016x}", mark


def number_of(path):
    """Returns the version number that a folder is called by."""
    name = pathlib.Path(os.path.abspath(path)).name
    if not name.isdecimal():
        raise ValueError(
            f"TensorFlow Serving takes folders whose name is a number, got {os.fspath(path)!r}: "
            "end `path` with one, or pass `version`."
        )
    return int(name)


def as_number(version):
    """Returns a version's number as an int.

    Raises:
        ValueError: If it is none that TensorFlow Serving takes.
    """
    if not isinstance(version, (int, np.integer)) or not 0 <= version < 1 << 63:
        raise ValueError(f"`version` must be an integer from 0 to 2**63 - 1, got {version!r}.")
    return int(version)


def _served(model, variables):
    """Returns the object that is saved: variables and lookup tables, and not the model itself.

    Keras would save its optimizer with it.
    """
    served = tf.Module()
    setattr(served, model_variables.ATTRIBUTE, list(variables.values()))
    parts = tf.train.TrackableView(model).descendants()
    served.lookup_tables = [part for part in parts if isinstance(part, _LOOKUP_TABLES)]
    return served
