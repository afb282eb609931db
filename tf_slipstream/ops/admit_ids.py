"""Rows of ids in training, which get one and lose it."""

import numpy as np
import tensorflow as tf

from tf_slipstream.ops import _library
from tf_slipstream.ops.vocabulary_fallback import look_up_and_admit
from tf_slipstream.state.vocabulary import OF_STEP, counter, is_whole


def admit_ids(name, variables, settings, words, num_unreset=0):
    """Does a training step of a vocabulary.

    Args:
        name: The vocabulary's, for errors.
        variables: Dict of `tf.Variable`s by name, `OF_STEP` at least.
        settings: `VocabularySettings`.
        words: int64 `[num, num_words]`.
        num_unreset: How many of the rows that earlier steps took back need not be reset yet.

    Returns:
        Rows int64 `[num]`; rows that were taken back, int64 `[num_taken_back]`, in order, which may
        repeat; and the number of this step, int64.

    Raises:
        tf.errors.InvalidArgumentError: For state that was not restored whole, or where the rows
            that earlier steps took back were not reset. Nothing has changed then.
    """
    handles = [variables[one].handle for one in OF_STEP]
    native = _library.native_ops(variables["index"].device)
    if native is not None:
        return native.slipstream_look_up_and_admit(
            words,
            *handles,
            padding=[*settings.padding],
            num_oov=settings.num_oov,
            is_string=settings.is_string,
            admit_after=settings.admit_after,
            forget_after=settings.forget_after,
            num_unreset=num_unreset,
            vocabulary_name=name,
        )

    def step(words, *arrays):
        arrays = {one: np.array(array) for one, array in zip(OF_STEP, arrays, strict=True)}
        if not is_whole(settings, arrays):
            raise ValueError(
                f"vocabulary '{name}': it was not restored whole. No row was changed. Restore the "
                "model with its optimizer, or start with a new optimizer."
            )
        counts = [counter(arrays["counters"], one) for one in ("num_forgotten", "num_evicted")]
        if counter(arrays["counters"], "num_reset") + num_unreset < sum(counts):
            raise ValueError(
                f"vocabulary '{name}' took {sum(counts)} rows back, and "
                f"{counter(arrays['counters'], 'num_reset')} of them were reset: another id would "
                "get what its row has learned. Give what it returns to a SlipstreamEmbedding, or "
                "as a field's ids in a dict to a SlipstreamEmbeddingCollection, with no operation "
                "in between."
            )
        rows, taken_back = look_up_and_admit(settings, arrays, words)
        return rows, taken_back, np.int64(counter(arrays["counters"], "step")), *arrays.values()

    types = [variables[one].dtype for one in OF_STEP]
    values = [
        tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)
        for handle, dtype in zip(handles, types, strict=True)
    ]
    try:
        rows, taken_back, number, *values = tf.numpy_function(
            step, [words, *values], [tf.int64] * 3 + types
        )
    except ValueError as error:  # a graph makes the same of it
        raise tf.errors.InvalidArgumentError(None, None, str(error)) from None
    # Of the handle, which each replica has its own of.
    for handle, value in zip(handles, values, strict=True):
        tf.raw_ops.AssignVariableOp(resource=handle, value=value)
    rows = tf.ensure_shape(rows, words.shape[:1])
    return rows, tf.ensure_shape(taken_back, [None]), tf.ensure_shape(number, [])
