"""Where Keras reads or writes a model's weights, and what it is told then.

What is validated, saved and served must be one model: what is held of its tables, and what a rule
still owes them, is applied before anybody reads them; and ends when somebody else writes them.
Keras has no call for that, so methods of its classes are wrapped, once in a process.
"""

import contextlib
import functools
import threading

import tensorflow as tf

from tf_slipstream import _keras
from tf_slipstream.engine import registry

_here = threading.local()

# Methods of a model that read its weights.
READERS = (
    "evaluate",
    "predict",
    "test_on_batch",
    "predict_on_batch",
    "get_weights",
    "save",
    "save_weights",
    "export",
)


def tables_of(variables):
    """Returns the `tf.Variable`s among variables that are tables."""
    values = map(_keras.tf_variable, variables)
    return [value for value in values if registry.table_spec(value) is not None]


def settle(variables, wake=False):
    """Has all that hold something of tables apply it.

    Args:
        variables: Variables of Keras or TensorFlow, tables among them.
        wake: Whether rows that sleep wake.
    """
    if not tf.executing_eagerly():
        return
    for holder in registry.holders(tables_of(variables)):
        holder.settle(wake=wake)


@functools.cache
def install():
    """Wraps the methods; again it does nothing."""
    model = _keras.keras.Model
    for name in READERS:
        _wrap(model, name, before=_settle_model)
    _wrap(model, "fit", after=_wake_model)
    _wrap(model, "load_weights", around=_loading_weights)
    _wrap(_keras.keras.export.ExportArchive, "write_out", before=_settle_archive)


def _wrap(cls, name, before=None, after=None, around=None):
    # Where it is defined, so that `super().evaluate(...)` of a subclass is seen too.
    owner = next(base for base in cls.__mro__ if name in vars(base))
    method = vars(owner)[name]

    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        if before is not None:
            before(self)
        with contextlib.nullcontext() if around is None else around(self):
            result = method(self, *args, **kwargs)
        if after is not None:
            after(self)
        return result

    setattr(owner, name, wrapped)


def _settle_model(model):
    settle(model.variables)


def _wake_model(model):
    settle(model.variables, wake=True)


def _settle_archive(archive):
    settle(_keras.exported_variables(archive))


@contextlib.contextmanager
def _loading_weights(model):
    """Ends what is held of the tables, but for optimizers that are loaded with them."""
    tables = tables_of(model.variables)
    settle(tables, wake=True)
    num_loads = {id(one): one.num_loads for one in registry.holders(tables)}
    with loading():
        yield
    for table in tables:
        for holder in registry.holders_of(table):
            if holder.num_loads == num_loads.get(id(holder)):
                holder.forget(table)


@contextlib.contextmanager
def loading():
    """Inside, tables are written together with what is held of them."""
    before, _here.is_loading = getattr(_here, "is_loading", False), True
    try:
        yield
    finally:
        _here.is_loading = before


def watch(variable):
    """Has whoever writes a table (`assign`, `set_weights`) end what is held of it.

    Args:
        variable: The table's variable, of Keras or TensorFlow.
    """
    assign = variable.assign
    if hasattr(assign, "__wrapped__"):
        return

    @functools.wraps(assign)
    def assign_and_forget(*args, **kwargs):
        if not tf.executing_eagerly() or getattr(_here, "is_loading", False):
            return assign(*args, **kwargs)
        settle([variable], wake=True)
        result = assign(*args, **kwargs)
        table = _keras.tf_variable(variable)
        for holder in registry.holders_of(table):
            holder.forget(table)
        return result

    variable.assign = assign_and_forget
