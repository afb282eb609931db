"""What a published thing holds."""

import os
import pathlib

from tf_slipstream.delta.delta_file import DeltaFile
from tf_slipstream.delta.errors import ExportError
from tf_slipstream.delta.published_version import (
    check_index,
    index_of_saved_model,
    verify_saved_model,
)
from tf_slipstream.delta.tensor_index import TensorIndex
from tf_slipstream.delta.verification import verify_tensors
from tf_slipstream.delta.version_record import read_record


def inspect(path, verify=True):
    """Describes a SavedModel, a checkpoint or a delta.

    Args:
        path: Folder of a SavedModel, a checkpoint's prefix or index file, or a delta.
        verify: Whether to compare every byte that there is a checksum of with it.

    Returns:
        Dict with `kind` ("saved_model", "checkpoint" or "delta"), `num_bytes`, and `tensors`, each
        a dict with `name`, `key`, `dtype`, `shape`, and where it is known `table`. A SavedModel
        that can be a base has `version` and `id`; a delta has `base` and `result`, each with
        these, and of each tensor `change` ("none", "rows", "whole") and `num_rows`.
        `is_verified` is `verify`; `unverified` lists what was then found without a checksum: files,
        and tensors of types that have none.

    Raises:
        ExportError: If it is none of these, or damaged.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        described, unverified = _of_saved_model(path, verify)
    elif path.suffix == ".index" or path.with_name(f"{path.name}.index").is_file():
        index_path = path if path.suffix == ".index" else path.with_name(f"{path.name}.index")
        index = TensorIndex(index_path)
        unverified = verify_tensors(index) if verify else []
        described = {"kind": "checkpoint"} | _of_index(index)
    elif path.is_file():
        described, unverified = _of_delta(path, verify), []
    else:
        raise ExportError(f"there is no SavedModel, checkpoint or delta {path}")
    return described | {"is_verified": verify, "unverified": unverified}


def _of_delta(path, verify):
    delta = DeltaFile(path)
    if verify:
        delta.verify()
    return {
        "kind": "delta",
        "num_bytes": os.path.getsize(path),
        "base": {"id": delta.base.id, "version": delta.base.version},
        "result": {"id": delta.result.id, "version": delta.result.version},
        "tensors": [_as_lists(change.to_json()) for change in delta.changes],
    }


def _of_saved_model(path, verify):
    """Returns what a SavedModel holds, and what of it has no checksum."""
    index, record = index_of_saved_model(path), read_record(path)
    if record is not None:
        check_index(record, index)
    unverified = verify_saved_model(path, index, record) if verify else []
    described = {"kind": "saved_model"} | _of_index(index)
    described["num_bytes"] = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if record is not None:
        described |= {"version": record.version, "id": record.id}
        published = {tensor.key: tensor for tensor in record.tensors}
        for tensor in described["tensors"]:
            if tensor["key"] in published:
                tensor["name"] = published[tensor["key"]].name
                tensor["table"] = published[tensor["key"]].table
    return described, unverified


def _of_index(index):
    tensors = [
        {"name": _readable(entry.key), "key": entry.key, "dtype": entry.dtype, "shape": entry.shape}
        for entry in index.entries.values()
        if entry.key != "_CHECKPOINTABLE_OBJECT_GRAPH"
    ]
    files = [index.path, *map(index.data_path, index.shard_sizes)]
    num_bytes = sum(file.stat().st_size for file in files if file.is_file())
    return {"num_bytes": num_bytes, "tensors": [_as_lists(tensor) for tensor in tensors]}


def _readable(key):
    """Returns a key without what every variable's ends with."""
    return key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")


def _as_lists(tensor):
    return tensor | {"shape": list(tensor["shape"])}
