"""Tables that one call of an op can take."""

import tensorflow as tf


def groups(states, parts):
    """Yields lists of states and of what belongs to them that can go through one op call.

    Args:
        states: `TableState`s on any devices, of any dtype.
        parts: As long a list. `tf.IndexedSlices` of a group get one dtype of indices.
    """
    found = {}
    for state, part in zip(states, parts, strict=True):
        key = (state.table.device, state.table.dtype)
        group_states, group_parts = found.setdefault(key, ([], []))
        group_states.append(state)
        group_parts.append(part)
    for group_states, group_parts in found.values():
        yield group_states, _with_one_dtype(group_parts)


def _with_one_dtype(parts):
    are_slices = all(isinstance(part, tf.IndexedSlices) for part in parts)
    if not are_slices or len({part.indices.dtype for part in parts}) == 1:
        return parts
    return [tf.IndexedSlices(part.values, tf.cast(part.indices, tf.int64)) for part in parts]
