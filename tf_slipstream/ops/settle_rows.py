"""Between steps: brings tables up to date."""

import tensorflow as tf

from tf_slipstream.ops import _checks, _library, row_updates
from tf_slipstream.ops._tables import table_arguments


def settle_rows(rule, states, settings, weight_decays, wake):
    """Applies all that is held, and what rows are behind by that missed steps.

    The tables are then as if every step had reached every row. Rows that were looked up in the last
    step and hold nothing keep their bits.

    Args:
        rule: The `UpdateRule` of all these tables.
        states: `TableState`s, all on one device.
        settings: `StepSettings`, `step` being the last one.
        weight_decays: Floats, one per table.
        wake: Whether rows that sleep wake; else they sleep on.

    Returns:
        What to wait for in a graph: a list of operations.

    Raises:
        tf.errors.InvalidArgumentError: If a pool, or another variable, is not that of its table.
    """
    if not states:
        return []
    native = _library.native_ops(states[0].table.device)
    if native is None:
        _checks.check_tables(rule, states, weight_decays)
        done = []
        with tf.control_dependencies([_checks.check_settings(settings)]):
            for state, decay in zip(states, weight_decays, strict=True):
                done += row_updates.settle_rows(rule, state, settings, decay)
        return done
    arguments = table_arguments(rule, states, settings, weight_decays)
    operation = native.slipstream_settle_rows(**arguments, wake=wake)
    return [] if operation is None else [operation]
