"""Models of several fields, with a collection and with a layer for each."""

import numpy as np

from tests.models import embedding_of, random_table
from tf_slipstream import SlipstreamEmbeddingCollection
from tf_slipstream._compat import keras
from tf_slipstream.state import schema

DIM = 3
# Rows of an array's columns are summed in the order of the examples, those of a layer that two
# columns share one column after the other: only of rows that are not shared the sums are the same
# to the bit.
DIMS = {"user": 40, "item": 12, "brand": 20, "shop": 1}
NUM_ROWS = 73
SHARED_DIMS = {"user": 40, "item": 12, "friend": "user", "shop": 1}


def first_tables(dims=None):
    """Returns a dict from each field that has rows of its own to them."""
    dims = {n: dim for n, dim in (dims or DIMS).items() if not isinstance(dim, str)}
    return {name: random_table(n, DIM, seed) for seed, (name, n) in enumerate(dims.items())}


def field_data(num_examples=128, seed=0):
    """Returns ids int64 `[num_examples, 4]`, popular ones more often, and labels."""
    rng = np.random.default_rng(seed)
    ids = (rng.random([num_examples, 4]) ** 3 * [*DIMS.values()]).astype("int64")
    return ids, (ids[:, :1] % 2).astype("float32")


def collection_of(dims=None, **kwargs):
    """Returns a collection `"fields"` with the first rows."""
    layer = SlipstreamEmbeddingCollection(dims or DIMS, DIM, **{"name": "fields"} | kwargs)
    layer.build(None)
    layer.set_weights([np.concatenate([*first_tables(dims).values()])])
    return layer


def layers_of(dims=None, **kwargs):
    """Returns a dict from field to its layer, which fields that share rows share."""
    dims = dims or DIMS
    layers = {n: embedding_of(t, name=n, **kwargs) for n, t in first_tables(dims).items()}
    return {name: layers[dim if isinstance(dim, str) else name] for name, dim in dims.items()}


def collection_model(optimizer=None, layer=None):
    """Returns a classifier of the four fields; one that is not compiled without optimizer."""
    layer = collection_of() if layer is None else layer
    ids = keras.Input([4], dtype="int64")
    return _classifier(ids, layer(ids), optimizer)


def layers_model(optimizer=None, layers=None):
    """Returns the same with a layer for each."""
    layers = layers_of() if layers is None else layers
    ids = keras.Input([4], dtype="int64")
    columns = [Column(place)(ids) for place in range(4)]
    rows = [layer(column) for layer, column in zip(layers.values(), columns)]
    return _classifier(ids, keras.layers.Concatenate()(rows), optimizer)


class Column(keras.layers.Layer):
    """One field's ids."""

    def __init__(self, place, **kwargs):
        super().__init__(**kwargs)
        self.place = place

    def call(self, ids):
        return ids[:, self.place]

    def compute_output_shape(self, input_shape):
        return input_shape[:1]

    def get_config(self):
        return super().get_config() | {"place": self.place}


def _classifier(ids, rows, optimizer):
    output = keras.layers.Dense(1, activation="sigmoid", dtype="float32", name="output")
    model = keras.Model(ids, output(keras.layers.Flatten()(rows)))
    output.set_weights([random_table(4 * DIM, 1, seed=9), np.zeros([1])])
    if optimizer is not None:
        model.compile(optimizer, loss="binary_crossentropy")
    return model


def rows_of(model):
    """Returns a dict from field with rows to them, whichever kind of model it is."""
    by_name = {layer.name: layer for layer in model.layers}
    if "fields" in by_name:
        return {name: by_name["fields"].rows(name) for name in by_name["fields"].layout.owners}
    return {name: by_name[name].get_weights()[0] for name in DIMS if name in by_name}


def state_by_field(model):
    """Returns by field with rows what the optimizer has of them: slots, and when last touched."""
    tables = model.optimizer.tables
    found, start = {}, 0
    for name, rows in rows_of(model).items():
        size = len(rows)
        state = tables["fields"] if "fields" in tables else tables[name]
        first = start if "fields" in tables else 0
        variables = [*state.slots, *([] if state.last_steps is None else [state.last_steps])]
        found[name] = [v.numpy()[first : first + size] for v in variables]
        start += size
    return found


def as_columns(ids, dims=None):
    """Returns ids of an array as a dict from field to its column."""
    return dict(zip(dims or DIMS, np.asarray(ids).T))


def dict_model(optimizer, layer):
    """Returns `collection_model` for a dict of ids."""
    inputs = {name: keras.Input([], dtype="int64", name=name) for name in layer.layout.names}
    return _classifier(inputs, keras.layers.Concatenate()([*layer(inputs).values()]), optimizer)


def pool_by_field(model):
    """Returns by field with rows the entries of its popular rows, in their order: ints, floats."""
    tables, found, start = model.optimizer.tables, {}, 0
    for name, rows in rows_of(model).items():
        state = tables["fields"] if "fields" in tables else tables[name]
        first = start if "fields" in tables else 0
        num_entries = int(state.policy_state[schema.POLICY_STATE.index("num_entries")])
        ints = state.pool_ints.numpy()[:num_entries]
        place = schema.POOL_INTS.index("row")
        ints[:, place] -= first
        is_in = (ints[:, place] >= 0) & (ints[:, place] < len(rows))
        order = np.argsort(ints[is_in, place])
        floats = state.pool_floats.numpy()[:num_entries]
        found[name] = [ints[is_in][order], floats[is_in][order]]
        start += len(rows)
    return found
