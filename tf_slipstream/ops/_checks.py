"""What the native ops refuse, refused alike where plain TensorFlow ops stand in for them."""

import tensorflow as tf

from tf_slipstream.state import schema

_ROW_INT = (tf.int32, tf.uint32)
_MOST_STEPS = 2**61


def refusal(message):
    """Returns the error of a native op that refuses its inputs."""
    return tf.errors.InvalidArgumentError(None, None, message)


def check_tables(rule, states, weight_decays):
    """Checks the variables of tables, by their static shapes.

    Args:
        rule: `UpdateRule`.
        states: `TableState`s.
        weight_decays: Floats, one per table.

    Raises:
        tf.errors.InvalidArgumentError: If one has another size or dtype, is missing, or is given
            twice.
    """
    needs_clock = rule.has_moments or any(weight_decays)
    num_clocks = sum(state.last_steps is not None for state in states)
    if num_clocks != len(states) and (num_clocks or needs_clock):
        raise refusal(
            f"rule '{rule.name}' with {len(states)} tables: wrong number of last_steps, "
            f"{num_clocks}"
        )
    seen = set()
    for state in states:
        for variable in _check_table(rule, state):
            if id(variable) in seen:
                raise refusal(f"a variable was given twice: '{variable.name}'")
            seen.add(id(variable))


def check_settings(settings):
    """Checks the number of a step and its learning rate.

    Args:
        settings: `StepSettings`.

    Returns:
        What to wait for in a graph.

    Raises:
        tf.errors.InvalidArgumentError: If the number is not in [1, 2^61], or the rate is NaN or
            infinite.
    """
    step, rate = settings.step, settings.learning_rate
    what = "the number of a step must be"
    return tf.group(
        tf.debugging.Assert(step >= 1, [f"{what} at least 1, got", step]),
        tf.debugging.Assert(step <= _MOST_STEPS, [f"{what} at most 2^61, got", step]),
        tf.debugging.Assert(tf.math.is_finite(rate), ["the learning rate is", rate]),
    )


def _check_table(rule, state):
    """Checks the variables of a table, and returns them."""
    if state.table.shape.rank != 2:
        raise refusal(f"table '{state.name}': expected [num_rows, dim], got {state.table.shape}")
    _check_dtype(state.table, (tf.float32, tf.bfloat16))
    num_rows = state.num_rows
    expected = [("changed_rows", state.changed_rows, _ROW_INT, -(-num_rows // 32))]
    num_counters = len(schema.COUNTERS) + len(state.row_ends) * schema.COUNTERS_PER_FIELD
    expected.append(("counters", state.counters, (tf.int64,), num_counters))
    for slot, variable in zip(rule.slots, state.slots, strict=True):
        slot_dim = 1 if slot.per_row else state.dim
        expected.append(("slot", variable, (tf.float32,), num_rows * slot_dim))
    if state.last_steps is not None:
        expected.append(("last_steps", state.last_steps, _ROW_INT, num_rows))
    for what, variable, dtypes, size in expected:
        _check_dtype(variable, dtypes)
        if variable.shape.num_elements() != size:
            raise refusal(
                f"table '{state.name}': {what} of the optimizer should have {size} elements, and "
                f"has shape {variable.shape}"
            )
    return [state.table, *(variable for _, variable, _, _ in expected)]


def _check_dtype(variable, dtypes):
    if variable.dtype not in dtypes:
        names = " or ".join(dtype.name for dtype in dtypes)
        raise refusal(f"variable '{variable.name}': expected {names}, got {variable.dtype.name}")
