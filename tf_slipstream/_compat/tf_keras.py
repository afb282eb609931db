"""What is tf_keras's own way. `keras3` has the same functions."""

import tensorflow as tf
import tf_keras as keras
from tf_keras.src.engine import base_layer_utils
from tf_keras.src.saving.legacy.saved_model import save_impl


def tf_variable(variable):
    """Returns the `tf.Variable` behind a Keras variable."""
    return variable


def add_table(layer, **arguments):
    """Adds an embedding layer's table, never cast to a lower precision, and returns it."""
    layer.embeddings = layer.add_weight(experimental_autocast=False, **arguments)
    return layer.embeddings


def table_of(layer):
    """Returns what `add_table` or `add_table_shards` added."""
    return layer.embeddings


def add_table_shards(layer, strategy, num_servers, shape, initializer, **arguments):
    """Adds an embedding layer's table on parameter servers, and returns its shards in order.

    The strategy's partitioner says how many there are.
    """
    table = add_table(layer, shape=shape, initializer=initializer, **arguments)
    return list(getattr(table, "variables", [table]))


def add_replicated(layer, name, shape, dtype):
    """Adds a variable of zeros that every replica sets to the same value."""
    return layer.add_weight(
        name=name,
        shape=shape,
        dtype=dtype,
        initializer="zeros",
        trainable=False,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def build_in_graph(model, inputs):
    """Makes a model's variables, which cannot be made in a branch of a graph."""
    if not model.built:
        model(inputs, training=False)


def allow_mean_over_replicas(loss, other):
    """Lets a loss be the mean over replicas where another one may."""
    # `compile` sets it on the losses that it is given.
    loss._allow_sum_over_batch_size = other._allow_sum_over_batch_size


def loss_of_function(function):
    """Returns the loss object that `compile` makes of a function."""
    return keras.src.losses.LossFunctionWrapper(function, name=function.__name__)


def update_metrics(model, y, y_pred, weights, sample_weight):
    """Updates the metrics of `compile`, those too that take no weights, with weights.

    Args:
        model: A model that is compiled.
        y: Labels, as the model's data has them.
        y_pred: The model's outputs.
        weights: `[batch]`, for `metrics`.
        sample_weight: For `weighted_metrics`.
    """
    compiled = model.compiled_metrics
    if not compiled.built:
        compiled.build(y_pred, y)
    metrics, weighted = compiled._metrics, compiled._weighted_metrics
    compiled._metrics = [[None]] * len(metrics)
    for some, weights_of_some in ((metrics, weights), (weighted, sample_weight)):
        compiled._weighted_metrics = some
        compiled.update_state(y, y_pred, weights_of_some)
    compiled._metrics, compiled._weighted_metrics = metrics, weighted


def with_another_seed(initializer, number):
    """Returns the initializer: in tf_keras one draws other numbers at each call."""
    return initializer


def asks_for_shapes_alone():
    """Whether values go nowhere, because a model is traced that is not built yet: never."""
    return False


def count_atomically(variable):
    """Has a variable add in one operation: nothing to do, a `tf.Variable` does."""


def is_saving_traces():
    """Whether calls are traced to be saved, those of training too."""
    return base_layer_utils.call_context().saving or save_impl.tracing_enabled()


def is_symbolic(tensor):
    """Whether a tensor is a placeholder in the making of a functional model."""
    try:
        return keras.backend.is_keras_tensor(tensor)
    except ValueError:
        return False  # no tensor at all


def symbolic_mask(ids):
    """Returns where ids of a functional model, which `is_symbolic`, are not 0 as integers."""
    return tf.not_equal(tf.cast(ids, tf.int64), 0)


def is_unsupported_dtype_policy(layer):
    """Whether a layer's variables are neither float32 nor bfloat16."""
    return layer.variable_dtype not in ("float32", "bfloat16")


def variables_of(layer):
    """Returns the variables of a layer or model, as far as it is built."""
    try:
        return layer.variables
    except ValueError:
        # A model has none before it is built, though its layers may be another's too.
        parts = [layer, *layer.submodules]
        lists = ("_trainable_weights", "_non_trainable_weights")
        return [v for part in parts for name in lists for v in getattr(part, name, ())]


def slot_name(name, variable):
    """Returns the name of an optimizer's variable that goes with a model's variable."""
    # An .h5 file has variables by their names.
    return f"{name}/{variable.name.partition(':')[0]}"


def apply_to(optimizer, grads, variables, are_summed):
    """Applies gradients of dense variables, summed over replicas first unless they are already."""
    are_summed = are_summed or tf.distribute.get_strategy().num_replicas_in_sync == 1
    optimizer.apply_gradients(zip(grads, variables), skip_gradients_aggregation=are_summed)


def exported_variables(archive):
    """Returns the variables of an `ExportArchive`."""
    return [*archive.trainable_variables, *archive.non_trainable_variables]


class BaseOptimizer(keras.optimizers.Optimizer):
    """A Keras optimizer with one constructor for both Kerases.

    Args:
        learning_rate: As Keras takes it; None: it has none of its own.
        name: String.
        **kwargs: Keras's other arguments.
    """

    def __init__(self, learning_rate, name, **kwargs):
        if learning_rate is None:
            super().__init__(name=name, weight_decay=None, jit_compile=False, **kwargs)
        else:
            super().__init__(name=name, **kwargs)
            self._learning_rate = self._build_learning_rate(learning_rate)

    @property
    def is_built(self):
        return getattr(self, "_built", False)

    def mark_built(self):
        self._built = True

    def variables_built_for(self):
        """Returns the variables that `apply(grads)` without variables is about."""
        raise ValueError(
            "Without variables tf_keras's optimizers cannot apply gradients: call "
            "`optimizer.apply_gradients(zip(grads, variables))`."
        )

    def place_of(self, variable):
        """Returns the place of a variable among those that it was built for."""
        return self._index_dict[self._var_key(variable)]

    @staticmethod
    def counters_to_leave_out(optimizers):
        """Returns the counters of optimizers that count no steps, which no file is to have."""
        # An .h5 file has variables by their names, and all are called "iteration".
        return [optimizer._iterations for optimizer in optimizers]

    def get_config(self):
        config = super().get_config()
        config["learning_rate"] = self._serialize_hyperparameter(self._learning_rate)
        return config
