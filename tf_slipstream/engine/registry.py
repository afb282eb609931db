"""Which variables are tables, and who holds something of them.

The one way from a variable up to an optimizer. Both are known weakly: nothing here keeps a model
alive, and what is gone is forgotten.
"""

import dataclasses
import weakref


@dataclasses.dataclass(frozen=True)
class TableSpec:
    """What an optimizer must know of a layer's table.

    Attributes:
        name: The layer's name.
        policy: As the layer's argument.
        shards: On parameter servers, weak references to the variables, of Keras or TensorFlow, that
            the table is in; else empty.
        row_ends: Of a collection, for each field that has rows the row behind its last; else empty.
        padding: Rows of ids that are padding, ascending, where the layer has `mask_zero`.
    """

    name: str
    policy: object
    shards: tuple = ()
    row_ends: tuple = ()
    padding: tuple = ()

    def shard_variables(self):
        """Returns the variables that the table is in, on parameter servers."""
        return [shard() for shard in self.shards]


class _Weakly:
    """A dict by identity whose keys are known weakly."""

    def __init__(self):
        self._entries = {}

    def get(self, key, default=None):
        reference, value = self._entries.get(id(key), (None, default))
        return value if reference is not None and reference() is key else default

    def set(self, key, value):
        place = id(key)
        gone = self._entries.pop
        self._entries[place] = (weakref.ref(key, lambda _: gone(place, None)), value)


_specs, _holders, _training_state = _Weakly(), _Weakly(), _Weakly()


def add_table(variable, spec):
    """Notes that a `tf.Variable`, or one of Keras's, is a table or a shard of one."""
    _specs.set(variable, spec)


def table_spec(variable):
    """Returns the `TableSpec` of a table's variable; None for any other."""
    return _specs.get(variable)


def add_holder(variable, holder):
    """Notes who holds something of a table, which has methods `settle`, `forget` and `tables`."""
    holders = [one for one in holders_of(variable) if one is not holder]
    _holders.set(variable, [weakref.ref(one) for one in [*holders, holder]])


def holders_of(variable):
    """Returns all that hold something of a table, in the order in which they came."""
    alive = (reference() for reference in _holders.get(variable, ()))
    return [holder for holder in alive if holder is not None]


def holders(variables):
    """Returns all that hold something of one of these tables, each once."""
    found = {id(one): one for variable in variables for one in holders_of(variable)}
    return list(found.values())


def add_training_state(variable):
    """Notes that a `tf.Variable` of a layer is of use in training alone, and is not served."""
    _training_state.set(variable, True)


def is_training_state(variable):
    """Whether a `tf.Variable` of a layer is of use in training alone."""
    return _training_state.get(variable, False)
