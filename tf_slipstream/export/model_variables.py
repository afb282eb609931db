"""A model's variables, in the order and under the keys that they are published with."""

import hashlib

import numpy as np
import tensorflow as tf

from tf_slipstream import _compat, _keras_hooks
from tf_slipstream.delta.version_record import Tensor
from tf_slipstream.engine import registry

# The attribute of the saved object that lists the variables.
ATTRIBUTE = "model_variables"
_CHUNK_BYTES = 16 << 20


def model_variables(model):
    """Returns what is served of a model's variables, once each: dict from their key to them.

    What an optimizer holds for them is applied first.
    """
    variables = {id(variable): variable for variable in map(_compat.tf_variable, model.variables)}
    _keras_hooks.settle(variables.values())
    variables = {id(v): v for v in variables.values() if not registry.is_training_state(v)}
    return {
        f"{ATTRIBUTE}/{number}/.ATTRIBUTES/VARIABLE_VALUE": variable
        for number, variable in enumerate(variables.values())
    }


def describe(variables, tables=()):
    """Returns a tuple of `Tensor`.

    Args:
        variables: Dict from key to variable.
        tables: The `TableState`s of those that are tracked.
    """
    tables = {id(state.table): state.name for state in tables}
    tensors, names = [], set()
    for key, variable in variables.items():
        name = _name_of(variable)
        if name in names:
            name = f"{name} ({key.split('/')[1]})"
        names.add(name)
        shape, table = tuple(variable.shape), tables.get(id(variable))
        tensors.append(Tensor(key, name, variable.dtype.name, shape, table))
    return tuple(tensors)


def _name_of(variable):
    # A table that was built before its model has a name without the layer's in tf_keras.
    spec = registry.table_spec(variable)
    return variable.name.removesuffix(":0") if spec is None else f"{spec.name}/embeddings"


def rows_of(variable, ids):
    """Yields some rows of a variable, in pieces: arrays `[num_rows, ...]`."""
    row_bytes = variable.dtype.size * int(np.prod(variable.shape[1:]))
    step = max(1, _CHUNK_BYTES // max(1, row_bytes))
    for first in range(0, len(ids), step):
        # Reads these rows only, where indexing the variable would read them all.
        yield tf.gather(variable, ids[first : first + step]).numpy()


def value_of(variable):
    """Returns a variable's value as bytes: uint8 `[size]`. Not for strings."""
    return np.frombuffer(np.ascontiguousarray(variable.numpy()).tobytes(), np.uint8)


def digest_of(variable):
    """Returns the SHA-256 of a variable's value."""
    if variable.dtype != tf.string:
        return hashlib.sha256(value_of(variable)).hexdigest()
    digest = hashlib.sha256()
    for value in variable.numpy().ravel():
        digest.update(len(value).to_bytes(8, "little") + value)
    return digest.hexdigest()
