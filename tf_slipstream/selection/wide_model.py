"""A model and a pilot that add up: wide and deep."""

import tensorflow as tf

from tf_slipstream import _compat
from tf_slipstream.selection.probabilities import add_log_odds


@_compat.register_serializable
class WideModel(_compat.keras.Model):
    """A model with the log odds of a pilot added to its own.

    What `SelectiveModel(..., wide=True)` evaluates, saves and exports.

    Args:
        model: Keras model of logits or probabilities, `[batch, 1]` or `[batch]`.
        pilot: `Pilot`.
        from_logits: Whether the model's output, or of several the one that decides, is logits.
        output: Of several outputs the name or place of the one that is added to.
    """

    def __init__(self, model, pilot, from_logits=False, output=None, **kwargs):
        super().__init__(**kwargs)
        self.model, self.pilot = model, pilot
        self.from_logits, self.output_key = from_logits, output
        self.supports_jit = False
        # tf_keras has no variables of a model that is not.
        self.built = bool(model.built)

    def build(self, input_shape=None):
        # The parts build themselves.
        self.built = True

    def call(self, inputs, training=None):
        return self.add(self.model(inputs, training=training), self.pilot.call(inputs))

    def add(self, outputs, log_odds):
        """Returns the model's outputs with log odds `[batch]` added to those that decide."""
        if self.output_key is None:
            (one,) = tf.nest.flatten(outputs)
            shifted = add_log_odds(one, log_odds, self.from_logits)
            return tf.nest.pack_sequence_as(outputs, [shifted])
        changed = dict(outputs) if isinstance(outputs, dict) else list(outputs)
        changed[self.output_key] = add_log_odds(
            changed[self.output_key], log_odds, self.from_logits
        )
        return changed

    def compute_output_shape(self, input_shape):
        return self.model.compute_output_shape(input_shape)

    def export(self, filepath, *args, **kwargs):
        """As Keras's, with the inputs of a functional model as its signature."""
        inputs = getattr(self.model, "input", None) if _compat.IS_KERAS_3 else None
        if inputs is not None:
            # Keras 3 knows those of functional models alone.
            kwargs.setdefault("input_signature", [inputs])
        return super().export(filepath, *args, **kwargs)

    def get_config(self):
        serialize = _compat.keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "model": serialize(self.model),
            "pilot": serialize(self.pilot),
            "from_logits": self.from_logits,
            "output": self.output_key,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for name in ("model", "pilot"):
            config[name] = _compat.keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
        return cls(**config)
