"""One training step of tables, in place."""

import tensorflow as tf

from tf_slipstream.ops import _checks, _library
from tf_slipstream.ops._tables import table_arguments
from tf_slipstream.ops.bags import as_bags
from tf_slipstream.ops.live_slices import find_rows
from tf_slipstream.ops.row_updates import update_rows
from tf_slipstream.state import schema


def apply_rows(
    rule,
    states,
    slices,
    settings,
    grad_scales=None,
    weight_decays=None,
    num_lookups=None,
):
    """Updates the live rows that a step looked up.

    Every table is updated, or none if anything is wrong. Rows that the step does not look up, and
    stale rows, keep their values and slots to the bit.

    Args:
        rule: The `UpdateRule` of all these tables.
        states: `TableState`s, all on one device; without native ops without a policy.
        slices: One `tf.IndexedSlices` per table, all with the same index dtype; ids may repeat.
        settings: `StepSettings`.
        grad_scales: float32 scalars, one per table: finite factors on the summed gradients. None:
            1.
        weight_decays: Floats, one per table; `row -= row * weight_decay * learning_rate` comes
            before the rule, for missed steps too. None: 0.
        num_lookups: int64 `[3 * (1 + num_fields)]`, one per table: how many lookups to count of
            it, then of each of its fields, in all, of skipped rows and of deferred rows; on a GPU
            `[3]`. None: as many as there are indices.

    Returns:
        What to wait for in a graph: a list of operations (tensors of any kind in eager execution).

    Raises:
        tf.errors.InvalidArgumentError: For an id outside its table; a summed gradient, or the
            factor on it, that is NaN or infinite; a variable of another size or dtype.
    """
    if not states:
        return []
    grad_scales = _checked_scales(grad_scales, states)
    weight_decays = weight_decays or [0.0] * len(states)
    native = _library.native_ops(states[0].table.device)
    if native is None:
        return _apply_fallback(
            rule, states, slices, settings, grad_scales, weight_decays, num_lookups
        )
    grads, bags = [s.values for s in slices], []
    if not _library.is_gpu(states[0].table.device):
        grads, bags = _in_bags(grads)
    operation = native.slipstream_apply_rows(
        **table_arguments(rule, states, settings, weight_decays),
        indices=[s.indices for s in slices],
        grads=grads,
        grad_scales=grad_scales,
        num_lookups=num_lookups or [],
        bags=bags,
        clip_value=settings.clip_value,
    )
    return [] if operation is None else [operation]


def _in_bags(grads):
    """Returns gradients as few rows as they are copies of, and for the op which are whose."""
    found = [as_bags(grad) for grad in grads]
    if not any(found):
        return grads, []
    own = tf.zeros([0], tf.int32)
    pairs = [one or (grad, own) for one, grad in zip(found, grads, strict=True)]
    return [grad for grad, _ in pairs], [bags for _, bags in pairs]


def _checked_scales(grad_scales, states):
    """Returns finite factors; the ops check what these multiply."""
    if grad_scales is None:
        return [tf.ones([])] * len(states)
    message = "table '{}': the factor that clips its gradients. No row was changed"
    return [
        tf.debugging.check_numerics(scale, message.format(state.name))
        for scale, state in zip(grad_scales, states, strict=True)
    ]


def _apply_fallback(rule, states, slices, settings, grad_scales, weight_decays, num_lookups):
    _checks.check_tables(rule, states, weight_decays)
    # Nothing is written before all is checked.
    with tf.control_dependencies([_checks.check_settings(settings), *grad_scales]):
        rows = find_rows(states, slices)
    done = []
    for state, one, found, scale, decay, num in zip(
        states,
        slices,
        rows,
        grad_scales,
        weight_decays,
        num_lookups or [None] * len(states),
        strict=True,
    ):
        grads = _clipped(found.values * scale, settings.clip_value)
        done += update_rows(rule, state, found.indices, grads, settings, decay)
        counts = _counts(found, num)
        if state.row_ends:
            counts = tf.concat([counts, _field_counts(state, one, found, num)], axis=0)
        done.append(state.counters.assign_add(counts))
    return done


def _counts(found, num_lookups):
    num_rows = tf.size(found.indices, tf.int64)
    lookups = [found.num_lookups, 0, 0] if num_lookups is None else tf.unstack(num_lookups[:3])
    counts = [*lookups, num_rows]
    counts += [0] * (len(schema.COUNTERS) - len(counts))
    return tf.stack([tf.cast(count, tf.int64) for count in counts])


def _field_counts(state, slices, found, num_lookups):
    """Returns what is added to the counters of a table's fields, `[num_fields * 7]`."""
    if num_lookups is None:
        lookups = count_by_field(state, slices.indices)
    else:
        # They stand for more lookups than there are here.
        lookups = num_lookups[3::3]
    columns = [tf.zeros([len(state.row_ends)], tf.int64)] * schema.COUNTERS_PER_FIELD
    columns[1 + schema.ROW_COUNTS.index("num_lookups")] = lookups
    columns[1 + schema.ROW_COUNTS.index("num_row_updates")] = count_by_field(state, found.indices)
    return tf.reshape(tf.stack(columns, axis=1), [-1])


def count_by_field(state, ids):
    """Returns how many of some ids are rows of each field of a table, int64 `[num_fields]`."""
    fields = tf.searchsorted(tf.constant(state.row_ends, ids.dtype), ids, side="right")
    return tf.math.bincount(fields, minlength=len(state.row_ends), dtype=tf.int64)


def _clipped(grads, clip_value):
    return tf.clip_by_value(grads, -clip_value, clip_value) if clip_value else grads
