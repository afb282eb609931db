"""A loss that knows what its inputs were chosen by."""

import collections

import tensorflow as tf

from tf_slipstream import _compat
from tf_slipstream.selection.probabilities import add_log_odds

# Of the inputs of a training step, float32 `[num]` each: what is added to the logit in the loss;
# how many inputs of all one stands for, 1 in the mean; and the pilot's log odds.
Correction = collections.namedtuple("Correction", ["offsets", "weights", "log_odds"])


class CorrectedLoss(_compat.keras.losses.Loss):
    """A loss that is, outside of training steps, another one.

    In a training step the output that decides has its offset added to its logits. Any other
    output's losses are weighted. The value reported is the mean over all inputs, as far as those
    kept can tell; the gradient is that of the corrected loss.

    Args:
        loss: A Keras loss.
        decides: Whether it is of the output that decides what is kept.
        correction: Function that gives the `Correction` of the step, None outside of steps.
    """

    def __init__(self, loss, decides, correction):
        super().__init__(name=loss.name, reduction=loss.reduction)
        self.loss, self.decides, self._correction = loss, decides, correction
        self.from_logits = decides and loss.get_config().get("from_logits", False)

    def __call__(self, y_true, y_pred, sample_weight=None):
        _compat.allow_mean_over_replicas(self.loss, self)
        correction = self._correction()
        if correction is None:
            return self.loss(y_true, y_pred, sample_weight)
        weights = weighted(correction.weights, sample_weight)
        if not self.decides:
            return self.loss(y_true, y_pred, weights)
        shifted = add_log_odds(y_pred, correction.offsets, self.from_logits)
        corrected = self.loss(y_true, shifted, sample_weight)
        of_all = self.loss(y_true, y_pred, weights)
        return corrected + tf.stop_gradient(of_all - corrected)

    def call(self, y_true, y_pred):
        return self.loss.call(y_true, y_pred)

    def get_config(self):
        return self.loss.get_config()


def weighted(weights, sample_weight):
    """Returns weights of inputs times those of the user, in whose shape they are."""
    if sample_weight is None:
        return weights
    shape = tf.concat([tf.shape(weights), tf.ones([tf.rank(sample_weight) - 1], tf.int32)], axis=0)
    return tf.cast(sample_weight, weights.dtype) * tf.reshape(weights, shape)


def checked_decider(loss):
    """Returns the loss object of the output that decides.

    Raises:
        ValueError: If it is not binary cross-entropy, which alone an offset corrects.
    """
    keras = _compat.keras
    crossentropy = keras.losses.BinaryCrossentropy
    names = ("binary_crossentropy", "bce", "BinaryCrossentropy")
    if loss in names or loss is keras.losses.binary_crossentropy:
        return crossentropy()
    if type(loss) is not crossentropy or loss.get_config().get("label_smoothing"):
        raise ValueError(
            "SelectiveModel corrects the loss of the output that decides which inputs are kept, "
            "and knows how for binary cross-entropy without label smoothing: "
            "loss=keras.losses.BinaryCrossentropy(from_logits=...) or 'binary_crossentropy'; got "
            f"{loss!r}."
        )
    return loss


def other_loss(loss):
    """Returns the loss object that `compile` would make of an argument."""
    keras = _compat.keras
    found = keras.losses.get(loss)
    if isinstance(found, keras.losses.Loss):
        return found
    return _compat.loss_of_function(found)
