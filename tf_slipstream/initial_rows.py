"""First values of single rows of a table, for those that get another id."""

import math

import tensorflow as tf

from tf_slipstream import _compat

_TRUNCATED_STDDEV = 0.87962566103423978


def initial_rows(user, initializer, shape, rows, seed, dtype):
    """Returns values `[num, dim]` that rows of a table may have at first.

    They are of the initializer's distribution, for a table of this shape. Those of a `Constant`
    array are the rows of it; others are drawn anew.

    Args:
        user: Whose table it is, for the error.
        initializer: Keras initializer of the table.
        shape: `(num_rows, dim)` of the table.
        rows: int64 `[num]`.
        seed: int64 `[2]`; another one draws other numbers.
        dtype: Of the values.

    Raises:
        ValueError: For an initializer whose distribution is not known.
    """
    initializers = _compat.keras.initializers
    size = tf.stack([tf.size(rows), shape[1]])
    array = _compat.constant_value(initializer, shape)
    if array is not None:
        return tf.cast(tf.gather(tf.constant(array), rows), dtype)
    config = initializer.get_config() if hasattr(initializer, "get_config") else {}
    kind = next((k for k in _KINDS if type(initializer) is getattr(initializers, k)), None)
    if kind == "Constant" and not isinstance(config["value"], (int, float)):
        kind = None
    if kind is None and _compat.makes_its_numbers(initializer):
        kind = "VarianceScaling"  # Glorot's and others
        config = {name: getattr(initializer, name) for name in ("scale", "mode", "distribution")}
    if kind is None:
        raise ValueError(
            f"{user} has the initializer {initializer!r}, and a row that a DynamicVocabulary takes "
            f"back needs new initial values: give one of Keras's, {[*_KINDS]}, or GlorotUniform "
            "and others like it."
        )
    return tf.cast(_KINDS[kind](size, config, shape, seed), dtype)


def _uniform(size, config, _, seed):
    low, high = config["minval"], config["maxval"]
    return tf.random.stateless_uniform(size, seed, low, high)


def _normal(size, config, _, seed):
    return tf.random.stateless_normal(size, seed, config["mean"], config["stddev"])


def _truncated(size, config, _, seed):
    return tf.random.stateless_truncated_normal(size, seed, config["mean"], config["stddev"])


def _scaled(size, config, shape, seed):
    fans = {"fan_in": shape[0], "fan_out": shape[1], "fan_avg": sum(shape) / 2}
    scale = config["scale"] / max(1.0, fans[config["mode"]])
    if config["distribution"] == "uniform":
        limit = math.sqrt(3 * scale)
        return tf.random.stateless_uniform(size, seed, -limit, limit)
    if config["distribution"] == "untruncated_normal":
        return tf.random.stateless_normal(size, seed, 0.0, math.sqrt(scale))
    stddev = math.sqrt(scale) / _TRUNCATED_STDDEV
    return tf.random.stateless_truncated_normal(size, seed, 0.0, stddev)


_KINDS = {
    "RandomUniform": _uniform,
    "RandomNormal": _normal,
    "TruncatedNormal": _truncated,
    "VarianceScaling": _scaled,
    "Zeros": lambda size, *_: tf.zeros(size),
    "Ones": lambda size, *_: tf.ones(size),
    "Constant": lambda size, config, *_: tf.fill(size, float(config["value"])),
}
