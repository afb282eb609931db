"""What a published thing holds, with NumPy alone."""

import os
import pathlib

from tf_slipstream.export.delta_file import DeltaFile
from tf_slipstream.export.errors import ExportError
from tf_slipstream.export.tensor_index import TensorIndex
from tf_slipstream.export.version_record import INDEX, read_record


def inspect(path):
    """Describes a SavedModel, a checkpoint or a delta.

    Args:
        path: Folder of a SavedModel, a checkpoint's prefix or index file, or a delta. Of a delta
            every byte is checked.

    Returns:
        Dict with `kind` ("saved_model", "checkpoint" or "delta"), `num_bytes`, and `tensors`, each
        a dict with `name`, `key`, `dtype`, `shape`, and where it is known `table`. A SavedModel
        that can be a base has `version` and `id`; a delta has `base` and `result`, each with
        these, and of each tensor `change` ("none", "rows", "whole") and `num_rows`.

    Raises:
        ExportError: If it is none of these, or damaged.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        if not (path / INDEX).is_file():
            raise ExportError(f"{path} is not a SavedModel: there is no {path / INDEX}")
        return _of_saved_model(path)
    if path.suffix == ".index" or path.with_name(f"{path.name}.index").is_file():
        index = path if path.suffix == ".index" else path.with_name(f"{path.name}.index")
        return {"kind": "checkpoint"} | _of_index(TensorIndex(index))
    if not path.is_file():
        raise ExportError(f"there is no SavedModel, checkpoint or delta {path}")
    return _of_delta(path)


def _of_delta(path):
    delta = DeltaFile(path)
    delta.verify()
    return {
        "kind": "delta",
        "num_bytes": os.path.getsize(path),
        "base": {"id": delta.base.id, "version": delta.base.version},
        "result": {"id": delta.result.id, "version": delta.result.version},
        "tensors": [_as_lists(change.to_json()) for change in delta.changes],
    }


def _of_saved_model(path):
    found = {"kind": "saved_model"} | _of_index(TensorIndex(path / INDEX))
    found["num_bytes"] = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    record = read_record(path)
    if record is not None:
        found |= {"version": record.version, "id": record.id}
        published = {tensor.key: tensor for tensor in record.tensors}
        for tensor in found["tensors"]:
            if tensor["key"] in published:
                tensor["name"] = published[tensor["key"]].name
                tensor["table"] = published[tensor["key"]].table
    return found


def _of_index(index):
    tensors = [
        {"name": _readable(entry.key), "key": entry.key, "dtype": entry.dtype, "shape": entry.shape}
        for entry in index.entries.values()
        if entry.key != "_CHECKPOINTABLE_OBJECT_GRAPH"
    ]
    files = [index.path, *(index.data_path(shard) for shard in range(index.num_shards))]
    num_bytes = sum(file.stat().st_size for file in files if file.is_file())
    return {"num_bytes": num_bytes, "tensors": [_as_lists(tensor) for tensor in tensors]}


def _readable(key):
    """Returns a key without what every variable's ends with."""
    return key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")


def _as_lists(tensor):
    return tensor | {"shape": list(tensor["shape"])}
