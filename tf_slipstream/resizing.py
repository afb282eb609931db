"""Tables that grow or shrink while they train."""

import gc

import tensorflow as tf

from tf_slipstream import _compat, _keras_hooks
from tf_slipstream._compat import variables
from tf_slipstream.collection import SlipstreamEmbeddingCollection
from tf_slipstream.engine import registry
from tf_slipstream.optimizer import SlipstreamOptimizer
from tf_slipstream.state.resizing import RowRange, copy_rows, empty, head_of
from tf_slipstream.state.table import variables_of
from tf_slipstream.table_layer import TableLayer, check_dim


def resize(layer, optimizer, input_dim):
    """Gives a layer's table, or fields of a collection, another number of rows.

    What it has learned stays.

    The layer is changed in place, and with it every model that has it. Rows that it had keep their
    values, slots, what is held for them and whether they sleep; the table keeps its counts. A new
    row is as if it had been there from the start: it has the value that `embeddings_initializer`
    gives it in a table of the new size. When a table shrinks its last rows are forgotten. If it
    then may have fewer popular rows than it has, those with the most updates stay popular.

    The table is a new `tf.Variable`. So compile a model again after it, with the same optimizer,
    and make `tf.function`s of your own anew: one that was traced before has the old table, which
    is empty from now on, and fails at its first lookup. Optimizer and model must not train
    meanwhile. Publish a full version next: no delta leads from one size to another.

    Args:
        layer: A built `SlipstreamEmbedding` or `SlipstreamEmbeddingCollection`.
        optimizer: The `SlipstreamOptimizer` that trains it, or an optimizer around that one. Not
            built yet, it changes nothing, and the layer alone is changed.
        input_dim: Positive integer, number of rows from now on. Of a collection, a dict from the
            names of fields to theirs; other fields keep what they have.

    Returns:
        `layer`.

    Raises:
        ValueError: If an argument is none of these, if the optimizer does not train the table or
            another does as well, or for a table on parameter servers or on several replicas.
            Nothing has changed then. The same if the initializer fails for the new size.
        RuntimeError: Inside of a `tf.function`.

    Example:

    ```python
    slipstream.resize(user, model.optimizer, 2_000_000)
    model.compile(model.optimizer, loss="binary_crossentropy")
    model.fit(dataset)
    ```
    """
    optimizers, attributes, ranges = _checked(layer, optimizer, input_dim)
    if all(getattr(layer, name) == value for name, value in attributes.items()):
        return layer
    old, new = _rebuild(layer, attributes)
    engine = optimizers[-1].engine
    if engine is None:
        unused = [_compat.tf_variable(old)]
        copy_rows(*unused, _compat.tf_variable(new), ranges)
    else:
        before, after = engine.replace(old, new, ranges)
        pairs = list(zip(variables_of(before), variables_of(after), strict=True))
        variables.replace_own(optimizers[-1], pairs)
        unused = [before.table, *(variable for variable, _ in pairs)]
        _keras_hooks.watch(new)
    for one in optimizers:
        variables.replace_trained(one, old, new)
    empty(unused)
    return layer


def _checked(layer, optimizer, input_dim):
    """Checks the arguments.

    Returns:
        The optimizers that know the table: `optimizer`, what is in it, Slipstream's last. The
        layer's attributes for the new size, a dict. And which rows stay, a list of `RowRange`.
    """
    if not tf.executing_eagerly():
        raise RuntimeError("`resize` makes variables: call it outside of a `tf.function`.")
    if not isinstance(layer, TableLayer) or not layer.built:
        raise ValueError(
            "`layer` must be a SlipstreamEmbedding that is built, or such a "
            f"SlipstreamEmbeddingCollection, got {layer!r}. Call it or its model once, or "
            "`layer.build(None)`."
        )
    if isinstance(layer, SlipstreamEmbeddingCollection):
        attributes, ranges = _of_collection(layer.layout, input_dim)
    else:
        check_dim("input_dim", input_dim)
        attributes = {"input_dim": int(input_dim)}
        ranges = head_of(layer.input_dim, int(input_dim))
    return _optimizers_of(layer, optimizer), attributes, ranges


def _of_collection(layout, input_dim):
    new = layout.resized(input_dim)
    ranges = []
    for name in layout.owners:
        place = layout.place_of(name)
        num_rows = min(layout.sizes[place], new.sizes[place])
        ranges.append(RowRange(layout.starts[place], new.starts[place], num_rows))
    return {"layout": layout if new.sizes == layout.sizes else new}, ranges


def _optimizers_of(layer, optimizer):
    chain = [optimizer]
    while not isinstance(chain[-1], SlipstreamOptimizer):
        chain.append(getattr(chain[-1], "inner_optimizer", None))
        if chain[-1] is None:
            raise ValueError(
                "`optimizer` must be the SlipstreamOptimizer that trains the layer, or a "
                f"LossScaleOptimizer around it; got {optimizer!r}."
            )
    ours = chain[-1]
    _check_holders(layer, ours.engine)
    beside = [one for one in (ours.inner_optimizer, ours.table_optimizer) if one is not None]
    return [*beside, *chain]


def _check_holders(layer, engine):
    name = f"{type(layer).__name__} '{layer.name}'"
    table = _compat.tf_variable(_compat.table_of(layer))
    is_spread = engine is not None and not engine.is_on_one_device
    if is_spread or layer._shards or isinstance(table, tf.distribute.DistributedValues):
        raise ValueError(
            f"{name} is on parameter servers or on several replicas, where its table cannot be "
            "resized. Save the model, load it without a strategy, resize it and save it; then go "
            "on from that under the strategy."
        )
    if engine is not None and engine.state_of(table) is None:
        raise ValueError(
            f"`optimizer` does not train the table of {name}. Give the one that does, as "
            "`model.optimizer`, say."
        )
    if any(holder is not engine for holder in registry.holders_of(table)):
        gc.collect()  # of a model that is gone, but for references in a circle
    if any(holder is not engine for holder in registry.holders_of(table)):
        raise ValueError(
            f"The table of {name} is trained by another optimizer as well, which cannot follow. "
            "Delete that one, with the models that it was compiled into, before `resize`."
        )


def _rebuild(layer, attributes):
    """Gives a layer a table of new values; returns the old and the new variable."""
    old, before = _compat.table_of(layer), {name: getattr(layer, name) for name in attributes}
    _set(layer, attributes)
    layer.built = False
    try:
        with variables.rebuilding(layer, old):
            TableLayer.build(layer)
    except BaseException:
        _set(layer, before)
        raise
    finally:
        layer.built = True
    new = _compat.table_of(layer)
    variables.replace_in_layer(layer, old, new)
    return old, new


def _set(layer, attributes):
    for name, value in attributes.items():
        setattr(layer, name, value)
