"""What is Keras 3's own way. `tf_keras` has the same functions."""

import functools

import keras
import tensorflow as tf
from keras.src.backend.common.stateless_scope import in_stateless_scope

if keras.config.backend() != "tensorflow":
    raise ImportError(
        "tf_slipstream trains with Keras's TensorFlow backend, but Keras runs on "
        f"'{keras.config.backend()}'. Set KERAS_BACKEND=tensorflow before keras is imported."
    )

# Below this a table is not divided: a message costs more than what it carries.
_LEAST_SHARD_BYTES = 1 << 18


def tf_variable(variable):
    """Returns the `tf.Variable` behind a Keras variable."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def add_table(layer, **arguments):
    """Adds an embedding layer's table, never cast to a lower precision, and returns it."""
    layer._embeddings = layer.add_weight(autocast=False, **arguments)
    return layer._embeddings


def table_of(layer):
    """Returns what `add_table` or `add_table_shards` added, of shards the first."""
    return layer._embeddings


def add_table_shards(layer, strategy, num_servers, shape, initializer, **arguments):
    """Adds an embedding layer's table on parameter servers, and returns its shards in order.

    Keras 3 knows no partitioned variables: a table has a variable on each server, unless it is
    small. Its initializer is called with `shard`, its number, and `first_row`.
    """
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


def add_replicated(layer, name, shape, dtype):
    """Adds a variable of zeros that every replica sets to the same value."""
    return layer.add_weight(
        name=name,
        shape=shape,
        dtype=dtype,
        initializer="zeros",
        trainable=False,
        aggregation="only_first_replica",
    )


def build_in_graph(model, inputs):
    """Makes a model's variables: nothing to do, Keras 3 has made them before it traces a step."""


def allow_mean_over_replicas(loss, other):
    """Lets a loss be the mean over replicas where another one may: nothing to do in Keras 3."""


def loss_of_function(function):
    """Returns the loss object that `compile` makes of a function."""
    return keras.src.losses.losses.LossFunctionWrapper(function, name=function.__name__)


def update_metrics(model, y, y_pred, weights, sample_weight):
    """Updates the metrics of `compile`, those too that take no weights, with weights.

    Args:
        model: A model that is compiled.
        y: Labels, as the model's data has them.
        y_pred: The model's outputs.
        weights: `[batch]`, for `metrics`.
        sample_weight: For `weighted_metrics`.
    """
    compiled = model._compile_metrics
    if compiled is None:
        return
    if not compiled.built:
        compiled.build(y, y_pred)
    metrics, weighted = compiled._flat_metrics, compiled._flat_weighted_metrics
    compiled._flat_metrics = [None] * len(metrics)
    for some, weights_of_some in ((metrics, weights), (weighted, sample_weight)):
        compiled._flat_weighted_metrics = some
        compiled.update_state(y, y_pred, weights_of_some)
    compiled._flat_metrics, compiled._flat_weighted_metrics = metrics, weighted


def with_another_seed(initializer, number):
    """Returns an initializer like this one that draws other numbers for each `number` above 0.

    Keras 3 draws the same numbers at each call of one initializer, whether its seed was given or is
    its own.

    Raises:
        ValueError: For one with a seed that cannot be made again from its config.
    """
    if number == 0 or not isinstance(getattr(initializer, "seed", None), int):
        return initializer  # without seed, or with a generator, which goes on by itself
    seed = (initializer.seed + number * 0x9E3779B1) % 2**31
    try:
        return type(initializer).from_config({**initializer.get_config(), "seed": seed})
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"The initializer {initializer!r} has a seed, and each part of a divided table needs "
            "another one. It cannot be made again from its config with another seed "
            f"({error}). Give its class a `get_config` that returns all arguments of its "
            "constructor, `seed` among them."
        ) from error


def asks_for_shapes_alone():
    """Whether Keras 3 traces a model that is not built yet; values then go nowhere."""
    return in_stateless_scope()


def count_atomically(variable):
    """Has a variable add in one operation, so that workers at once lose nothing."""
    # Keras's own way is to read and to assign.
    variable.assign_add = variable.value.assign_add


def is_saving_traces():
    """Whether calls are traced to be saved, those of training too: never in Keras 3."""
    return False


def is_symbolic(tensor):
    """Whether a tensor is a placeholder in the making of a functional model."""
    return isinstance(tensor, keras.KerasTensor)


def symbolic_mask(ids):
    """Returns where ids of a functional model, which `is_symbolic`, are not 0 as integers."""
    dense = keras.ops.convert_to_tensor(ids, sparse=False) if ids.sparse else ids
    return keras.ops.not_equal(keras.ops.cast(dense, "int64"), 0)


def is_unsupported_dtype_policy(layer):
    """Whether a layer's variables are neither float32 nor bfloat16, or are quantized."""
    is_quantized = layer.quantization_mode is not None
    return is_quantized or layer.variable_dtype not in ("float32", "bfloat16")


def variables_of(layer):
    """Returns the variables of a layer or model, as far as it is built."""
    return layer.variables


def slot_name(name, variable):
    """Returns the name of an optimizer's variable that goes with a model's variable."""
    return name


def apply_to(optimizer, grads, variables, are_summed):
    """Applies gradients of dense variables, summed over replicas first unless they are already."""
    num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
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
    return list(getattr(archive._tf_trackable, "variables", ()))


class BaseOptimizer(keras.optimizers.Optimizer):
    """A Keras optimizer with one constructor for both Kerases.

    Args:
        learning_rate: As Keras takes it; None: it has none of its own.
        name: String.
        **kwargs: Keras's other arguments.
    """

    def __init__(self, learning_rate, name, **kwargs):
        learning_rate = 0.0 if learning_rate is None else learning_rate
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)

    @property
    def is_built(self):
        return self.built

    def mark_built(self):
        self.built = True

    def variables_built_for(self):
        """Returns the variables that `apply(grads)` without variables is about."""
        return self._trainable_variables

    def place_of(self, variable):
        """Returns the place of a variable among those that it was built for."""
        return self._trainable_variables_indices[self._var_key(variable)]

    @staticmethod
    def counters_to_leave_out(optimizers):
        """Returns the counters of optimizers that count no steps, which no file is to have."""
        return []
