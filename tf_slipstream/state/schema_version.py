"""The schema's version in what is saved, and its check when that is read.

Without it the columns of another release would be taken for those of this one.
"""

import numpy as np
import tensorflow as tf

from tf_slipstream.state import schema

# Beside an optimizer's variables in a file of Keras's, which are "0", "1", ...
_KEY = "slipstream_schema_version"


class SchemaVersion(tf.train.experimental.PythonState):
    """The version in a `tf.train.Checkpoint`. It is read before any variable is."""

    def serialize(self):
        return str(schema.VERSION)

    def deserialize(self, string_value):
        check_version(int(string_value))


def write_version(store):
    """Writes the version into where Keras saves an optimizer's variables."""
    store[_KEY] = np.array(schema.VERSION, np.int64)


def variables_in(store, num_variables):
    """Returns what Keras saved of an optimizer, less the version, which is checked.

    Args:
        store: What Keras gives `load_own_variables`.
        num_variables: How many variables the optimizer has.

    Raises:
        ValueError: If it has another version; or none, and as many variables as are wanted.
    """
    saved = {key: store[key] for key in store.keys() if key != _KEY}
    if _KEY in store.keys():
        check_version(int(np.asarray(store[_KEY])))
    elif len(saved) == num_variables:
        # Of another number Keras says so, and reads none.
        check_version(1)
    return saved


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
