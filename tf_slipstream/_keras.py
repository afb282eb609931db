"""Keras 3 and tf_keras behind the same names: the only module that knows which of them is in use.

As for `tf.keras`, it is Keras 3 unless TF_USE_LEGACY_KERAS=1 is set before TensorFlow is imported.
"""

import collections.abc
import functools
import os
import warnings

import tensorflow as tf

IS_KERAS_3 = os.environ.get("TF_USE_LEGACY_KERAS") not in ("1", "true", "True")

if IS_KERAS_3:
    import keras
else:
    import tf_keras as keras

if IS_KERAS_3 and keras.config.backend() != "tensorflow":
    raise ImportError(
        "tf_slipstream trains with Keras's TensorFlow backend, but Keras runs on "
        f"'{keras.config.backend()}'. Set KERAS_BACKEND=tensorflow before keras is imported."
    )

# Below this a table is not divided: a message costs more than what it carries.
_LEAST_SHARD_BYTES = 1 << 18

register_serializable = keras.saving.register_keras_serializable(package="tf_slipstream")


def tf_variable(variable):
    """Returns the `tf.Variable` behind a Keras variable."""
    return variable.value if IS_KERAS_3 and isinstance(variable, keras.Variable) else variable


def add_table(layer, **arguments):
    """Adds an embedding layer's table, never cast to a lower precision, and returns it."""
    if IS_KERAS_3:
        layer._embeddings = layer.add_weight(autocast=False, **arguments)
        return layer._embeddings
    layer.embeddings = layer.add_weight(experimental_autocast=False, **arguments)
    return layer.embeddings


def add_table_shards(layer, strategy, num_servers, shape, initializer, **arguments):
    """Adds an embedding layer's table on parameter servers, and returns its shards in order.

    In tf_keras the strategy's partitioner says how many there are. Keras 3 knows no partitioned
    variables: there a table has a variable on each server, unless it is small.
    """
    if not IS_KERAS_3:
        table = add_table(layer, shape=shape, initializer=initializer, **arguments)
        return list(getattr(table, "variables", [table]))
    if getattr(strategy.extended, "_variable_partitioner", None) is not None:
        raise ValueError(
            "Keras 3 has no partitioned variables: make ParameterServerStrategy without "
            "`variable_partitioner`. SlipstreamEmbedding divides its table among servers itself."
        )
    num_rows, dim = shape
    num_shards = max(1, min(num_servers, 4 * num_rows * dim // _LEAST_SHARD_BYTES))
    starts = [num_rows * shard // num_shards for shard in range(num_shards + 1)]
    name = arguments.pop("name")
    shards = []
    for shard, (start, end) in enumerate(zip(starts, starts[1:])):
        draw = functools.partial(initializer, shard=shard, first_row=start)
        shard_name = name if num_shards == 1 else f"{name}_{shard}"
        shape = (end - start, dim)
        shards.append(
            layer.add_weight(
                autocast=False, shape=shape, initializer=draw, name=shard_name, **arguments
            )
        )
    layer._embeddings = shards[0]
    return shards


def with_another_seed(initializer, number):
    """Returns an initializer like this one that draws other numbers for each `number` above 0.

    Keras 3 draws the same numbers at each call of one initializer, whether its seed was given or is
    its own.
    """
    if number == 0 or not IS_KERAS_3 or not hasattr(initializer, "seed"):
        return initializer
    seed = initializer.seed
    if not isinstance(seed, int):
        return initializer  # a generator, which goes on by itself
    config = {**initializer.get_config(), "seed": seed + number}
    return type(initializer).from_config(config)


def makes_its_numbers(initializer):
    """Whether it is an initializer of Keras's own that holds no values: it draws them, or fills."""
    initializers = keras.initializers
    kinds = ("RandomNormal", "RandomUniform", "TruncatedNormal", "VarianceScaling", "Zeros", "Ones")
    is_keras_own = type(initializer).__module__.split(".")[0] == keras.__name__
    return is_keras_own and isinstance(initializer, tuple(getattr(initializers, k) for k in kinds))


def constant_value(initializer, shape):
    """Returns the array of a `Constant` initializer that holds one of this shape; else None."""
    value = initializer.value if isinstance(initializer, keras.initializers.Constant) else None
    is_array = hasattr(value, "shape") and tuple(value.shape) == tuple(shape)
    return value if is_array else None


def asks_for_shapes_alone():
    """Whether Keras 3 traces a model that is not built yet; values then go nowhere."""
    return IS_KERAS_3 and keras.src.backend.common.stateless_scope.in_stateless_scope()


def count_atomically(variable):
    """Has a variable add in one operation, so that workers at once lose nothing."""
    if IS_KERAS_3:
        # Its own way is to read and to assign.
        variable.assign_add = variable.value.assign_add


def is_symbolic(tensor):
    """Whether a tensor is a placeholder in the making of a functional model."""
    if IS_KERAS_3:
        return isinstance(tensor, keras.KerasTensor)
    try:
        return keras.backend.is_keras_tensor(tensor)
    except ValueError:
        return False  # no tensor at all


def symbolic_mask(ids):
    """Returns where ids of a functional model, which `is_symbolic`, are not 0 as integers."""
    if IS_KERAS_3:
        dense = keras.ops.convert_to_tensor(ids, sparse=False) if ids.sparse else ids
        return keras.ops.not_equal(keras.ops.cast(dense, "int64"), 0)
    return tf.not_equal(tf.cast(ids, tf.int64), 0)


def is_unsupported_dtype_policy(layer):
    """Whether a layer's variables are neither float32 nor bfloat16, or are quantized."""
    quantized = IS_KERAS_3 and layer.quantization_mode is not None
    return quantized or layer.variable_dtype not in ("float32", "bfloat16")


def variables_of(layer):
    """Returns the variables of a layer or model, as far as it is built."""
    try:
        return layer.variables
    except ValueError:
        # A model of tf_keras has none before it is built, though its layers may be another's too.
        parts = [layer, *layer.submodules]
        lists = ("_trainable_weights", "_non_trainable_weights")
        return [v for part in parts for name in lists for v in getattr(part, name, ())]


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


def slot_name(name, variable):
    """Returns the name of an optimizer's variable that goes with a model's variable."""
    # An .h5 file of tf_keras has variables by their names.
    return name if IS_KERAS_3 else f"{name}/{variable.name.partition(':')[0]}"


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


def apply_to(optimizer, grads, variables, are_summed):
    """Applies gradients of dense variables, summed over replicas first unless they are already."""
    num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if not IS_KERAS_3:
        are_summed = are_summed or num_replicas == 1
        optimizer.apply_gradients(zip(grads, variables), skip_gradients_aggregation=are_summed)
        return
    if num_replicas == 1:
        # A sum over one replica is a `tf.custom_gradient`, which TensorFlow keeps for ever, and
        # with it the graph that it is in and the model.
        optimizer._all_reduce_sum_gradients = list
    elif are_summed:
        # Keras 3 has no way to say so; it sums once more.
        grads = [tf.math.scalar_mul(1 / num_replicas, grad) for grad in grads]
    optimizer.apply(grads, variables)


def exported_variables(archive):
    """Returns the variables of an `ExportArchive`."""
    if IS_KERAS_3:
        return list(getattr(archive._tf_trackable, "variables", ()))
    return [*archive.trainable_variables, *archive.non_trainable_variables]


class WrappingOptimizer(keras.optimizers.Optimizer):
    """An optimizer around `self.inner_optimizer`, with one `_apply` for both Kerases.

    As Keras's `LossScaleOptimizer` does it: the variables are its own, then the inner one's;
    learning rate and step counter are the inner one's. A subclass has

    - `_build(variables)`: creates the state of these variables; called once, eagerly;
    - `_apply(grads, variables, are_summed)`: does a step, given every gradient that is not None,
      and whether the caller has summed them over replicas.
    """

    def __init__(self, inner_optimizer, name):
        if IS_KERAS_3:
            super().__init__(learning_rate=0.0, name=name)
        else:
            super().__init__(name=name, weight_decay=None, jit_compile=False)
        self.inner_optimizer = inner_optimizer

    def build(self, variables):
        # The name of this attribute is all that differs: `built` in Keras 3, `_built` in tf_keras.
        flag = "built" if IS_KERAS_3 else "_built"
        if getattr(self, flag, False):
            return
        with tf.init_scope():
            self._build(list(variables))
            super().build(list(variables))
        setattr(self, flag, True)

    @property
    def variables(self):
        own, beside = super().variables, getattr(self, "table_optimizer", None)
        of_tables = [] if beside is None else beside.variables
        found = [*own, *self.inner_optimizer.variables, *of_tables]
        if not IS_KERAS_3:
            # An .h5 file has variables by their names, and all are called "iteration". One counts.
            unused = [one._iterations for one in (self, beside) if one is not None]
            found = [v for v in found if all(v is not one for one in unused)]
        return type(own)(found)

    @property
    def iterations(self):
        return self.inner_optimizer.iterations

    @iterations.setter
    def iterations(self, variable):
        self.inner_optimizer.iterations = variable

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def loss_scale_factor(self):
        return getattr(self.inner_optimizer, "loss_scale_factor", None)

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor):
        # Keras sets it before there is an inner optimizer, and to None under a LossScaleOptimizer.
        if hasattr(self, "inner_optimizer"):
            self.inner_optimizer.loss_scale_factor = factor

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        for optimizer in (self.inner_optimizer, getattr(self, "table_optimizer", None)):
            if optimizer is not None:
                optimizer.exclude_from_weight_decay(var_list, var_names)

    def set_weights(self, weights):
        """Sets the values of `variables`, in their order."""
        for variable, value in zip(self.variables, weights, strict=True):
            variable.assign(value)

    def apply(self, grads, trainable_variables=None):
        """Keras 3's entry: does a training step."""
        if not grads:
            return
        if trainable_variables is None:
            if not self.built:
                raise ValueError(
                    "`apply(grads)` without variables needs an optimizer that is built: call "
                    "`optimizer.build(trainable_variables)` first."
                )
            trainable_variables = self._trainable_variables
        self._step(grads, trainable_variables)

    def apply_gradients(
        self, grads_and_vars, name=None, skip_gradients_aggregation=False, **kwargs
    ):
        """tf_keras's entry, and that of custom loops with either: does a training step."""
        pairs = list(grads_and_vars)
        if pairs:
            aggregate = kwargs.pop("experimental_aggregate_gradients", True)
            are_summed = not IS_KERAS_3 and (skip_gradients_aggregation or not aggregate)
            grads, variables = zip(*pairs)
            self._step(grads, variables, are_summed)
        return self.iterations

    def _step(self, grads, variables, are_summed=False):
        self.build(variables)
        pairs = [(g, v) for g, v in zip(grads, variables, strict=True) if g is not None]
        missing = [v.name for g, v in zip(grads, variables) if g is None]
        if not pairs:
            raise ValueError(f"No gradients provided for any variable: {missing}.")
        if missing:
            warnings.warn(f"Gradients do not exist for variables {missing}.", stacklevel=3)
        self._apply(*zip(*pairs), are_summed)
