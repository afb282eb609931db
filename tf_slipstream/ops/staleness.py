"""Row states and the pool of popular rows, on plain TensorFlow ops: docs/policy.md, with its names.

`custom_ops/kernels/staleness.h` is the same in C++.
"""

import collections
import math

import tensorflow as tf

from tf_slipstream.ops.table_state import gather_int32, scatter_int32

DRIFT_METRICS = ("coherence", "relative_l2", "l2", "mean_abs", "loss")
POOL_INTS = (
    "row",
    "wake_step",
    "live_step",
    "num_updates",
    "held_steps",
    "period",
    "window_updates",
    "is_skipped",
)
POLICY_STATES = (
    "num_entries",
    "num_sleeping",
    "woken_at",
    "learning_rate",
    "threshold",
    "strictness",
    "control_lookups",
    "control_stale",
)
_MIN_CAPACITY = 4096
_CONTROL_STEPS = 100
_CONTROL_FACTOR = 1.25
_CONTROL_RANGE = 1000.0
_RATE_CHANGE = 1.25

_Entries = collections.namedtuple("_Entries", POOL_INTS)
_Policy = collections.namedtuple("_Policy", POLICY_STATES)


def pool_capacity(policy, num_rows):
    """Returns how many rows of a table may be popular."""
    return min(num_rows, max(_MIN_CAPACITY, math.ceil(policy.popular_share * num_rows)))


def initial_threshold(policy):
    """Returns the threshold that a table begins with."""
    return policy.max_threshold if policy.threshold is None else policy.threshold


def policy_numbers(policy, correlation):
    """Returns a policy as the native op gets it: floats, in the order of `PolicySettings`."""
    return [
        float(policy.on_stale == "skip"),
        float(policy.min_updates),
        float(policy.window),
        float(policy.probe),
        float(DRIFT_METRICS.index(policy.drift_metric)),
        float(policy.target_skip or 0.0),
        float(policy.max_threshold),
        float(policy.first_sleep),
        float(policy.max_sleep),
        float(policy.updates_per_sleep),
        float(policy.max_age),
        float(policy.skip_below),
        float(policy.refresh_every),
        float(policy.warm_up),
        float(correlation),
    ]


def stale_lookups(state, ids, step):
    """Says which ids' rows are stale in a step.

    Args:
        state: `TableState`.
        ids: int tensor of any shape, in `[0, num_rows)`.
        step: int64 scalar, the step's number.

    Returns:
        bool tensor like `ids`: whether the gradient would be deferred or skipped.
    """
    if state.policy is None:
        return tf.zeros_like(ids, tf.bool)
    is_deferred, is_skipped = kinds_of(state, gather_int32(state.row_states, ids), step)
    return is_deferred | is_skipped


def kinds_of(state, row_states, step, woken_at=None):
    """Returns whether rows with these states are deferred, and whether they are skipped."""
    woken_at = _read_policy(state).woken_at if woken_at is None else woken_at
    is_popular = row_states < 0
    entries = _gather_ints(state, tf.where(is_popular, -1 - row_states, 0))
    is_asleep = (step < entries.wake_step) & (entries.live_step >= tf.cast(woken_at, tf.int64))
    is_asleep &= is_popular
    is_skipped = entries.is_skipped != 0
    is_deferred = ~is_skipped & (entries.held_steps < entries.period - 1)
    return is_asleep & is_deferred, is_asleep & is_skipped


def begin_step(state, step, learning_rate, wake_all):
    """Returns `woken_at` and the learning rate of this step, and whether it is a refresh."""
    now, rate = _read_policy(state), tf.cast(learning_rate, tf.float64)
    changed = (rate > _RATE_CHANGE * now.learning_rate) | (rate * _RATE_CHANGE < now.learning_rate)
    changed &= now.learning_rate != 0
    rate = tf.where(changed | (now.learning_rate == 0), rate, now.learning_rate)
    is_refresh = tf.convert_to_tensor(wake_all)
    if state.policy.refresh_every:
        is_refresh |= step % state.policy.refresh_every == 0
    woken_at = tf.where(changed | is_refresh, tf.cast(step, tf.float64), now.woken_at)
    return woken_at, rate, is_refresh


def end_step(state, begun, step, counts, num_sleeping, num_entries):
    """Writes the table's policy state.

    Args:
        begun: What `begin_step` returned.
        counts: int64 `[NUM_COUNTERS]`, those of this step.
        num_sleeping: int64 scalar, to add to the rows that sleep.
        num_entries: int64 scalar, the entries in use now.
    """
    now, policy = _read_policy(state), state.policy
    woken_at, rate, _ = begun
    threshold, lookups, stale = now.threshold, now.control_lookups, now.control_stale
    if policy.target_skip is not None:
        lookups += tf.cast(counts[0], tf.float64)
        stale += tf.cast(counts[1] + counts[2], tf.float64)
        is_due = (step % _CONTROL_STEPS == 0) & (lookups > 0)
        factor = tf.where(
            stale < policy.target_skip * lookups,
            # A threshold that rose under a strictness would undo it.
            tf.where(now.strictness == 1.0, tf.constant(_CONTROL_FACTOR, tf.float64), 1.0),
            tf.constant(1 / _CONTROL_FACTOR, tf.float64),
        )
        bounded = tf.clip_by_value(
            threshold * factor, policy.max_threshold / _CONTROL_RANGE, policy.max_threshold
        )
        threshold = tf.where(is_due, bounded, threshold)
        zero = tf.zeros([], tf.float64)
        lookups, stale = tf.where(is_due, zero, lookups), tf.where(is_due, zero, stale)
    new = _Policy(
        tf.cast(num_entries, tf.float64),
        now.num_sleeping + tf.cast(num_sleeping, tf.float64),
        woken_at,
        rate,
        threshold,
        now.strictness,
        lookups,
        stale,
    )
    return state.policy_state.assign(tf.stack(new))


def hold(state, row_states, grads):
    """Adds gradients `[num_rows, dim]` of rows that are asleep to what is held of them."""
    index = -1 - row_states
    entries = _gather_ints(state, index)
    entries = entries._replace(
        held_steps=entries.held_steps + 1, num_updates=entries.num_updates + 1
    )
    held, snapshot, path = _gather_floats(state, index)
    return [
        _scatter_ints(state, index, entries),
        _scatter_floats(state, index, held + grads, snapshot, path),
    ]


def take_held(state, row_states, grads):
    """Returns what live rows are updated with, and of how many batches: int32 `[num_rows, 1]`.

    Args:
        row_states: int32 `[num_rows]`.
        grads: float32 `[num_rows, dim]`, of this batch.
    """
    index = tf.where(row_states < 0, -1 - row_states, 0)
    entries = _gather_ints(state, index)
    has_held = ((row_states < 0) & (entries.held_steps > 0))[:, tf.newaxis]
    held, _, _ = _gather_floats(state, index)
    batches = 1 + tf.where(row_states < 0, entries.held_steps, 0)
    return tf.where(has_held, held + grads, grads), tf.cast(batches, tf.int32)[:, tf.newaxis]


def held_steps(state, index):
    """Returns of how many batches the gradients of entries are held, int64 like `index`."""
    return _gather_ints(state, index).held_steps


def all_held(state, is_refresh):
    """Returns what a refresh applies: entries, ids, sums `[num, dim]`, batches `[num, 1]`."""

    def find():
        return tf.where(state.pool_ints[:, POOL_INTS.index("held_steps")] > 0)[:, 0]

    index = tf.cond(is_refresh, find, lambda: tf.zeros([0], tf.int64))
    entries = _gather_ints(state, index)
    held, _, _ = _gather_floats(state, index)
    batches = tf.cast(entries.held_steps, tf.int32)[:, tf.newaxis]
    return index, entries.row, held, batches


def after_flush(state, index, before, after, grads, is_refresh, step):
    """Writes the entries after their held gradients alone were applied.

    Returns:
        What to wait for, and what to add to the number of sleeping rows.
    """
    entries = _gather_ints(state, index)
    _, snapshot, path = _gather_floats(state, index)
    path = _measured(state.policy, before, after, grads, snapshot, path)
    zero = tf.zeros_like(entries.wake_step)
    new = entries._replace(
        live_step=zero + step,
        held_steps=zero,
        window_updates=entries.window_updates + 1,
    )
    done = [
        _scatter_ints(state, index, new),
        _scatter_floats(state, index, tf.zeros_like(grads), snapshot, path),
    ]

    def wake():
        sleeping = tf.where(state.pool_ints[:, POOL_INTS.index("wake_step")] > 0)[:, 0]
        entries = _gather_ints(state, sleeping)
        entries = entries._replace(wake_step=tf.zeros_like(entries.wake_step))
        with tf.control_dependencies([_scatter_ints(state, sleeping, entries)]):
            return -tf.size(sleeping, tf.int64)

    with tf.control_dependencies(done):
        change = tf.cond(is_refresh, wake, lambda: tf.zeros([], tf.int64))
    return done, change


def after_update(state, begun, ids, row_states, before, after, grads, step):
    """Counts, measures, judges and promotes live rows after their update.

    Args:
        begun: What `begin_step` returned.
        ids: int `[num_rows]`, distinct, in order of first appearance.
        row_states: int32 `[num_rows]`, theirs before.
        before: float32 `[num_rows, dim]`, the rows before.
        after: Likewise, after.
        grads: Likewise, what they were updated with.
        step: int64 scalar.

    Returns:
        What to wait for; int64 scalars: what to add to the number of sleeping rows, and the entries
        in use now.
    """
    popular = tf.where(row_states < 0)[:, 0]
    others = tf.where(row_states >= 0)[:, 0]
    of_popular = [tf.gather(x, popular) for x in (row_states, before, after, grads)]
    done, change = _judge_popular(state, begun[0], *of_popular, step)
    of_others = [tf.gather(x, others) for x in (ids, row_states, after)]
    promoted, num_entries = _count(state, *of_others, step)
    return done + promoted, change, num_entries


def _judge_popular(state, woken_at, row_states, before, after, grads, step):
    policy, index, now = state.policy, -1 - row_states, _read_policy(state)
    skips = policy.on_stale == "skip"
    entries = _gather_ints(state, index)
    _, snapshot, path = _gather_floats(state, index)
    path = _measured(policy, before, after, grads, snapshot, path)
    cycle, k = step - entries.live_step, entries.held_steps + 1
    if not skips:
        # The batches of a skipped sleep are not counted; it was made for a period.
        is_counted = (entries.wake_step == 0) | (entries.is_skipped == 0)
        k = tf.where(is_counted, k, entries.period)
    num_updates, window_updates = entries.num_updates + 1, entries.window_updates + 1
    num_judged = tf.where((entries.is_skipped != 0) & skips, policy.probe, policy.window)
    is_judged = window_updates >= tf.cast(num_judged, tf.int64)

    drift = _drift(state, after, snapshot, path, window_updates, entries.period)
    at_rest = drift <= now.threshold * now.strictness
    zero, one = tf.zeros([], tf.int64), tf.ones([], tf.int64)
    longest = tf.cast(tf.floor(policy.max_sleep * now.strictness), tf.int64)
    limit = tf.maximum(one, tf.minimum(longest, num_updates // policy.updates_per_sleep))
    period = entries.period
    if skips:
        num_batches = tf.where(is_judged & at_rest, tf.minimum(period, limit), zero)
        doubled = tf.minimum(2 * period, policy.max_sleep)
        new_period = tf.where(at_rest, doubled, policy.first_sleep * one)
        is_skipped = tf.cast(at_rest, tf.int64)
    else:
        doubled = tf.minimum(tf.maximum(2 * period, policy.first_sleep), limit)
        new_period = tf.where(at_rest, doubled, tf.maximum(one, period // 2))
        is_skipped = tf.cast((drift <= policy.skip_below) & (policy.skip_below > 0), tf.int64)
    period = tf.where(is_judged, new_period, period)
    sleeps_on = (entries.wake_step > 0) & (entries.live_step >= tf.cast(woken_at, tf.int64))
    if not skips:
        num_batches = tf.where(is_judged | sleeps_on, tf.minimum(period, limit) - 1, zero)
    sleep = tf.minimum(tf.constant(policy.max_age, tf.int64), (num_batches * cycle + k - 1) // k)
    if not skips:
        # Rows that became popular or were woken together would otherwise be updated together.
        shorter = sleep - (step + 1 + sleep + tf.cast(index, tf.int64)) % (sleep + 1)
        sleep = tf.where((period != entries.period) | ~sleeps_on, shorter, sleep)
    wake_step = tf.where(num_batches > 0, step + 1 + sleep, zero)
    new = _Entries(
        row=entries.row,
        wake_step=wake_step,
        live_step=tf.zeros_like(wake_step) + step,
        num_updates=num_updates,
        held_steps=tf.zeros_like(wake_step),
        period=period,
        window_updates=tf.where(is_judged, zero, window_updates),
        is_skipped=tf.where(is_judged, is_skipped, entries.is_skipped),
    )
    is_judged = is_judged[:, tf.newaxis]
    snapshot, path = tf.where(is_judged, after, snapshot), tf.where(is_judged, 0.0, path)
    change = tf.math.count_nonzero(wake_step > 0) - tf.math.count_nonzero(entries.wake_step > 0)
    done = [
        _scatter_ints(state, index, new),
        _scatter_floats(state, index, tf.zeros_like(after), snapshot, path),
    ]
    return done, change


def _count(state, ids, row_states, after, step):
    """Counts the updates of rows that are not popular, and makes those popular that had enough."""
    policy = state.policy
    num_updates = tf.where(row_states == tf.int32.max, row_states, row_states + 1)
    num_entries = tf.cast(_read_policy(state).num_entries, tf.int64)
    has_enough = tf.cast(num_updates, tf.int64) >= policy.min_updates
    is_candidate = has_enough & (step > policy.warm_up)
    place = num_entries + tf.cumsum(tf.cast(is_candidate, tf.int64), exclusive=True)
    is_promoted = is_candidate & (place < state.pool_ints.shape[0])
    states = tf.where(is_promoted, tf.cast(-1 - place, tf.int32), num_updates)
    done = [scatter_int32(state.row_states, ids, states)]
    place, after = tf.boolean_mask(place, is_promoted), tf.boolean_mask(after, is_promoted)
    zero = tf.zeros_like(place)
    new = _Entries(
        row=tf.cast(tf.boolean_mask(ids, is_promoted), tf.int64),
        wake_step=zero,
        live_step=zero + step,
        num_updates=tf.cast(tf.boolean_mask(num_updates, is_promoted), tf.int64),
        held_steps=zero,
        period=zero + (policy.first_sleep if policy.on_stale == "skip" else 1),
        window_updates=zero,
        is_skipped=zero,
    )
    done += [
        _scatter_ints(state, place, new),
        _scatter_floats(state, place, tf.zeros_like(after), after, tf.zeros_like(after[:, :1])),
    ]
    return done, num_entries + tf.math.count_nonzero(is_promoted)


def _measured(policy, before, after, grads, snapshot, path):
    """Returns `path` `[num_rows, 1]` after an update."""
    if policy.drift_metric == "coherence":
        return path + tf.reduce_sum(tf.square(after - before), axis=1, keepdims=True)
    if policy.drift_metric == "loss":
        return path - tf.reduce_sum(grads * (before - snapshot), axis=1, keepdims=True)
    return path


def _drift(state, rows, snapshot, path, window_updates, period):
    """Returns the drift of each row, float64 `[num_rows]`."""
    metric, net = state.policy.drift_metric, rows - snapshot
    path = tf.cast(path[:, 0], tf.float64)
    squared = tf.cast(tf.reduce_sum(tf.square(net), axis=1), tf.float64)
    if metric == "coherence":
        # Of one update with the one before: so many batches apart.
        distance = tf.ones_like(period) if state.policy.on_stale == "skip" else period
        base = tf.pow(tf.constant(state.correlation, tf.float64), tf.cast(distance, tf.float64))
        noise = _noise_coherence(window_updates, base)
        return tf.math.divide_no_nan(squared, path * noise)
    if metric == "relative_l2":
        norm = tf.sqrt(tf.cast(tf.reduce_sum(tf.square(snapshot), axis=1), tf.float64))
        return tf.where(squared == 0, tf.zeros_like(norm), tf.sqrt(squared) / norm)
    if metric == "l2":
        return tf.sqrt(squared)
    if metric == "mean_abs":
        return tf.cast(tf.reduce_sum(tf.abs(net), axis=1), tf.float64) / net.shape[1]
    return tf.maximum(path, 0.0) / tf.cast(window_updates, tf.float64)


def _noise_coherence(num_steps, base):
    n = tf.cast(num_steps, tf.float64)
    # The longest window; a refresh lengthens one by an update.
    longest = tf.reduce_max(tf.concat([tf.ones([1], tf.int64), num_steps], axis=0))
    i = tf.cast(tf.range(1, longest), tf.float64)[:, tf.newaxis]
    terms = tf.where(i < n, 2 * (1 - i / n) * tf.pow(base, i), 0.0)
    return 1 + tf.reduce_sum(terms, axis=0)


def _read_policy(state):
    return _Policy(*tf.unstack(tf.convert_to_tensor(state.policy_state)))


def _gather_ints(state, index):
    return _Entries(*tf.unstack(tf.gather(state.pool_ints, index), axis=-1))


def _scatter_ints(state, index, entries):
    return _scatter(state.pool_ints, index, tf.stack(entries, axis=1))


def _gather_floats(state, index):
    """Returns `held`, `snapshot` and `path` of entries."""
    dim = state.table.shape[1]
    return tf.split(tf.gather(state.pool_floats, index), [dim, dim, 1], axis=-1)


def _scatter_floats(state, index, held, snapshot, path):
    return _scatter(state.pool_floats, index, tf.concat([held, snapshot, path], axis=1))


def _scatter(variable, index, values):
    return variable.scatter_update(tf.IndexedSlices(values, index))
