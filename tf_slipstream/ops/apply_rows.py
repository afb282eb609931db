"""One training step of tables, in place."""

import dataclasses

import tensorflow as tf

from tf_slipstream.ops import _library, staleness
from tf_slipstream.ops.live_slices import find_rows, policy_handles
from tf_slipstream.ops.rounding import rounding_seed, stochastically_rounded
from tf_slipstream.ops.table_state import gather_int32, scatter_int32


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What a step applies alike to all tables.

    Attributes:
        step: int64 scalar tensor, the number of this step (1 in the first).
        learning_rate: float32 scalar tensor.
        clip_value: Float bound on each element of a summed gradient, or 0 for none.
        wake_all: Whether to apply all that is held, and wake every row: a bool or bool tensor.
    """

    step: tf.Tensor
    learning_rate: tf.Tensor
    clip_value: float = 0.0
    wake_all: bool | tf.Tensor = False


def apply_rows(
    rule,
    states,
    slices,
    settings,
    grad_scales=None,
    weight_decays=None,
    num_lookups=None,
    pushes=None,
):
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
        num_lookups: int64 `[3]`, one per table: how many lookups to count, in all, of skipped rows
            and of deferred rows. None: as many as there are indices.
        pushes: On a parameter server, the `Push` of each table that its slices are of. The native
            ops are then needed.

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
        return _apply_fallback(
            rule, states, slices, settings, grad_scales, weight_decays, num_lookups
        )
    operation = native.slipstream_apply_rows(
        tables=[state.table.handle for state in states],
        slots=[slot.handle for state in states for slot in state.slots],
        last_steps=[s.last_steps.handle for s in states if s.last_steps is not None],
        changed_rows=[state.changed_rows.handle for state in states],
        counters=[state.counters.handle for state in states],
        **policy_handles(states),
        indices=[s.indices for s in slices],
        grads=[s.values for s in slices],
        grad_scales=grad_scales,
        step=settings.step,
        learning_rate=settings.learning_rate,
        hyperparameters=tf.constant(
            rule.hyperparameters, tf.float64, shape=[len(rule.hyperparameters)]
        ),
        policies=tf.constant(_policies(rule, states), tf.float64),
        wake_all=settings.wake_all,
        num_lookups=num_lookups or [],
        worker_counters=[state.worker_counters.handle for state in states] if pushes else [],
        batches=[push.batches for push in pushes or ()],
        push_counts=[push.counts for push in pushes or ()],
        rule=rule.name,
        weight_decays=weight_decays,
        clip_value=settings.clip_value,
        table_names=[state.name for state in states],
        rounding_seeds=[rounding_seed(state.name) for state in states],
    )
    return [] if operation is None else [operation]


def _policies(rule, states):
    return [
        number
        for state in states
        if state.policy is not None
        for number in staleness.policy_numbers(state.policy, rule.correlation)
    ]


def _apply_fallback(rule, states, slices, settings, grad_scales, weight_decays, num_lookups):
    begun = [
        None
        if state.policy is None
        else staleness.begin_step(state, settings.step, settings.learning_rate, settings.wake_all)
        for state in states
    ]
    woken_at = [None if one is None else one[0] for one in begun]
    found = find_rows(states, slices, settings.step, woken_at)
    if num_lookups is not None:
        found = [
            one._replace(counts=tf.concat([num, one.counts[3:]], axis=0))
            for one, num in zip(found, num_lookups, strict=True)
        ]
    done = []
    for state, begin, one, scale, decay in zip(
        states, begun, found, grad_scales, weight_decays, strict=True
    ):
        grads = _clipped(one.slices.values * scale, settings.clip_value)
        table = _TableUpdate(rule, state, settings, decay)
        if state.policy is None:
            batches = tf.ones([tf.size(one.slices.indices), 1], tf.int32)
            _, _, written = table.update(one.slices.indices, grads, batches)
            done += written
        else:
            done += _apply_policy(table, begin, one, grads)
        done.append(state.counters.assign_add(one.counts))
    return done


def _apply_policy(table, begun, found, grads):
    """Updates live rows, holds the gradients of deferred ones; a refresh applies those held."""
    state, step = table.state, table.settings.step
    deferred, live = tf.where(found.is_deferred)[:, 0], tf.where(~found.is_deferred)[:, 0]
    done = staleness.hold(state, tf.gather(found.row_states, deferred), tf.gather(grads, deferred))
    ids, row_states = tf.gather(found.slices.indices, live), tf.gather(found.row_states, live)
    with tf.control_dependencies(done):
        grads, batches = staleness.take_held(state, row_states, tf.gather(grads, live))
        before, after, written = table.update(ids, grads, batches)
    counted, sleeping, num_entries = staleness.after_update(
        state, begun, ids, row_states, before, after, grads, step
    )
    done += written + counted
    is_refresh = begun[2]
    with tf.control_dependencies(done):
        index, ids, grads, batches = staleness.all_held(state, is_refresh)
        before, after, written = table.update(tf.cast(ids, tf.int64), grads, batches)
        flushed, woken = staleness.after_flush(state, index, before, after, grads, is_refresh, step)
    done += written + flushed
    done.append(staleness.end_step(state, begun, step, found.counts, sleeping + woken, num_entries))
    return done


def _clipped(grads, clip_value):
    return tf.clip_by_value(grads, -clip_value, clip_value) if clip_value else grads


@dataclasses.dataclass(frozen=True)
class _TableUpdate:
    """Updates rows of one table."""

    rule: object
    state: object
    settings: StepSettings
    weight_decay: float

    def update(self, ids, grads, batches):
        """Applies gradients, each the sum over so many batches, int32 `[num_rows, 1]`.

        Returns:
            The rows before and after, and what to wait for.
        """
        rule, state, settings = self.rule, self.state, self.settings
        before = rows = tf.cast(tf.gather(state.table, ids), tf.float32)
        if self.weight_decay:
            rows = self._decayed(rows, batches)
        missed = None
        if state.last_steps is not None:
            last = gather_int32(state.last_steps, ids)
            step = tf.cast(settings.step, tf.int32)
            missed = tf.where(last[:, tf.newaxis] == 0, 0, step - last[:, tf.newaxis] - batches)
        slots = [tf.gather(slot, ids) for slot in state.slots]
        rows, slots = rule.update(
            rows, slots, grads, settings.learning_rate, settings.step, missed, batches
        )
        if state.table.dtype == tf.bfloat16:
            seed = rounding_seed(state.name)
            rounded = stochastically_rounded(rows, seed, settings.step, ids)
            rows = tf.cast(rounded, tf.float32)
            done = [_scatter(state.table, ids, rounded)]
        else:
            done = [_scatter(state.table, ids, rows)]
        done += [_scatter(to, ids, values) for to, values in zip(state.slots, slots, strict=True)]
        if state.last_steps is not None:
            done.append(scatter_int32(state.last_steps, ids, tf.fill(tf.shape(ids), step)))
        done.append(_mark_changed(state.changed_rows, ids))
        return before, rows, done

    def _decayed(self, rows, batches):
        rate = self.settings.learning_rate
        decay = tf.cast(self.weight_decay, rows.dtype)
        once = rows - rows * decay * rate
        kept = 1 - tf.cast(decay, tf.float64) * tf.cast(rate, tf.float64)
        factor = tf.pow(kept, tf.cast(batches, tf.float64))
        return tf.where(batches == 1, once, rows * tf.cast(factor, rows.dtype))


def _mark_changed(changed_rows, ids):
    words = tf.cast(ids // 32, tf.int64)
    bits = tf.bitwise.left_shift(tf.ones_like(ids, tf.int32), tf.cast(ids % 32, tf.int32))
    bits = tf.bitcast(bits, changed_rows.dtype)
    is_set = tf.bitwise.bitwise_and(tf.gather(changed_rows, words), bits) != 0
    # Ids are distinct, so adding the bits that are missing is an OR.
    missing = tf.where(is_set, tf.zeros_like(bits), bits)
    return changed_rows.scatter_add(tf.IndexedSlices(missing, words))


def _scatter(variable, ids, rows):
    return variable.scatter_update(tf.IndexedSlices(rows, ids))
