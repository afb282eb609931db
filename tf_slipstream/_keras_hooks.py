"""Where Keras reads or writes a model's weights, and what it is told then.

What is validated, saved and served must be one model: what is held of its tables, and what a rule
still owes them, is applied before anybody reads them; and ends when somebody else writes them.
Keras has no call for that, so methods of its classes are wrapped, once in a process.
"""

import contextlib
import functools
import threading

import tensorflow as tf

from tf_slipstream import _compat
from tf_slipstream.engine import registry

_here = threading.local()

# Methods of a model that read its weights.
READERS = (
    "evaluate",
    "predict",
    "test_on_batch",
    "predict_on_batch",
    "save",
    "save_weights",
    "export",
)


def tables_of(variables):
    """Returns the `tf.Variable`s among variables that are tables."""
    values = map(_compat.tf_variable, variables)
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
    keras = _compat.keras
    for name in READERS:
        _wrap(keras.Model, name, before=_settle_model)
    _wrap(keras.layers.Layer, "get_weights", before=_settle_model)
    _wrap(keras.Model, "fit", before=_build_optimizer, after=_wake_model)
    _wrap(keras.Model, "train_on_batch", before=_build_optimizer)
    _wrap(keras.Model, "load_weights", around=_loading_weights)
    _wrap(keras.export.ExportArchive, "write_out", before=_settle_archive)
    # The same as functions of a model.
    for module in (keras.models, keras.saving):
        _wrap(module, "save_model", before=_settle_model)
    if _compat.IS_KERAS_3:
        _wrap(keras.saving, "load_weights", around=_loading_weights)


def _wrap(place, name, before=None, after=None, around=None):
    """Wraps a function of a module, or a method where a class or a base of it defines it."""
    # Not in a subclass, so that `super().evaluate(...)` is seen too.
    owners = getattr(place, "__mro__", [place])
    owner = next(one for one in owners if name in vars(one))
    function = vars(owner)[name]

    @functools.wraps(function)
    def wrapped(model, *args, **kwargs):
        if before is not None:
            before(model)
        with contextlib.nullcontext() if around is None else around(model):
            result = function(model, *args, **kwargs)
        if after is not None:
            after(model)
        return result

    setattr(owner, name, wrapped)


def _build_optimizer(model):
    """Builds a model's optimizer before its step is traced.

    Variables that are made while a step is traced have TensorFlow trace it a second time, which is
    half of what the first step takes.
    """
    optimizer = getattr(model, "optimizer", None)
    if not isinstance(optimizer, _compat.WrappingOptimizer) or optimizer.is_built:
        return
    # A step of the user's own may train other variables, in another order.
    is_own_step = type(model).train_step is not _compat.keras.Model.train_step
    # Under a strategy both Kerases have a way of their own.
    is_alone = model.distribute_strategy is tf.distribute.get_strategy()
    if model.built and is_alone and not is_own_step and not tf.distribute.has_strategy():
        optimizer.build(model.trainable_variables)


def _settle_model(model):
    settle(_compat.variables_of(model))


def _wake_model(model):
    settle(_compat.variables_of(model), wake=True)


def _settle_archive(archive):
    settle(_compat.exported_variables(archive))


@contextlib.contextmanager
def _loading_weights(model):
    """Ends what is held of the tables, but for optimizers that are loaded with them."""
    tables = tables_of(_compat.variables_of(model))
    settle(tables, wake=True)
    holders = registry.holders(tables)
    for holder in holders:
        holder.begin_load(tables)
    try:
        with loading():
            yield
    finally:
        for holder in holders:
            holder.end_load(tables)


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
    if getattr(assign, "ends_what_is_held", False):
        return

    @functools.wraps(assign)
    def assign_and_forget(*args, **kwargs):
        if not tf.executing_eagerly() or getattr(_here, "is_loading", False):
            return assign(*args, **kwargs)
        settle([variable], wake=True)
        result = assign(*args, **kwargs)
        table = _compat.tf_variable(variable)
        for holder in registry.holders_of(table):
            holder.forget(table)
        return result

    assign_and_forget.ends_what_is_held = True
    variable.assign = assign_and_forget
