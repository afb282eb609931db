"""A log of clicks, and a model of it, that the tests of choosing inputs share."""

import numpy as np
import tensorflow as tf

import tf_slipstream as slipstream
from tf_slipstream._compat import keras

DIMS = {"item": 80, "user": 30}
BATCH = 64


def click_log(num_inputs=2000, click_logit=-2.0, seed=0):
    """Returns ids by field, int64 `[num]`, and labels float32 `[num]` that depend on them."""
    rng = np.random.default_rng(seed)
    ids = {name: rng.integers(dim, size=num_inputs) for name, dim in DIMS.items()}
    effects = {name: rng.normal(size=dim) for name, dim in DIMS.items()}
    logits = click_logit + sum(effects[name][ids[name]] for name in DIMS)
    return ids, (rng.random(num_inputs) < 1 / (1 + np.exp(-logits))).astype("float32")


def dataset(log, batch_size=BATCH, weights=None):
    parts = log if weights is None else (*log, weights)
    return tf.data.Dataset.from_tensor_slices(parts).batch(batch_size)


def click_model(activation="sigmoid", seed=1, num_outputs=1):
    """Returns a functional model of a dict of ids."""
    keras.utils.set_random_seed(seed)
    inputs = {name: keras.Input([], dtype="int64", name=name) for name in DIMS}
    rows = [
        slipstream.SlipstreamEmbedding(dim, 4, name=f"{name}_rows")(inputs[name])
        for name, dim in DIMS.items()
    ]
    hidden = keras.layers.Dense(8, activation="relu")(keras.layers.Concatenate()(rows))
    names = ["click", "buy", "stars"][:num_outputs]
    outputs = {name: keras.layers.Dense(1, activation, name=name)(hidden) for name in names}
    return keras.Model(inputs, outputs if num_outputs > 1 else outputs["click"])


def optimizer(rule="Adam", rate=0.01):
    return slipstream.SlipstreamOptimizer(getattr(keras.optimizers, rule)(rate))


def selective_model(model=None, compile_arguments=(), **arguments):
    """Returns a compiled `SelectiveModel` of a `click_model`."""
    model = click_model() if model is None else model
    pilot = arguments.pop("pilot", None) or slipstream.Pilot(DIMS)
    selective = slipstream.SelectiveModel(model, pilot, **arguments)
    rule = dict(compile_arguments).pop("optimizer", None) or optimizer()
    others = {"loss": "binary_crossentropy"} | dict(compile_arguments) | {"optimizer": rule}
    selective.compile(**others)
    return selective
