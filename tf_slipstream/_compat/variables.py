"""Puts a variable of another shape in the place of one that a layer or an optimizer has.

A `tf.Variable` keeps its shape, and neither Keras replaces a variable of what is built. So lists
that are Keras's own are changed here, in place, and saved files keep their order.
"""

import contextlib
import functools

import tensorflow as tf

from tf_slipstream._compat.which import IS_KERAS_3, chosen


@contextlib.contextmanager
def rebuilding(layer, variable):
    """Inside, a layer that is built may add a variable with the name and device of an old one.

    Args:
        layer: A layer.
        variable: The old variable, of Keras or TensorFlow.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(tf.device(chosen.tf_variable(variable).device))
        if IS_KERAS_3:
            stack.enter_context(layer._open_name_scope())
            layer._tracker.unlock()
            stack.callback(layer._tracker.lock)
        else:
            folder = variable.name.rpartition("/")[0]
            stack.enter_context(tf.name_scope(f"{folder}/" if folder else ""))
        yield


def replace_in_layer(layer, old, new):
    """Has a layer's newest variable take the place of an old one, which the layer forgets.

    Args:
        layer: A layer that has both.
        old: The old variable, of Keras or TensorFlow.
        new: The new one, with the same attribute of the layer.
    """
    if IS_KERAS_3:
        names = ("_trainable_variables", "_non_trainable_variables")
        places = {name: _place(getattr(layer, name), old) for name in names}
        layer._untrack_variable(old)
    else:
        names = ("_trainable_weights", "_non_trainable_weights")
        places = {name: _place(getattr(layer, name), old) for name in names}
        for name in names:
            _remove(getattr(layer, name), old)
        # What a regularizer says of it.
        losses = layer._callable_losses
        layer._callable_losses = [loss for loss in losses if not _is_given(loss, old)]
    for name, place in places.items():
        variables = getattr(layer, name)
        if place is not None and _place(variables, new) is not None:
            _remove(variables, new)
            variables.insert(place, new)


def replace_trained(optimizer, old, new):
    """Has an optimizer that is built take a variable for the one that it trained so far.

    Args:
        optimizer: A Keras optimizer, which need not have trained it.
        old: The variable, of Keras or TensorFlow.
        new: What takes its place.
    """
    old_key, new_key = optimizer._var_key(old), optimizer._var_key(new)
    name = "_trainable_variables_indices" if IS_KERAS_3 else "_index_dict"
    indices = getattr(optimizer, name, {})
    if old_key in indices:
        # A new dict, as in `_set_list`.
        renamed = {new_key if key == old_key else key: i for key, i in indices.items()}
        setattr(optimizer, name, renamed)
    trained = getattr(optimizer, "_trainable_variables", ())
    if _place(trained, old) is not None:
        _set_list(optimizer, "_trainable_variables", [new if v is old else v for v in trained])
    excluded = getattr(optimizer, "_exclude_from_weight_decay", ())
    if old_key in excluded:
        optimizer._exclude_from_weight_decay = type(excluded)([*excluded, new_key])


def replace_own(optimizer, pairs):
    """Has an optimizer's newest variables take the places of old ones, which it forgets.

    Args:
        optimizer: A Keras optimizer that has all of them.
        pairs: List of pairs of an old and a new `tf.Variable`.
    """
    by_value = {id(chosen.tf_variable(variable)): variable for variable in optimizer._variables}
    new_ones = {id(old): by_value[id(new)] for old, new in pairs}
    moved = {id(new) for _, new in pairs}
    variables = []
    for variable in optimizer._variables:
        value = id(chosen.tf_variable(variable))
        if value not in moved:
            variables.append(new_ones.get(value, variable))
    _set_list(optimizer, "_variables", variables)
    if IS_KERAS_3:
        tracker = optimizer._tracker
        is_variable, _ = tracker.config["variables"]
        tracker.config["variables"] = (is_variable, optimizer._variables)
        tracker.stored_ids["variables"] = {id(variable) for variable in variables}


def _set_list(optimizer, name, variables):
    """Gives an optimizer a new list in place of one of its own.

    It is no change of the old one: TensorFlow refuses to save a list that was not only added to.
    """
    # Keras's tracker, when it sees the list, makes one of it that adds to itself.
    tracker = vars(optimizer).pop("_tracker", None)
    setattr(optimizer, name, variables)
    if tracker is not None:
        optimizer._tracker = tracker


def _place(variables, variable):
    """Returns where a variable is in a list, by identity; None where it is not."""
    return next((i for i, one in enumerate(variables) if one is variable), None)


def _remove(variables, variable):
    place = _place(variables, variable)
    if place is not None:
        del variables[place]


def _is_given(function, variable):
    """Whether a function is a `functools.partial` that is given a variable, however deep."""
    args = getattr(function, "args", ()) if isinstance(function, functools.partial) else ()
    return any(one is variable or _is_given(one, variable) for one in args)
