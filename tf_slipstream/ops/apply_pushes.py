"""What workers sent of a step, applied to tables on parameter servers."""

from tf_slipstream.ops._library import needed_native_ops
from tf_slipstream.ops._tables import table_arguments


def apply_pushes(rule, states, pushes, settings, weight_decays):
    """Updates the rows of pushes, as `apply_rows` does.

    Args:
        rule: The `UpdateRule` of all these tables.
        states: `TableState`s with `worker_counters`, all on one device.
        pushes: A `Push` per table.
        settings: `StepSettings`; a table's step never goes back.
        weight_decays: Floats, one per table.

    Returns:
        What to wait for in a graph: a list of operations.

    Raises:
        tf.errors.InvalidArgumentError: As `apply_rows`.
    """
    operation = needed_native_ops().slipstream_apply_pushes(
        **table_arguments(rule, states, settings, weight_decays),
        worker_counters=[state.worker_counters.handle for state in states],
        indices=[push.ids for push in pushes],
        grads=[push.grads for push in pushes],
        batches=[push.batches for push in pushes],
        push_counts=[push.counts for push in pushes],
    )
    return [] if operation is None else [operation]
