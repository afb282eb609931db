"""What tables take from a Keras optimizer: its rule, rates, weight decay and clipping."""

import tensorflow as tf

from tf_slipstream import _compat, update_rules
from tf_slipstream.ops import StepSettings
from tf_slipstream.row_wise_adagrad import RowWiseAdagrad


class Inner:
    """A Keras optimizer as the rule of tables.

    Args:
        optimizer: A Keras optimizer that has a sparse rule here.
        is_of_all: Whether it trains all other variables as well.

    Attributes:
        optimizer, is_of_all: The same.
        rule: Its `UpdateRule`.

    Raises:
        ValueError: For an optimizer without one, or with `use_ema` or
            `gradient_accumulation_steps`, which would read and write whole tables.
    """

    def __init__(self, optimizer, is_of_all=True):
        self.optimizer, self.is_of_all = optimizer, is_of_all
        self.rule = _rule_of(optimizer)
        if self.rule is None:
            raise ValueError(_refusal(optimizer))
        for argument in ("use_ema", "gradient_accumulation_steps"):
            if getattr(optimizer, argument, None):
                raise ValueError(
                    f"SlipstreamOptimizer cannot be used with `{argument}` "
                    f"(got {getattr(optimizer, argument)!r}): it would read and write every row of "
                    f"every table. Construct {type(optimizer).__name__} without it."
                )

    @property
    def clipnorm(self):
        return self.optimizer.clipnorm

    @property
    def global_clipnorm(self):
        return self.optimizer.global_clipnorm

    @property
    def clip_value(self):
        return float(self.optimizer.clipvalue or 0)

    @property
    def decays_weights(self):
        return bool(self.optimizer.weight_decay)

    @property
    def has_clock(self):
        """Whether it must be known when a row was last touched."""
        return self.rule.has_moments or self.decays_weights

    def weight_decay_of(self, variable):
        decay = self.optimizer.weight_decay
        is_used = decay and _compat.uses_weight_decay(self.optimizer, variable)
        return float(decay) if is_used else 0.0

    def settings_of_step(self, iterations):
        """Returns the `StepSettings` of the step that follows so many, an int64 scalar tensor."""
        return self._settings(iterations, iterations + 1)

    def settings_after(self, iterations):
        """Returns the `StepSettings` of what comes after so many steps, and before the next."""
        # A counter that was set back to 0 says nothing of what there is to do.
        return self._settings(iterations, tf.maximum(iterations, 1))

    def _settings(self, iterations, step):
        delay = round(self.rule.mean_delay)
        rates = None
        if delay and _compat.has_schedule(self.optimizer):
            steps = [tf.maximum(iterations + delay - back, 0) for back in (1, 0)]
            rates = tuple(_compat.learning_rate_at(self.optimizer, step) for step in steps)
        return StepSettings(
            step=step,
            learning_rate=_compat.learning_rate_at(self.optimizer, iterations),
            tail_rates=rates,
            clip_value=self.clip_value,
        )


def _rule_of(optimizer):
    """Returns the rule of a Keras optimizer, or None: none for another `update_step`."""
    makers = {
        getattr(_compat.keras.optimizers, name, RowWiseAdagrad): make
        for name, make in update_rules.rules_by_optimizer().items()
    }
    for base in type(optimizer).__mro__:
        if base in makers and type(optimizer).update_step is base.update_step:
            return makers[base](optimizer)
    return None


def _refusal(optimizer):
    supported = update_rules.rules_by_optimizer()
    names, hint = ", ".join(supported), _compat.legacy_hint(optimizer, supported)
    if type(optimizer).__name__.startswith("LossScaleOptimizer"):
        hint = " Put the LossScaleOptimizer around the SlipstreamOptimizer instead."
    return (
        f"SlipstreamOptimizer needs a sparse update rule for its inner optimizer, and has them for "
        f"{names} of {_compat.keras.__name__}; got {optimizer!r}.{hint}"
    )
