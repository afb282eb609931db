"""An optimizer around another, for both Kerases."""

import warnings

import tensorflow as tf

from tf_slipstream._compat.which import IS_KERAS_3, chosen


class WrappingOptimizer(chosen.BaseOptimizer):
    """An optimizer around `self.inner_optimizer`, with one `_apply` for both Kerases.

    As Keras's `LossScaleOptimizer` does it: the variables are its own, then the inner one's;
    learning rate and step counter are the inner one's. A subclass has

    - `_build(variables)`: creates the state of these variables; called once, eagerly;
    - `_apply(grads, variables, are_summed)`: does a step, given every gradient that is not None,
      and whether the caller has summed them over replicas.
    """

    def __init__(self, inner_optimizer, name):
        super().__init__(learning_rate=None, name=name)
        self.inner_optimizer = inner_optimizer

    def build(self, variables):
        if self.is_built:
            return
        with tf.init_scope():
            self._build(list(variables))
            super().build(list(variables))
        self.mark_built()

    @property
    def variables(self):
        own, beside = super().variables, getattr(self, "table_optimizer", None)
        of_tables = [] if beside is None else beside.variables
        found = [*own, *self.inner_optimizer.variables, *of_tables]
        unused = self.counters_to_leave_out([one for one in (self, beside) if one is not None])
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
            if not self.is_built:
                raise ValueError(
                    "`apply(grads)` without variables needs an optimizer that is built: call "
                    "`optimizer.build(trainable_variables)` first."
                )
            trainable_variables = self.variables_built_for()
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
