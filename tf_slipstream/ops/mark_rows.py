"""Notes which rows of a table changed, beside what training steps note."""

import tensorflow as tf

from tf_slipstream.ops import _library
from tf_slipstream.state.table import bits_as


def mark_rows(state, words, clear=False):
    """Sets bits of `state.changed_rows`, or clears them, and leaves all others. Eagerly.

    A step that runs meanwhile loses none of its bits. Without native ops it may: TensorFlow has no
    op that sets bits, only reading and assigning.

    Args:
        state: `TableState`.
        words: NumPy int32 `[ceil(num_rows / 32)]`, the bits; of those to clear all must be set.
        clear: Whether to clear them.

    Raises:
        tf.errors.InvalidArgumentError: For words of another shape.
    """
    for changed_rows in _copies(state.changed_rows):
        with tf.device(changed_rows.device):
            # Of the variable's type before it is on a GPU, where TensorFlow has no int32.
            bits = tf.constant(words.view(changed_rows.dtype.as_numpy_dtype))
        native = _library.native_ops(changed_rows.device)
        if native is not None:
            native.slipstream_mark_rows(changed_rows.handle, bits, clear=clear)
        elif clear and changed_rows.dtype == tf.int32:
            changed_rows.assign_sub(bits)  # nothing is borrowed
        else:
            change = tf.bitwise.invert(bits) if clear else bits
            combine = tf.bitwise.bitwise_and if clear else tf.bitwise.bitwise_or
            changed_rows.assign(combine(changed_rows, change))


def mark_all_changed(state):
    """Notes that every row of a table may have been written."""
    words = tf.fill(tf.shape(state.changed_rows), -1)
    state.changed_rows.assign(bits_as(words, state.changed_rows.dtype))


def _copies(variable):
    """Returns the `tf.Variable`s of a variable, one for each replica of this process."""
    is_copied = isinstance(variable, tf.distribute.DistributedValues)
    return variable.values if is_copied else [variable]
