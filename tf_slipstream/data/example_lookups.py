"""What an example looks up: lists of (table name, ids, whether id 0 is padding)."""

import tensorflow as tf

from tf_slipstream import _keras
from tf_slipstream.embedding import SlipstreamEmbedding


def lookups_finder(ids, model, tables):
    """Returns a function from features to their lookups."""
    if callable(ids):
        return lambda features: _checked_lookups(ids(features), tables)
    if isinstance(ids, dict):
        return lambda features: _lookups_of_features(ids, features, tables)
    if ids is not None:
        raise ValueError(f"`ids` must be None, a dict or a function, got {ids!r}.")
    hint = (
        "Give `ids`: a dict from a feature's name to a table's, or a function from features to a "
        "dict from a table's name to its ids."
    )
    outputs = tf.nest.flatten(getattr(model, "outputs", None) or [])
    if not outputs or not all(hasattr(output, "_keras_history") for output in outputs):
        raise ValueError(
            "drop_stale_inputs finds what an example looks up in the graph of a functional or "
            f"sequential model only, and got {type(model).__name__}. {hint}"
        )
    calls = _embedding_calls(outputs)
    names = {id(state.table): name for name, state in tables.items()}
    # A layer that is not trained has no table in the optimizer.
    calls = [(layer, tensor) for layer, tensor in calls if id(layer._table()) in names]
    called = [names[id(layer._table())] for layer, _ in calls]
    missing = sorted(set(tables) - set(called))
    if missing:
        raise ValueError(
            f"drop_stale_inputs did not find the lookups of {missing} in the model's graph: they "
            f"are within a layer or model that has none. {hint}"
        )
    ids_model = _keras.keras.Model(_inputs_of(model), [tensor for _, tensor in calls])
    masked = [layer.mask_zero for layer, _ in calls]
    return lambda features: list(
        zip(called, tf.nest.flatten(ids_model(features, training=False)), masked, strict=True)
    )


def _embedding_calls(outputs):
    """Returns each call of a `SlipstreamEmbedding` that Keras tensors come from.

    Returns:
        List of the layer and the Keras tensor of its ids, one that comes from the same inputs.
    """
    found, seen, waiting = [], set(), list(outputs)
    while waiting:
        layer, node_index, _ = waiting.pop()._keras_history
        if (id(layer), node_index) in seen:
            continue
        seen.add((id(layer), node_index))
        node = layer._inbound_nodes[node_index]
        arguments = getattr(node, "arguments", None)  # Keras 3's
        args = node.call_args if arguments is None else arguments.args
        kwargs = node.call_kwargs if arguments is None else arguments.kwargs
        flat = tf.nest.flatten([args, kwargs])
        waiting += [one for one in flat if hasattr(one, "_keras_history")]
        inputs = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(layer, SlipstreamEmbedding):
            found.append((layer, inputs))
        elif isinstance(layer, _keras.keras.Model) and getattr(layer, "outputs", None):
            inner = _embedding_calls(tf.nest.flatten(layer.outputs))
            if inner:
                ids_model = _keras.keras.Model(_inputs_of(layer), [tensor for _, tensor in inner])
                ids = tf.nest.flatten(ids_model(inputs))
                found += zip([one for one, _ in inner], ids, strict=True)
    return found


def _inputs_of(model):
    # Keras 3's Sequential takes the inputs of its last call for its own.
    return model.inputs[0] if isinstance(model, _keras.keras.Sequential) else model.input


def _lookups_of_features(names, features, tables):
    lookups = {}
    for feature, table in names.items():
        try:
            ids = features[feature]
        except (KeyError, IndexError, TypeError):
            known = list(features) if isinstance(features, dict) else type(features).__name__
            raise ValueError(
                f"`ids` names the feature {feature!r}, which the dataset does not have: its "
                f"features are {known}."
            ) from None
        lookups.setdefault(table, []).append(ids)
    return _checked_lookups(lookups, tables)


def _checked_lookups(lookups, tables):
    if not isinstance(lookups, dict) or not lookups:
        raise ValueError(
            f"`ids` must return a dict from a table's name to its ids, got {lookups!r}."
        )
    unknown = sorted(set(lookups) - set(tables))
    if unknown:
        raise ValueError(
            f"`ids` names the tables {unknown}, which the optimizer does not have: its tables are "
            f"{sorted(tables)}."
        )
    return [
        (name, one, False)
        for name, ids in lookups.items()
        for one in (ids if isinstance(ids, (list, tuple)) else [ids])
    ]
