"""From a trained model to one like it whose tables are divided otherwise."""

import dataclasses

import tensorflow as tf

from tf_slipstream import _compat, _keras_hooks
from tf_slipstream.collection import SlipstreamEmbeddingCollection
from tf_slipstream.engine import registry
from tf_slipstream.model_tables import optimizers_of
from tf_slipstream.state.resizing import RowRange, Source, copy_rows
from tf_slipstream.table_layer import TableLayer


@dataclasses.dataclass(frozen=True)
class _Field:
    """Rows of a table that have a name: of a layer, or of a field of a collection."""

    layer: TableLayer
    start: int
    num_rows: int

    @property
    def table(self):
        return _compat.tf_variable(_compat.table_of(self.layer))


def copy_training(model, new_model, fields=None):
    """Copies all that a model has learned to one that is like it, but for how tables are divided.

    From a model with a `SlipstreamEmbedding` for each field to one with a
    `SlipstreamEmbeddingCollection`, and back. Rows are known by a name, which is that of their
    layer, or of their field in a collection. What is copied:

    - the rows of tables, and all other weights, in their order;
    - if a `SlipstreamOptimizer` has trained `model`, its state, to the one that `new_model` is
      compiled with: slots, which rows are popular or sleep, statistics, the step counter, and the
      state of dense variables. Training goes on as it would have.

    What is held for rows that sleep is applied first. The policy of a collection has one threshold
    where layers had one each: it starts from their mean, weighted by how many popular rows each
    had. A layer that had been part of a collection starts with the threshold of that.

    Args:
        model: The model to copy from, built.
        new_model: The model to copy to, built. With state to be copied it is compiled, with a
            `SlipstreamOptimizer` of the same rule.
        fields: Dict from names in `new_model` to names in `model`, for those that differ; None
            where rows keep the values that they have. A field of one of several collections is
            `"collection/field"` where its name alone is not clear.

    Returns:
        `new_model`.

    Raises:
        ValueError: If rows or weights of one have no counterpart of the same shape in the other, if
            the optimizers have different rules, or tables are on parameter servers or several
            replicas. Nothing has changed then.

    Example:

    ```python
    model = keras.models.load_model("layers.keras")
    new_model = with_collection()                    # the same with a collection
    new_model.compile(slipstream.SlipstreamOptimizer("adam"), loss="binary_crossentropy")
    slipstream.copy_training(model, new_model)
    ```
    """
    if not tf.executing_eagerly():
        raise RuntimeError("`copy_training` writes variables: call it outside of a `tf.function`.")
    pairs = _pairs(_fields_of(model), _fields_of(new_model), dict(fields or {}))
    weights = list(zip(_others(model), _others(new_model)))
    _check_weights(_others(model), _others(new_model))
    optimizers = _optimizers(model, new_model)
    _keras_hooks.settle(_compat.variables_of(model))
    _keras_hooks.settle(_compat.variables_of(new_model), wake=True)
    for old, new in weights:
        new.assign(old)
    by_table = {}
    for old, new in pairs:
        one = RowRange(old.start, new.start, new.num_rows)
        by_table.setdefault(id(new.table), (new, []))[1].append((old, one))
    for new, parts in by_table.values():
        _copy_table(new.table, parts, optimizers)
    if optimizers is not None:
        for old, new in _dense_state(*optimizers):
            new.assign(old)
    return new_model


def _copy_table(table, parts, optimizers):
    """Copies rows, and their state, to a table from pairs of a `_Field` and a `RowRange`."""
    ranges, counted = {}, {}
    for old, one in parts:
        ranges.setdefault(id(old.table), (old.table, []))[1].append(one)
        counted[id(old.table)] = old.num_rows == int(old.table.shape[0])
    if optimizers is None:
        for old_table, some in ranges.values():
            copy_rows(old_table, table, some)
        return
    before, after = (optimizer.engine for optimizer in optimizers)
    sources = [
        Source(before.state_of(old), some, is_counted=counted[id(old)])
        for old, some in ranges.values()
    ]
    after.adopt(table, sources)


def _fields_of(model):
    """Returns a dict from the names of rows to their `_Field`; a name that is twice: to None."""
    found, seen = {}, set()

    def add(name, field):
        found[name] = None if name in found else field

    parts = tf.train.TrackableView(model).descendants()
    for layer in [part for part in parts if isinstance(part, TableLayer)]:
        if not layer.built:
            raise ValueError(f"{layer.name} is not built: call model '{model.name}' once.")
        table = _compat.tf_variable(_compat.table_of(layer))
        if id(table) in seen:
            continue
        seen.add(id(table))
        if layer._shards or isinstance(table, tf.distribute.DistributedValues):
            raise ValueError(
                f"The table of '{layer.name}' is on parameter servers or on several replicas: load "
                "both models without a strategy, copy, save, and go on from that."
            )
        if not isinstance(layer, SlipstreamEmbeddingCollection):
            add(layer.name, _Field(layer, 0, layer.num_rows))
            continue
        layout = layer.layout
        for name in layout.owners:
            place = layout.place_of(name)
            field = _Field(layer, layout.starts[place], layout.sizes[place])
            add(name, field)
            add(f"{layer.name}/{name}", field)
    return found


def _pairs(old_fields, new_fields, renamed):
    """Returns pairs of a `_Field` of one model and one of the other."""
    unknown = [name for name in renamed if new_fields.get(name) is None]
    if unknown:
        raise ValueError(f"`fields` has names {unknown}; the new model has {_names(new_fields)}.")
    wanted = {id(new_fields[name]): old for name, old in renamed.items()}
    pairs, taken, missing = [], set(), []
    for name, new in _distinct(new_fields).items():
        old_name = wanted.get(id(new), name)
        if old_name is None:
            continue
        old = old_fields.get(old_name)
        if old is None:
            missing.append(old_name)
            continue
        if old.num_rows != new.num_rows or old.table.shape[1] != new.table.shape[1]:
            shapes = [(one.num_rows, int(one.table.shape[1])) for one in (old, new)]
            raise ValueError(
                f"'{old_name}' has rows of shape {shapes[0]}, and '{name}' of the new model has "
                f"{shapes[1]}: use `slipstream.resize` first."
            )
        if old.table.dtype != new.table.dtype:
            raise ValueError(
                f"'{old_name}' is a table of {old.table.dtype.name}, and '{name}' of the new model "
                f"one of {new.table.dtype.name}."
            )
        pairs.append((old, new))
        taken.add(id(old))
    left = [name for name, old in _distinct(old_fields).items() if id(old) not in taken]
    if missing or left and not renamed:
        raise ValueError(
            f"The model has no rows named {missing}, and the new model none for {left}. The model "
            f"has {_names(old_fields)}, the new one {_names(new_fields)}. Name the counterparts "
            "that differ by `fields={new: old}`, with None for rows that stay as they are."
        )
    return pairs


def _distinct(fields):
    """Returns a dict from one name of each field to it, the shortest that is clear."""
    found = {}
    for name, field in fields.items():
        if field is not None and all(field is not one for one in found.values()):
            found[name] = field
    return found


def _names(fields):
    return [*_distinct(fields)]


def _others(model):
    """Returns the `tf.Variable`s of a model that are no tables, each once, in order."""
    values = {id(v): v for v in map(_compat.tf_variable, _compat.variables_of(model))}
    return [value for value in values.values() if registry.table_spec(value) is None]


def _check_weights(old, new):
    shapes = [[tuple(weight.shape) for weight in weights] for weights in (old, new)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "Beside tables the two models must have the same weights in the same order; the model "
            f"has shapes {shapes[0]}, the new one {shapes[1]}."
        )


def _optimizers(model, new_model):
    """Returns the optimizers that state is copied between, built; None where there is none."""
    old = [one for one in optimizers_of(model) if one.engine is not None]
    if not old:
        return None
    new = optimizers_of(new_model)
    if len(old) != 1 or len(new) != 1:
        raise ValueError(
            "Both models must have one SlipstreamOptimizer; there are "
            f"{len(old)} that have trained the model, and {len(new)} of the new one: compile it."
        )
    (old,), (new,) = old, new
    new.build(new_model.trainable_variables)
    rules = [one.engine.rule for one in (old, new)]
    if rules[0].name != rules[1].name or rules[0].slots != rules[1].slots:
        raise ValueError(
            f"The optimizers must have the same rule; they have {rules[0].name} and "
            f"{rules[1].name}, with slots {[slot.name for slot in rules[0].slots]} and "
            f"{[slot.name for slot in rules[1].slots]}."
        )
    _dense_state(old, new)
    return old, new


def _dense_state(old, new):
    """Returns pairs of variables: those of the optimizers within, which are no tables' state."""
    pairs = []
    for name in ("inner_optimizer", "table_optimizer"):
        inner = [getattr(one, name) for one in (old, new)]
        if (inner[0] is None) != (inner[1] is None):
            raise ValueError("Both optimizers must have a `table_optimizer`, or neither.")
        if inner[0] is None:
            continue
        variables = [[_compat.tf_variable(v) for v in one.variables] for one in inner]
        shapes = [[tuple(v.shape) for v in some] for some in variables]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"The `{name}` of both models must have the same state; they have variables of "
                f"shapes {shapes[0]} and {shapes[1]}."
            )
        pairs += zip(*variables)
    return pairs
