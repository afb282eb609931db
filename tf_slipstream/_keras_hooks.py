"""Where Keras reads or writes a model's weights, and what it is told then.

What is validated, saved and served must be one model: what is held of its tables, and what a rule
still owes them, is applied before anybody reads them; and ends when somebody else writes them.
Keras has no call for that, so methods of its classes are wrapped, once in a process; and so is
TensorFlow's that reads checkpoints.
"""

import contextlib
import functools
import os
import threading

import tensorflow as tf

from tf_slipstream import _compat
from tf_slipstream.engine import registry
from tf_slipstream.state.schema_version import check_checkpoint

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
    # `restore` calls it.
    _wrap(tf.train.Checkpoint, "read", around=_reading_checkpoint)


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
        is_plain = around is None
        with contextlib.nullcontext() if is_plain else around(model, *args, **kwargs):
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
def _loading_weights(model, *args, **kwargs):
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
            for table in holder.end_load(tables):
                holder.forget(table)


@contextlib.contextmanager
def _reading_checkpoint(checkpoint, save_path, options=None):
    """Does the same for a `tf.train.Checkpoint`. Where reading it fails, nothing is ended.

    Nothing is settled before, so that a checkpoint that is refused changes nothing.
    """
    if save_path is None or not tf.executing_eagerly():
        yield
        return
    path = os.fspath(save_path)
    objects = tf.train.TrackableView(checkpoint).descendants()
    check_checkpoint(path, objects)
    tables = tables_of(objects)
    holders = registry.holders(tables)
    for holder in holders:
        holder.begin_load(tables)
    try:
        with loading():
            yield
    finally:
        left = [(holder, holder.end_load(tables)) for holder in holders]
    for holder, tables in left:
        if tables:
            _end_held_of_read(path, holder, tables)


def _end_held_of_read(path, holder, tables):
    """Ends what a holder holds of tables that were read from a checkpoint without it.

    Args:
        path: The checkpoint's.
        holder: Of the registry.
        tables: `tf.Variable`s, those among them that the checkpoint may not have.
    """
    # No table was read where the file has nothing of its shape.
    shapes = tf.train.load_checkpoint(path).get_variable_to_shape_map().values()
    read = [table for table in tables if table.shape.as_list() in shapes]
    if not read:
        return
    # What is held goes to the new values, and away with them.
    values = [_value_of(table) for table in read]
    holder.settle(wake=True)
    for table, value in zip(read, values):
        with loading():
            table.assign(value)
        holder.forget(table)


def _value_of(table):
    """Returns a table's value, where the table is: no whole one crosses the network."""
    with tf.device(table.device):
        return table.read_value()


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
