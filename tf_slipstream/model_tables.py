"""From a model to what trains its tables."""

import tensorflow as tf

from tf_slipstream import _compat, _keras_hooks
from tf_slipstream.engine import registry
from tf_slipstream.optimizer import SlipstreamOptimizer


def optimizers_of(model_or_optimizer):
    """Returns the `SlipstreamOptimizer`s of a model, or within an optimizer, each once.

    Args:
        model_or_optimizer: A model, whatever attribute of it holds an optimizer; or an optimizer,
            which may be around others.
    """
    parts = [model_or_optimizer, getattr(model_or_optimizer, "optimizer", None)]
    parts += tf.train.TrackableView(model_or_optimizer).descendants()
    found = {id(one): one for one in map(_within, parts) if one is not None}
    return list(found.values())


def _within(part):
    """Returns the `SlipstreamOptimizer` that something is, or is around; None where it is not."""
    while part is not None and not isinstance(part, SlipstreamOptimizer):
        part = getattr(part, "inner_optimizer", None)
    return part


def tables_of(model_or_optimizer, user):
    """Returns what trains the tables of a model: `engine.tables.Tables`, one for each optimizer.

    Args:
        model_or_optimizer: As for `optimizers_of`. The optimizer of `compile` is built if the model
            is.
        user: Who needs it, for the error.

    Raises:
        ValueError: If no table is trained by a `SlipstreamOptimizer`.
    """
    optimizers = optimizers_of(model_or_optimizer)
    is_model = isinstance(model_or_optimizer, _compat.keras.layers.Layer)
    compiled = _within(getattr(model_or_optimizer, "optimizer", None))
    # Which variables any other trains is not known.
    if compiled is not None and not compiled.tables and model_or_optimizer.built:
        compiled.build(model_or_optimizer.trainable_variables)
    found = [optimizer.engine for optimizer in optimizers if optimizer.tables]
    known = _compat.variables_of(model_or_optimizer) if is_model else ()
    for holder in registry.holders(_keras_hooks.tables_of(known)):
        if all(holder is not one for one in found):
            found.append(holder)
    if not found and not optimizers:
        raise ValueError(
            f"{user} needs a model whose tables a SlipstreamOptimizer trains, or that optimizer, "
            f"and got {type(model_or_optimizer).__name__}. Give `compile` a "
            "slipstream.SlipstreamOptimizer(...); a LossScaleOptimizer may be around it."
        )
    return found


def maps_of(model_or_optimizer):
    """Returns what the vocabularies of a model have that changes by rows, as `TableState`s."""
    parts = tf.train.TrackableView(model_or_optimizer).descendants()
    layers = [part for part in parts if isinstance(part, _compat.keras.layers.Layer)]
    return [state for layer in layers if hasattr(layer, "maps") for state in layer.maps()]
