"""One training step of tables, in place."""

import dataclasses

import tensorflow as tf

from tf_slipstream.ops import _library
from tf_slipstream.ops.live_slices import live_slices_fallback


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What a step applies alike to all tables.

    Attributes:
        step: int64 scalar tensor, the number of this step (1 in the first).
        learning_rate: float32 scalar tensor.
        clip_value: Float bound on each element of a summed gradient, or 0 for none.
    """

    step: tf.Tensor
    learning_rate: tf.Tensor
    clip_value: float = 0.0


def apply_rows(rule, states, slices, settings, grad_scales=None, weight_decays=None):
    """Updates the live rows that a step looked up.

    Every table is updated, or none if anything is wrong. Rows that the step does not look up, and
    stale rows, keep their values and slots to the bit.

    Args:
        rule: The `UpdateRule` of all these tables.
        states: `TableState`s, all on one device.
        slices: One `tf.IndexedSlices` per table, all with the same index dtype; ids may repeat.
        settings: `StepSettings`.
        grad_scales: float32 scalars, one per table: factors on the summed gradients. None: 1.
        weight_decays: Floats, one per table; `row -= row * weight_decay * learning_rate` comes
            before the rule. None: 0.

    Returns:
        What to wait for in a graph: a list of operations (tensors of any kind in eager execution).

    Raises:
        tf.errors.InvalidArgumentError: For an id outside its table, or a summed gradient that is
            NaN or infinite.
    """
    if not states:
        return []
    grad_scales = grad_scales or [tf.ones([])] * len(states)
    weight_decays = weight_decays or [0.0] * len(states)
    native = _library.native_ops(states[0].table.device)
    if native is None:
        return _apply_fallback(rule, states, slices, settings, grad_scales, weight_decays)
    operation = native.slipstream_apply_rows(
        tables=[state.table.handle for state in states],
        slots=[slot.handle for state in states for slot in state.slots],
        last_steps=[s.last_steps.handle for s in states if s.last_steps is not None],
        wake_steps=[state.wake_steps.handle for state in states],
        changed_rows=[state.changed_rows.handle for state in states],
        counters=[state.counters.handle for state in states],
        indices=[s.indices for s in slices],
        grads=[s.values for s in slices],
        grad_scales=grad_scales,
        step=settings.step,
        learning_rate=settings.learning_rate,
        hyperparameters=tf.constant(
            rule.hyperparameters, tf.float64, shape=[len(rule.hyperparameters)]
        ),
        rule=rule.name,
        weight_decays=weight_decays,
        clip_value=settings.clip_value,
        table_names=[state.name for state in states],
    )
    return [] if operation is None else [operation]


def _apply_fallback(rule, states, slices, settings, grad_scales, weight_decays):
    live, counts = live_slices_fallback(states, slices, settings.step)
    done = []
    for state, one, count, scale, decay in zip(
        states, live, counts, grad_scales, weight_decays, strict=True
    ):
        done += _update_table(rule, state, one, settings, scale, decay)
        done.append(state.counters.assign_add(count))
    return done


def _update_table(rule, state, live, settings, grad_scale, weight_decay):
    ids, grads = live.indices, live.values * grad_scale
    if settings.clip_value:
        grads = tf.clip_by_value(grads, -settings.clip_value, settings.clip_value)
    rows = tf.gather(state.table, ids)
    if weight_decay:
        rows -= rows * tf.cast(weight_decay, rows.dtype) * settings.learning_rate
    missed = None
    if state.last_steps is not None:
        last = tf.gather(state.last_steps, ids)
        step = tf.cast(settings.step, tf.int32)
        missed = tf.where(last == 0, 0, step - last - 1)[:, tf.newaxis]
    slots = [tf.gather(slot, ids) for slot in state.slots]
    rows, slots = rule.update(rows, slots, grads, settings.learning_rate, settings.step, missed)
    done = [_scatter(state.table, ids, rows)]
    done += [_scatter(to, ids, values) for to, values in zip(state.slots, slots, strict=True)]
    if state.last_steps is not None:
        done.append(_scatter(state.last_steps, ids, tf.fill(tf.shape(ids), step)))
    done.append(_mark_changed(state.changed_rows, ids))
    return done


def _mark_changed(changed_rows, ids):
    words = tf.cast(ids // 32, tf.int64)
    bits = tf.bitwise.left_shift(tf.ones_like(ids, tf.int32), tf.cast(ids % 32, tf.int32))
    is_set = tf.bitwise.bitwise_and(tf.gather(changed_rows, words), bits) != 0
    # Ids are distinct, so adding the bits that are missing is an OR.
    return changed_rows.scatter_add(tf.IndexedSlices(tf.where(is_set, 0, bits), words))


def _scatter(variable, ids, rows):
    return variable.scatter_update(tf.IndexedSlices(rows, ids))
