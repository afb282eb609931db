"""What a layer knows of the call that it is in."""

import tensorflow as tf

from tf_slipstream._compat.which import chosen


def is_training_step(training):
    """Whether a call is a step of training, and not one that is traced to be saved.

    Args:
        training: As Keras gives it to a layer's `call`: a bool, None or a tensor.
    """
    is_training = tf.get_static_value(training) if tf.is_tensor(training) else training
    return bool(is_training) and not chosen.is_saving_traces()
