"""What is the same in both Kerases, or nearly."""

import collections.abc
import hashlib

import h5py
import numpy as np
import tensorflow as tf

from tf_slipstream._compat.which import IS_KERAS_3, keras

register_serializable = keras.saving.register_keras_serializable(package="tf_slipstream")


def strategy_of(optimizer):
    """Returns the strategy that an optimizer was made under, or None."""
    return optimizer._distribution_strategy


def uses_weight_decay(optimizer, variable):
    """Whether an optimizer's weight decay is for this variable."""
    return optimizer._use_weight_decay(variable)


def as_optimizer(optimizer):
    """Returns the Keras optimizer that an object, a name or a config stands for."""
    if isinstance(optimizer, collections.abc.Mapping):
        config = dict(optimizer.get("config") or {})
        if config and not IS_KERAS_3:
            # tf_keras takes a config that does not say so for one of `keras.optimizers.legacy`.
            config.setdefault("is_legacy_optimizer", False)
        return keras.optimizers.get({**optimizer, "config": config})
    return keras.optimizers.get(optimizer) if isinstance(optimizer, str) else optimizer


def check_dense_optimizer(optimizer):
    """Checks the optimizer of all variables but the tables, where these have one of their own.

    Raises:
        ValueError: If it is no Keras optimizer, or counts steps otherwise than tables do.
    """
    is_optimizer = isinstance(optimizer, keras.optimizers.Optimizer)
    is_wrapper = hasattr(optimizer, "inner_optimizer")
    if not is_optimizer or is_wrapper or getattr(optimizer, "gradient_accumulation_steps", None):
        raise ValueError(
            "With `table_optimizer`, `inner` must be a Keras optimizer without "
            "`gradient_accumulation_steps`, and none around another; got "
            f"{optimizer!r}.{legacy_hint(optimizer)}"
        )


def learning_rate_at(optimizer, iterations):
    """Returns the learning rate of the step after so many, a float32 scalar tensor."""
    rate = optimizer._learning_rate
    if has_schedule(optimizer):
        rate = rate(iterations)
    elif callable(rate) and not isinstance(rate, tf.Variable) and not hasattr(rate, "assign"):
        rate = rate()
    return tf.cast(tf.convert_to_tensor(rate), tf.float32)


def has_schedule(optimizer):
    """Whether an optimizer's learning rate is a schedule."""
    schedules = keras.optimizers.schedules
    return isinstance(optimizer._learning_rate, schedules.LearningRateSchedule)


def legacy_hint(optimizer, supported=None):
    """Returns what to do about one of `keras.optimizers.legacy`; nothing for any other.

    Args:
        optimizer: Any object.
        supported: Names of the optimizers that may stand in its place; None: any of Keras's.
    """
    module = type(optimizer).__module__
    if ".legacy" not in module and "optimizer_v2" not in module:
        return ""
    name = type(optimizer).__name__
    is_good = name in supported if supported else hasattr(keras.optimizers, name)
    instead = f"keras.optimizers.{name}" if is_good else "one of the others"
    return f" This is one of keras.optimizers.legacy, which are not supported: use {instead}."


def makes_its_numbers(initializer):
    """Whether it is an initializer of Keras's own that holds no values: it draws them, or fills."""
    initializers = keras.initializers
    kinds = ("RandomNormal", "RandomUniform", "TruncatedNormal", "VarianceScaling", "Zeros", "Ones")
    is_keras_own = type(initializer).__module__.split(".")[0] == keras.__name__
    return is_keras_own and isinstance(initializer, tuple(getattr(initializers, k) for k in kinds))


def symbolic_output(shape, dtype, is_ragged=False, is_sparse=False):
    """Returns the placeholder of a layer's output in a functional model of Keras 3."""
    # Before 3.9 Keras has none that are ragged, and does not know the word.
    kind = {"ragged": True} if is_ragged else {"sparse": is_sparse}
    return keras.KerasTensor(shape, dtype=dtype, **kind)


def num_batches_done(callback, batch):
    """Returns how many batches of the epoch are done.

    Args:
        callback: Keras callback, in `on_train_batch_end`.
        batch: What that was called with.
    """
    # With `steps_per_execution`, Keras 3 gives the first of several batches there before 3.11, and
    # the last one since.
    if not IS_KERAS_3 or _version_of_keras() >= (3, 11):
        return batch + 1
    num = batch + callback.model.steps_per_execution
    num_in_all = callback.params.get("steps")
    return num if num_in_all is None else min(num, num_in_all)


def _version_of_keras():
    return tuple(map(int, keras.__version__.split(".")[:2]))


def logits_behind(probabilities):
    """Returns the logits that a loss of Keras takes in place of these probabilities, or None."""
    logits = getattr(probabilities, "_keras_logits", None)
    if logits is None and tf.is_symbolic_tensor(probabilities):
        operation = probabilities.op
        logits = operation.inputs[0] if operation.type == "Sigmoid" else None
    return logits


def constant_value(initializer, shape):
    """Returns the array of a `Constant` initializer that holds one of this shape; else None."""
    value = initializer.value if isinstance(initializer, keras.initializers.Constant) else None
    is_array = hasattr(value, "shape") and tuple(value.shape) == tuple(shape)
    return value if is_array else None


def with_field_seed(initializer, field, seed):
    """Returns an initializer like this one that draws a field's own numbers.

    Args:
        initializer: Keras initializer. Without a seed, or with a generator, which goes on by
            itself, it stays as it is.
        field: String; other numbers are drawn for another.
        seed: Integer, for an initializer whose own seed is None.
    """
    own = getattr(initializer, "seed", 0.0)
    if own is not None and not isinstance(own, int):
        return initializer
    text = f"{seed if own is None else own}/{field}"
    digest = hashlib.sha256(text.encode()).digest()
    config = {**initializer.get_config(), "seed": int.from_bytes(digest[:4], "little") >> 1}
    return type(initializer).from_config(config)


def serialize(value, kind):
    """Returns an object of a class as a config may hold it; any other value as it is."""
    is_object = isinstance(value, kind)
    return keras.saving.serialize_keras_object(value) if is_object else value


def deserialize(config, custom_objects=None):
    """Returns what `serialize` was given."""
    # tf_keras wraps the dicts of a config.
    if not isinstance(config, collections.abc.Mapping):
        return config
    # While tf_keras reads an .h5 file its own function looks at `class_name` alone.
    registered = keras.saving.get_registered_object(config.get("registered_name"), custom_objects)
    if registered is not None:
        return registered.from_config(config["config"])
    if config.get("module") == "keras.optimizers":
        return as_optimizer(config)
    return keras.saving.deserialize_keras_object(config, custom_objects=custom_objects)


def new_dataset(store, key, shape, dtype):
    """Returns an `h5py.Dataset` for a value of a layer, to be written in parts.

    Args:
        store: What Keras gives `save_own_variables`.
        key: The value's.
        shape: Of the value.
        dtype: NumPy's, one that HDF5 knows.

    Returns:
        None where the store takes whole values only, as a dict does, and one that divides them
        among files.
    """
    if hasattr(store, "max_shard_size") or np.dtype(dtype).kind == "V":
        return None
    # Keras 3 makes the group of a layer when it is given its first value.
    store[key] = np.zeros([0], np.float32)
    group = _group_of(store)
    if group is None:
        return None
    del group[key]
    return group.create_dataset(key, shape, dtype)


def dataset_of(store, key):
    """Returns the `h5py.Dataset` of a value of a layer, to be read in parts.

    Args:
        store: What Keras gives `load_own_variables`.
        key: The value's.

    Returns:
        None where there is none, or none that can be read as it is. Then Keras reads it, or says
        why not.
    """
    group = _group_of(store)
    # Of links Keras says why it does not follow them.
    if group is None or group.get(key, getclass=True, getlink=True) is not h5py.HardLink:
        return None
    dataset = group[key]
    is_plain = isinstance(dataset, h5py.Dataset) and "dtype" not in dataset.attrs
    return None if not is_plain or dataset.external or dataset.is_virtual else dataset


def _group_of(store):
    """Returns the `h5py.Group` that a store of Keras keeps values in, or None."""
    # tf_keras's store is one. In Keras 3 it was `group` before 3.9.
    places = [store, *(getattr(store, name, None) for name in ("_h5_entry_group", "group"))]
    return next((place for place in places if isinstance(place, h5py.Group)), None)
