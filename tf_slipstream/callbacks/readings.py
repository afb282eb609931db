"""What a table's policy does at one moment, read from its state, in a bounded time."""

import dataclasses

import numpy as np
import tensorflow as tf

from tf_slipstream.state import schema
from tf_slipstream.state.stats import SkipStats
from tf_slipstream.state.table import counters_of, read_policy_states

# What ends sleeps, as `Wakes` counts them.
WAKE_CAUSES = ("schedule", "batches", "max_age", "refresh", "learning_rate", "asked")


@dataclasses.dataclass(frozen=True)
class PopularRows:
    """Some of a table's popular rows, evenly spread over its pool.

    Attributes:
        num_popular: Popular rows of the table, those left out as well.
        is_asleep: Bool `[num_sampled]`: has a time to wake, which may have come, unnoticed as yet.
        ages: Int `[num_sampled]`, steps since each row's last update.
        sleeps: Int `[num_sampled]`, steps from the last update to the time to wake; 0 where awake.
        is_full: Bool `[num_sampled]`: holds as many batches as its sleep was meant for.
        held_norms: Float `[num_sampled]`, the l2 norm of what is held of each row.
        drifts: Float `[num_measured]`, of the rows with half a window of updates or more.
        is_drift_asleep: Bool `[num_measured]`, `is_asleep` of the same rows.
    """

    num_popular: int
    is_asleep: np.ndarray
    ages: np.ndarray
    sleeps: np.ndarray
    is_full: np.ndarray
    held_norms: np.ndarray
    drifts: np.ndarray
    is_drift_asleep: np.ndarray


@dataclasses.dataclass(frozen=True)
class Reading:
    """A table at one moment.

    Attributes:
        step: Steps so far.
        seconds: Of a clock, at the reading.
        stats: `SkipStats`.
        strictness: As of the optimizer.
        num_refused_steps: Steps that a GPU refused and nobody was told of yet.
        popular: `PopularRows`; None for a table without a policy.
        policy: `StalenessPolicy` or None.
        woken_at: Tuple with a step for each shard, when all rows were woken last.
        learning_rate: Tuple with the rate of each shard that a change is measured against.
        cache_hit_rate: Share of distinct rows that a worker had; None but on parameter servers.
    """

    step: int
    seconds: float
    stats: SkipStats
    strictness: float
    num_refused_steps: int
    popular: PopularRows | None
    policy: object
    woken_at: tuple
    learning_rate: tuple
    cache_hit_rate: float | None = None


def read_tables(tables, seconds, max_rows):
    """Returns a `Reading` of each table, by name.

    Args:
        tables: `engine.tables.Tables`.
        seconds: Of a clock.
        max_rows: Popular rows of a table that are looked at.
    """
    step, groups = tables.num_steps, tables.states_by_table
    all_states = [state for states in groups.values() for state in states]
    counters = dict(zip(map(id, all_states), counters_of(all_states)))
    with_policy = [state for state in all_states if state.policy is not None]
    policy_states = dict(zip(map(id, with_policy), read_policy_states(with_policy)))
    # Raises no error of refused steps: training's next step does.
    stats, caches = tables.stats(check=False), tables.cache_stats()
    readings = {}
    for name, states in groups.items():
        found = [policy_states[id(state)] for state in states if id(state) in policy_states]
        readings[name] = Reading(
            step=step,
            seconds=seconds,
            stats=stats[name],
            strictness=min((one["strictness"] for one in found), default=1.0),
            num_refused_steps=sum(counters[id(s)]["num_refused_steps"] for s in states),
            popular=_popular_rows(states, found, step, max_rows) if found else None,
            policy=states[0].policy,
            woken_at=tuple(int(one["woken_at"]) for one in found),
            learning_rate=tuple(one["learning_rate"] for one in found),
            cache_hit_rate=caches[name].hit_rate if name in caches else None,
        )
    return readings


def _popular_rows(states, policy_states, step, max_rows):
    parts = [
        _sample(state, one, step, max(1, max_rows // len(states)))
        for state, one in zip(states, policy_states, strict=True)
    ]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return PopularRows(sum(int(one["num_entries"]) for one in policy_states), **joined)


def _sample(state, policy_state, step, max_rows):
    """Reads some entries of a pool; another step may be changing it meanwhile."""
    num_entries = max(0, min(int(policy_state["num_entries"]), int(state.pool_ints.shape[0])))
    num = min(num_entries, max_rows)
    places = np.arange(num, dtype=np.int64) * num_entries // max(num, 1)
    entries = dict(zip(schema.POOL_INTS, tf.gather(state.pool_ints, places).numpy().T, strict=True))
    floats = tf.gather(state.pool_floats, places).numpy()
    dim = state.dim
    held, snapshots, paths = floats[:, :dim], floats[:, dim : 2 * dim], floats[:, 2 * dim]
    # Each of several replicas of this process holds a part.
    for part in getattr(state.local_held, "values", None) or ():
        held = held + tf.gather(part, places).numpy()
    is_asleep = entries["wake_step"] > 0
    is_measured = 2 * entries["window_updates"] >= state.policy.window
    rows = np.zeros([num, dim], np.float32)
    if is_measured.any():
        ids = np.clip(entries["row"][is_measured], 0, state.num_rows - 1)
        rows[is_measured] = tf.cast(tf.gather(state.table, ids), tf.float32).numpy()
    measured = {name: column[is_measured] for name, column in entries.items()}
    drifts = _drifts(state, rows[is_measured], snapshots[is_measured], paths[is_measured], measured)
    return {
        "is_asleep": is_asleep,
        "ages": np.maximum(0, step - entries["live_step"]),
        "sleeps": np.where(is_asleep, entries["wake_step"] - entries["live_step"], 0),
        "is_full": (entries["held_steps"] >= entries["period"] - 1) & (entries["period"] > 1),
        "held_norms": np.linalg.norm(held, axis=1),
        "drifts": drifts,
        "is_drift_asleep": is_asleep[is_measured],
    }


def _drifts(state, rows, snapshots, paths, entries):
    """Returns the drift of rows as docs/reference/sleeping_rows.md has it, were they judged now."""
    net = rows.astype(np.float64) - snapshots
    distances = np.linalg.norm(net, axis=1)
    metric, num = state.policy.drift_metric, np.maximum(1, entries["window_updates"])
    with np.errstate(divide="ignore", invalid="ignore"):
        if metric == "coherence":
            # Rows that sleep get the whole effect of a gradient at once.
            correlations = np.where(entries["period"] > 1, 0.0, state.correlation)
            pairs, which = np.unique([num, correlations], axis=1, return_inverse=True)
            noise = np.array([_noise(*pair) for pair in pairs.T])[which]
            return np.where(paths > 0, distances**2 / (paths * noise), 0.0)
        if metric == "relative_l2":
            relative = distances / np.linalg.norm(snapshots.astype(np.float64), axis=1)
            return np.where(distances > 0, relative, 0.0)
    if metric == "l2":
        return distances
    if metric == "mean_abs":
        return np.abs(net).mean(axis=1)
    return np.maximum(0.0, paths) / num


def _noise(num_steps, correlation):
    lags = np.arange(1, int(num_steps))
    return 1 + 2 * float(np.sum((1 - lags / num_steps) * correlation**lags))


def wakes_between(before, after):
    """Returns about how many sleeps ended between two readings of a table, by their cause.

    No step counts them. Rows that sleep on wake once in a sleep's steps. All rows that sleep wake
    in a refresh, when the learning rate changes, and when somebody asks for it (`wake_all`,
    `SkipGuard`); the last of several requests alone leaves a trace.

    Args:
        before: `Reading`.
        after: A later `Reading` of the same table.

    Returns:
        Dict from each of `WAKE_CAUSES` to a float.
    """
    wakes = dict.fromkeys(WAKE_CAUSES, 0.0)
    if after.popular is None or before.popular is None:
        return wakes
    popular, policy = after.popular, after.policy
    num_steps = max(0, after.step - before.step)
    asleep = popular.is_asleep
    if asleep.any():
        each = num_steps / np.maximum(1, popular.sleeps[asleep])
        each *= after.stats.num_stale_rows / asleep.sum()
        is_longest = popular.sleeps[asleep] > policy.max_age
        is_full = popular.is_full[asleep] & (popular.ages[asleep] < popular.sleeps[asleep])
        wakes["max_age"] = float(each[is_longest].sum())
        wakes["batches"] = float(each[is_full & ~is_longest].sum())
        wakes["schedule"] = float(each[~is_full & ~is_longest].sum())
    num_asleep, every = before.stats.num_stale_rows, policy.refresh_every
    num_refreshes = after.step // every - before.step // every if every else 0
    wakes["refresh"] = float(num_refreshes * max(num_asleep, after.stats.num_stale_rows))
    if before.learning_rate != after.learning_rate and 0 not in before.learning_rate:
        wakes["learning_rate"] = float(num_asleep)
    elif before.woken_at != after.woken_at:
        if not (every and all(step % every == 0 for step in after.woken_at)):
            wakes["asked"] = float(num_asleep)
    return wakes
