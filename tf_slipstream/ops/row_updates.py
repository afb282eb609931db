"""Updates of distinct rows on plain TensorFlow ops: `update_rows.cc` of the kernels, without pools.

Rows that sleep are the native library's alone: without it every row is live.
"""

import collections

import tensorflow as tf

from tf_slipstream.ops.rounding import rounding_seed, stochastically_rounded
from tf_slipstream.state.table import bits_as, gather_int32, scatter_int32

# As `Touch` of custom_ops/kernels/row_clock.h, of several rows: `num_missed` int64 `[num_rows, 1]`,
# `was_spent` and `is_first` bool `[num_rows, 1]`.
Touch = collections.namedtuple("Touch", ["num_missed", "was_spent", "is_first"])

_CLOCK_STEPS = 2**31 - 1
_CLOCK_BITS = 0x7FFFFFFF


def update_rows(rule, state, ids, grads, settings, weight_decay):
    """Updates distinct rows with a gradient each.

    Args:
        rule: `UpdateRule`.
        state: `TableState`.
        ids: int `[num_rows]`.
        grads: float32 `[num_rows, dim]`, scaled and clipped.
        settings: `StepSettings`.
        weight_decay: Float.

    Returns:
        What to wait for.
    """
    rows, slots = _read(state, ids)
    is_spent = tf.zeros([tf.size(ids), 1], tf.bool)
    if state.last_steps is not None:
        touch = _touch(gather_int32(state.last_steps, ids), settings.step)
        is_rare = touch.num_missed > 0
        is_spent = is_rare & rule.can_spend
        adjusted, adjusted_slots = rule.adjust(rows, slots, settings, touch)
        is_adjusted = is_rare | touch.was_spent
        rows = tf.where(is_adjusted, adjusted, rows)
        slots = [tf.where(is_adjusted, new, old) for new, old in zip(adjusted_slots, slots)]
        rows = _decayed(rows, weight_decay, settings.learning_rate, touch.num_missed + 1)
    rows, slots = rule.update(rows, slots, grads, settings, is_spent)
    return _write(state, ids, rows, slots, settings.step, is_spent, seed=0)


def settle_rows(rule, state, settings, weight_decay):
    """Brings rows up to date that missed the last steps, `settings.step` being the last one.

    Returns:
        What to wait for.
    """
    if state.last_steps is None or not (rule.moves_when_missed or weight_decay):
        return []
    clock = bits_as(tf.convert_to_tensor(state.last_steps), tf.int32)
    next_step = settings.step + 1
    touch = _touch(clock, next_step)
    is_behind = (touch.num_missed > 0) & ~touch.is_first
    if not weight_decay:
        is_behind &= ~touch.was_spent
    ids = tf.where(is_behind[:, 0])[:, 0]
    touch = Touch(*(tf.gather(part, ids) for part in touch))
    rows, slots = _read(state, ids)
    moved, slots = rule.adjust(rows, slots, settings.of_next_step(), touch)
    rows = tf.where(touch.was_spent, rows, moved)
    rows = _decayed(rows, weight_decay, settings.learning_rate, touch.num_missed)
    return _write(state, ids, rows, slots, settings.step, touch.was_spent, seed=0x5BD1E995)


def _touch(clock, step):
    """Returns a `Touch` for clocks int32 `[num_rows]`."""
    clock = tf.cast(clock, tf.int64)[:, tf.newaxis]
    is_first = clock == 0
    now = 1 + (step - 1) % _CLOCK_STEPS
    since = now - tf.bitwise.bitwise_and(clock, tf.constant(_CLOCK_BITS, tf.int64))
    since = tf.where(since < -(_CLOCK_STEPS // 2), since + _CLOCK_STEPS, since)
    since = tf.where(since > _CLOCK_STEPS // 2, since - _CLOCK_STEPS, since)
    since = tf.where(is_first, tf.minimum(step, _CLOCK_STEPS // 2), tf.maximum(since, 0))
    return Touch(tf.maximum(since - 1, 0), clock < 0, is_first)


def _clock(step, is_spent):
    clock = tf.cast(1 + (step - 1) % _CLOCK_STEPS, tf.int32)
    return tf.where(is_spent[:, 0], tf.bitwise.bitwise_or(clock, tf.int32.min), clock)


def _read(state, ids):
    rows = tf.cast(tf.gather(state.table, ids), tf.float32)
    return rows, [tf.gather(slot, ids) for slot in state.slots]


def _decayed(rows, weight_decay, learning_rate, num_steps):
    if not weight_decay:
        return rows
    decay = tf.cast(weight_decay, rows.dtype)
    once = rows - rows * decay * learning_rate
    kept = 1 - tf.cast(decay, tf.float64) * tf.cast(learning_rate, tf.float64)
    factor = tf.pow(kept, tf.cast(num_steps, tf.float64))
    return tf.where(num_steps == 1, once, rows * tf.cast(factor, rows.dtype))


def _write(state, ids, rows, slots, step, is_spent, seed):
    if state.table.dtype == tf.bfloat16:
        # A row that is settled is rounded as in the step to come, with other bits.
        seed, step_of_seed = (rounding_seed(state.name) ^ seed), step + (1 if seed else 0)
        rows = stochastically_rounded(rows, seed, step_of_seed, ids)
    done = [_scatter(state.table, ids, rows)]
    done += [_scatter(to, ids, values) for to, values in zip(state.slots, slots, strict=True)]
    if state.last_steps is not None:
        done.append(scatter_int32(state.last_steps, ids, _clock(step, is_spent)))
    done.append(mark_changed(state.changed_rows, ids))
    return done


def mark_changed(changed_rows, ids):
    """Sets the bits of distinct rows, int `[num_rows]`, in `TableState.changed_rows`."""
    words = tf.cast(ids // 32, tf.int64)
    bits = tf.bitwise.left_shift(tf.ones_like(ids, tf.int32), tf.cast(ids % 32, tf.int32))
    bits = tf.bitcast(bits, changed_rows.dtype)
    is_set = tf.bitwise.bitwise_and(tf.gather(changed_rows, words), bits) != 0
    # Ids are distinct, so adding the bits that are missing is an OR.
    missing = tf.where(is_set, tf.zeros_like(bits), bits)
    return changed_rows.scatter_add(tf.IndexedSlices(missing, words))


def _scatter(variable, ids, rows):
    return variable.scatter_update(tf.IndexedSlices(rows, ids))
