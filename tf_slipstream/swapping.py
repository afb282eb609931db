"""From a model of `keras.layers.Embedding`s to one of ours with the same weights, and back."""

from tf_slipstream import _compat
from tf_slipstream.embedding import SlipstreamEmbedding

_Embedding = _compat.keras.layers.Embedding


def swap_in(model, names=None, policy="default"):
    """Returns a copy of a model with `SlipstreamEmbedding`s for its `keras.layers.Embedding`s.

    Layers keep their names, arguments and weights. The copy is not compiled, and its optimizer
    starts anew. While both models live the weights are in memory twice.

    Args:
        model: A functional or `Sequential` model, built, with others in it or not. Subclasses of
            `keras.layers.Embedding` stay, and so do layers within other layers.
        names: The names of the layers to swap; None: all.
        policy: The `policy` of the new layers.

    Raises:
        ValueError: For a model of another kind; for a name that no such layer has; for a layer that
            cannot be swapped (LoRA, quantized, sparse rows).

    Example:

    ```python
    model = slipstream.swap_in(keras.models.load_model("old.keras"))
    model.compile(slipstream.SlipstreamOptimizer("adam"), loss="binary_crossentropy")
    ```
    """
    names = None if names is None else set(names)
    missing = set(names or ()) - {layer.name for layer in _layers_of(model, _Embedding)}
    if missing:
        raise ValueError(
            f"Model '{model.name}' has no `keras.layers.Embedding` named {sorted(missing)}; it has "
            f"{[layer.name for layer in _layers_of(model, _Embedding)]}."
        )

    def ours(layer):
        if names is not None and layer.name not in names:
            return None
        # tf_keras leaves `sparse` out of the config, and Keras 3 leaves out a LoRA added later.
        more = {name: getattr(layer, name, None) for name in ("lora_rank", "sparse")}
        try:
            return SlipstreamEmbedding.from_config(layer.get_config() | more | {"policy": policy})
        except (TypeError, ValueError) as error:
            # Keras 3 makes a TypeError with the whole config of it.
            reason = error.__context__ or error
            raise ValueError(f"Layer '{layer.name}' cannot be swapped: {reason}") from error

    return _with_weights(_swapped(model, _Embedding, ours), model)


def swap_out(model):
    """Returns a copy of a model with `keras.layers.Embedding`s for its `SlipstreamEmbedding`s.

    The other way of `swap_in`, for a host without this package or to read and write the weights of
    stock models.

    Args:
        model: A functional or `Sequential` model, built, with others in it or not. Subclasses of
            `SlipstreamEmbedding` stay, and so do layers within other layers.

    Raises:
        ValueError: For a model of another kind, and for a layer with a combiner, which stock Keras
            does not have.
    """

    def stock(layer):
        config = layer.get_config()
        del config["policy"]
        if config.pop("combiner") is not None:
            raise ValueError(
                f"SlipstreamEmbedding '{layer.name}' has a `combiner`, and keras.layers.Embedding "
                "has none. Use a layer without, and combine its rows in the layers after it."
            )
        return _Embedding.from_config(config)

    return _with_weights(_swapped(model, SlipstreamEmbedding, stock), model)


def _swapped(model, kind, new_layer):
    """Returns a copy of a model; `new_layer` makes its layers of a class, or None for a copy."""
    if not _is_model(model):
        raise ValueError(
            f"Model '{model.name}' is a {type(model).__name__}, whose layers Keras cannot replace; "
            "it can those of functional and Sequential models. Change the layers in the code of "
            "the model, and copy its weights: `new_model.set_weights(old_model.get_weights())`."
        )
    clones = {}  # by the layer's id: a layer may be in several models

    def clone(layer):
        if id(layer) not in clones:
            clones[id(layer)] = make(layer)
        return clones[id(layer)]

    def make(layer):
        if _is_model(layer):
            return _compat.keras.models.clone_model(layer, clone_function=clone)
        new = new_layer(layer) if type(layer) is kind else None
        return type(layer).from_config(layer.get_config()) if new is None else new

    return clone(model)


def _with_weights(new, model):
    new.set_weights(model.get_weights())
    return new


def _layers_of(model, kind):
    """Returns the layers of a class in a model and in those within it."""
    found = []
    for layer in model.layers:
        found += _layers_of(layer, kind) if _is_model(layer) else []
        found += [layer] if type(layer) is kind else []
    return found


def _is_model(layer):
    """Whether a layer is a functional or Sequential model."""
    # The name says it in both Kerases; the class is public in neither.
    is_functional = any(base.__name__ == "Functional" for base in type(layer).__mro__)
    return is_functional or isinstance(layer, _compat.keras.Sequential)
