"""Batches that must be refused, in each of 26 tables and at each replica, and change nothing."""

import contextlib
import functools

import numpy as np
import tensorflow as tf

from tests.distribute.replicas import strategy_of
from tests.models import embedding_of, random_table
from tf_slipstream import SlipstreamEmbeddingCollection, SlipstreamOptimizer, _compat
from tf_slipstream._compat import keras

NUM_TABLES, NUM_ROWS, DIM, SIZE = 26, 9, 2, 8


class Column(keras.layers.Layer):
    def __init__(self, place, **kwargs):
        super().__init__(**kwargs)
        self.place = place

    def call(self, ids):
        return ids[:, self.place]

    def compute_output_shape(self, input_shape):
        return input_shape[:1]


def _model(as_collection=False):
    dense = keras.Input([3], name="dense")
    ids = keras.Input([NUM_TABLES], dtype="int64", name="ids")
    if as_collection:
        fields = {f"field_{n}": NUM_ROWS for n in range(NUM_TABLES)}
        rows = keras.layers.Flatten()(SlipstreamEmbeddingCollection(fields, DIM, name="all")(ids))
    else:
        tables = [
            embedding_of(random_table(NUM_ROWS, DIM, n), name=f"table_{n}")
            for n in range(NUM_TABLES)
        ]
        rows = keras.layers.Concatenate()([t(Column(n)(ids)) for n, t in enumerate(tables)])
    hidden = keras.layers.Concatenate()([dense, rows])
    model = keras.Model({"dense": dense, "ids": ids}, keras.layers.Dense(1, name="output")(hidden))
    model.compile(SlipstreamOptimizer(keras.optimizers.Adam(0.1), policy="aggressive"), loss="mse")
    return model


def batch(seed=0, num=SIZE):
    random = np.random.default_rng(seed)
    inputs = {
        "dense": random.normal(size=[num, 3]).astype(np.float32),
        "ids": random.integers(0, NUM_ROWS, [num, NUM_TABLES]),
    }
    return inputs, random.normal(size=[num, 1]).astype(np.float32)


KINDS = ("tables", "collection", "replicas")


@functools.cache
def model_of(kind):
    """Returns a model of tables, of a collection, or on two replicas, trained a little."""
    scope = contextlib.nullcontext()
    if kind == "replicas":
        scope = strategy_of(2).scope()
    with scope:
        model = _model(as_collection=kind == "collection")
    model.fit(*batch(num=4 * SIZE), batch_size=SIZE, verbose=0)
    return model


def values(model):
    """Returns the values of all variables, on each replica."""
    found = []
    for variable in [*model.weights, *model.optimizer.variables]:
        variable = _compat.tf_variable(variable)
        for one in getattr(variable, "values", [variable]):
            found.append(tf.convert_to_tensor(one).numpy().tobytes())
    return found


def check_refused(model, inputs, labels, expected, train=None):
    """Trains on a batch that must be refused: by this word, and without a change.

    Args:
        train: Trains on inputs and labels; None: `fit` does.
    """
    before = values(model)
    if train is None:
        train = functools.partial(model.fit, batch_size=SIZE, verbose=0, shuffle=False)
    try:
        train(inputs, labels)
    except (tf.errors.OpError, ValueError, TypeError) as error:
        assert expected in str(error), f"{expected!r} is not in {error}"
    else:
        raise AssertionError(f"was not refused: {expected}")
    assert values(model) == before, f"{expected}: something changed"


def try_bad_id(name, place, row, bad):
    """Trains on a batch with a bad id: in table `place`, of example `row`, so at its replica."""
    inputs, labels = batch()
    inputs["ids"][row, place] = bad
    word = f"field_{place}" if name == "collection" else f"table_{place}"
    check_refused(model_of(name), inputs, labels, word)


def try_bad_number(name, row, bad):
    """Trains on a batch with a number that is not finite."""
    for place in ("inputs", "labels"):
        inputs, labels = batch()
        if place == "inputs":
            inputs["dense"][row, 1] = bad
        else:
            labels[row] = bad
        check_refused(model_of(name), inputs, labels, "is NaN or infinite")


def try_bad_shapes(name):
    """Trains on ids that are strings, of too few fields, and of too few examples."""
    inputs, labels = batch()
    for ids, expected in (
        (inputs["ids"].astype(str), "dtype" if _compat.IS_KERAS_3 else "string"),
        (inputs["ids"][:, :-1], f"[{SIZE},{NUM_TABLES - 1}]" if name == "collection" else "slice"),
        (inputs["ids"][:-1], "cardinality"),
    ):
        check_refused(model_of(name), inputs | {"ids": ids}, labels, expected)


def try_no_examples(name):
    """Does a step without an example: no number becomes NaN."""
    model, (inputs, labels) = model_of(name), batch()
    data = tf.data.Dataset.from_tensors((inputs, labels)).map(
        lambda inputs, labels: ({key: one[:0] for key, one in inputs.items()}, labels[:0])
    )
    model.fit(data, verbose=0)
    assert all(np.isfinite(value.numpy()).all() for value in model.weights), name


# Ends of ragged bags that do not fit 8 ids: descending, too far, too near, below 0, ...
BAD_ENDS = ([0, 5, 2, 8], [0, 2, 5, 100], [0, 2, 5, 6], [0, -2, 5, 8], [2, 3, 5, 8])
BAD_ENDS += ([0, 2, 5, 2**62],)


@functools.cache
def model_of_bags():
    ids = keras.Input([None], dtype="int64", ragged=True)
    table = embedding_of(random_table(NUM_ROWS, DIM, 0), name="tags", combiner="sum")
    model = keras.Model(ids, keras.layers.Dense(1)(table(ids)))
    model.compile(SlipstreamOptimizer(keras.optimizers.Adam(0.1), policy="aggressive"), loss="mse")
    _step(model, _bags([0, 2, 5, 8]), np.ones([3, 1], np.float32))
    return model


def _step(model, inputs, labels):
    """Trains without `tf.data`, which would see what is wrong with a ragged tensor."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(inputs, training=True) - labels) ** 2)
    variables = model.trainable_variables
    model.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))


def _bags(ends):
    values = tf.range(8, dtype=tf.int64)
    return tf.RaggedTensor.from_row_splits(values, tf.constant(ends, tf.int64), validate=False)


def try_bad_bags(ends):
    """Trains on ragged bags whose ends make no sense."""
    model = model_of_bags()
    check_refused(
        model, _bags(ends), np.ones([3, 1], np.float32), "", functools.partial(_step, model)
    )


def trial(seed, folder):
    """Tries one table of each model, numbers that are not finite, and what is malformed."""
    del folder
    for name in KINDS:
        for bad in (-1, NUM_ROWS, 2**31, -(2**63)):
            try_bad_id(name, seed % NUM_TABLES, seed * 3 % SIZE, bad)
        try_bad_number(name, seed % SIZE, (np.nan, np.inf, -np.inf)[seed % 3])
    # Each shape is traced anew, which takes replicas of many tables minutes.
    for name in KINDS[:-1]:
        try_bad_shapes(name)
        try_no_examples(name)
    for ends in BAD_ENDS:
        try_bad_bags(ends)
    return {"batches": 6 * len(KINDS) + 4 * (len(KINDS) - 1) + len(BAD_ENDS)}
