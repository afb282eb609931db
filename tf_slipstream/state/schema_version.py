"""The schema's version in what is saved, and its check when that is read.

Without it the columns of another release would be taken for those of this one.
"""

import collections.abc
import os

import numpy as np
import tensorflow as tf

from tf_slipstream.state import schema

# Beside an optimizer's variables in a file of Keras's, which are "0", "1", ...
_KEY = "slipstream_schema_version"
# In TensorFlow's checkpoints, the objects that are in it, serialised.
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


class SchemaVersion(tf.train.experimental.PythonState):
    """The version in a `tf.train.Checkpoint`. It is read before any variable is."""

    def serialize(self):
        return str(schema.VERSION)

    def deserialize(self, string_value):
        check_version(int(string_value))


def check_checkpoint(path, objects):
    """Checks that a checkpoint says its version, if it has state of tables.

    A SavedModel has no version, so that nothing of ours is in what is served; it is not checked.

    Args:
        path: The checkpoint's. What is no checkpoint passes: whoever reads it says so.
        objects: What it is read into. Without a `SchemaVersion` among them nothing is checked.

    Raises:
        ValueError: If it has none. A version that it has is checked when it is read.
    """
    if not any(isinstance(one, SchemaVersion) for one in objects):
        return
    folder = os.path.dirname(os.path.dirname(path))
    if tf.io.gfile.exists(os.path.join(folder, "saved_model.pb")):
        return
    try:
        reader = tf.train.load_checkpoint(path)
    except (tf.errors.OpError, ValueError):
        return
    if reader.has_tensor(_OBJECT_GRAPH):
        # It has the names of objects and variables, of which only tables' state has these.
        graph = reader.get_tensor(_OBJECT_GRAPH)
        if b"_changed_rows" in graph and b"_schema_version" not in graph:
            check_version(1)


def write_version(store):
    """Writes the version into where Keras saves an optimizer's variables."""
    store[_KEY] = np.array(schema.VERSION, np.int64)


def variables_in(store, num_variables):
    """Returns what Keras saved of an optimizer, less the version, which is checked.

    Nothing is read before it is asked for: it may be larger than the memory here.

    Args:
        store: What Keras gives `load_own_variables`.
        num_variables: How many variables the optimizer has.

    Raises:
        ValueError: If it has another version; or none, and as many variables as are wanted.
    """
    saved = _Saved(store)
    if _KEY in store.keys():
        check_version(int(np.asarray(store[_KEY])))
    elif len(saved) == num_variables:
        # Of another number Keras says so, and reads none.
        check_version(1)
    return saved


class _Saved(collections.abc.Mapping):
    """A store of Keras, less the version."""

    def __init__(self, store):
        self._store = store

    def __getitem__(self, key):
        return self._store[key]

    def __iter__(self):
        return (key for key in self._store.keys() if key != _KEY)

    def __len__(self):
        return sum(1 for _ in self)


def check_version(version):
    """Checks that what was saved with a version of the schema can be read.

    Raises:
        ValueError: If it cannot.
    """
    if version != schema.VERSION:
        raise ValueError(
            f"The optimizer's state was saved with version {version} of tf_slipstream's schema; "
            f"this release reads version {schema.VERSION}. Restore it with the release that saved "
            "it, and save the model's weights alone there; or load the model without its optimizer "
            "(`compile=False`). Training then starts with new optimizer state."
        )
