"""A Keras optimizer: Adagrad with one accumulator per row."""

import tensorflow as tf

from tf_slipstream import _compat, update_rules
from tf_slipstream.ops import StepSettings


@_compat.register_serializable
class RowWiseAdagrad(_compat.BaseOptimizer):
    """Adagrad with one accumulator per row: the mean of its squared gradients.

    `accumulator += mean(grad^2); row -= learning_rate * grad / (sqrt(accumulator) + epsilon)`

    It trains embedding tables about as well as Adagrad with a slot `dim` times smaller. It is
    FBGEMM's row-wise Adagrad and usually meant for `SlipstreamOptimizer(RowWiseAdagrad(...))`. A
    dense variable has an accumulator per slice along its first axis; one of rank 0 or 1 has one per
    element.

    Args:
        learning_rate: Float, schedule or callable. Defaults to 0.001.
        initial_accumulator_value: Float, not negative. Defaults to 0.1.
        epsilon: Small float against division by zero. Defaults to 1e-7.
        name: String.
        **kwargs: Keras's arguments of every optimizer (`weight_decay`, `clipnorm`, ...).

    Example:

    ```python
    optimizer = slipstream.SlipstreamOptimizer(slipstream.RowWiseAdagrad(0.05))
    ```
    """

    def __init__(
        self,
        learning_rate=0.001,
        initial_accumulator_value=0.1,
        epsilon=1e-7,
        name="row_wise_adagrad",
        **kwargs,
    ):
        if initial_accumulator_value < 0:
            raise ValueError(
                "`initial_accumulator_value` must not be negative. "
                f"Received: initial_accumulator_value={initial_accumulator_value}"
            )
        super().__init__(learning_rate, name, **kwargs)
        self.initial_accumulator_value = initial_accumulator_value
        self.epsilon = epsilon

    def build(self, variables):
        if getattr(self, "_accumulators", None) is not None:
            return
        super().build(variables)
        self._accumulators = [self._add_accumulator(variable) for variable in variables]
        self.mark_built()

    def _add_accumulator(self, variable):
        shape = list(variable.shape)
        if len(shape) > 1:
            shape[1:] = [1] * (len(shape) - 1)
        return self.add_variable(
            shape=shape,
            initializer=_compat.keras.initializers.Constant(self.initial_accumulator_value),
            dtype=variable.dtype,
            name=_compat.slot_name("accumulator", variable),
        )

    def update_step(self, gradient, variable, learning_rate=None):
        """Updates one variable; tf_keras passes no learning rate."""
        accumulator = _compat.tf_variable(self._accumulators[self.place_of(variable)])
        rate = tf.cast(
            self.learning_rate if learning_rate is None else learning_rate, variable.dtype
        )
        rule = update_rules.RowWiseAdagrad(self.initial_accumulator_value, self.epsilon)
        settings = StepSettings(step=None, learning_rate=rate)
        if isinstance(gradient, tf.IndexedSlices):
            ids, lookup_row = tf.unique(gradient.indices)
            grads = tf.math.unsorted_segment_sum(gradient.values, lookup_row, tf.size(ids))
            slots = [tf.gather(accumulator, ids)]
            rows, (accumulated,) = rule.update(
                tf.gather(variable, ids), slots, grads, settings, spends=False
            )
            accumulator.scatter_update(tf.IndexedSlices(accumulated, ids))
            variable.scatter_update(tf.IndexedSlices(rows, ids))
            return
        as_rows = [-1, 1] if len(variable.shape) < 2 else [variable.shape[0], -1]
        rows, (accumulated,) = rule.update(
            tf.reshape(variable, as_rows),
            [tf.reshape(accumulator, [-1, 1])],
            tf.reshape(gradient, as_rows),
            settings,
            spends=False,
        )
        accumulator.assign(tf.reshape(accumulated, accumulator.shape))
        variable.assign(tf.reshape(rows, variable.shape))

    def get_config(self):
        config = super().get_config()
        config["initial_accumulator_value"] = self.initial_accumulator_value
        config["epsilon"] = self.epsilon
        return config
