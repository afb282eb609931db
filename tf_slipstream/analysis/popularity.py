"""The popularity part of a policy's state machine, run over a log without training.

docs/reference/sleeping_rows.md with a learning rate that does not change. What is deferred then
depends on the ids, and on whether rows are at rest whenever they are judged. With every row at rest
it follows from the ids alone, and bounds what a policy defers in training. With rows that walk at
random it is what training is expected to do: noise alone makes some rows look as if they swung.
"""

import math

import numpy as np

# As `custom_ops/kernels/staleness.h` and `state/table.py` have them.
_IDLE_WINDOW, _IDLE_STEPS, _MIN_CAPACITY = 256, 1000, 4096
_COLUMNS = (
    "entry",
    "wake_step",
    "live_step",
    "num_updates",
    "held_steps",
    "period",
    "window_updates",
    "is_skipped",
)


class Popularity:
    """What a policy would defer and skip of a log's lookups.

    A row that becomes popular gets a *slot* from the caller, for good. Policies may share slots.

    Args:
        policy: `StalenessPolicy`.
        num_fields: Tables.
        walk_dim: In how many directions rows walk at random; None: every row is at rest. Only for a
            policy that defers by coherence; under another every row is at rest all the same.

    Attributes:
        num_deferred_lookups, num_skipped_lookups, num_deferred_row_updates,
        num_skipped_row_updates: int64 `[num_fields]`, as `SkipStats` counts them.
        num_popular: int64 `[num_fields]`.
    """

    def __init__(self, policy, num_fields, walk_dim=None):
        self.policy = policy
        walks = policy.on_stale == "defer" and policy.drift_metric == "coherence"
        self._walk_dim = walk_dim if walks else None
        self._rng = np.random.default_rng(0)
        # By slot: how far the row came since its snapshot, and over which path.
        self._net, self._path = np.zeros((1024, walk_dim or 0)), np.zeros(1024)
        names = ("num_deferred_lookups", "num_skipped_lookups")
        for name in (*names, "num_deferred_row_updates", "num_skipped_row_updates", "num_popular"):
            setattr(self, name, np.zeros(num_fields, np.int64))
        self._num_fields = num_fields
        self._woken_at = 0
        self._hands = [0] * num_fields
        self._pools = [np.zeros(1024, np.int64) for _ in range(num_fields)]  # slots by entry
        # A row of memory for each slot, so that a look at it is one.
        self._slots = np.zeros((1024, len(_COLUMNS)), np.int64)
        self._column("entry")[:] = -1

    def num_sleeping(self):
        """Returns how many rows of each field sleep, as `num_stale_rows`: int64 `[num_fields]`."""
        wake = self._column("wake_step")
        pools = [pool[:size] for pool, size in zip(self._pools, self.num_popular)]
        return np.array([int((wake[pool] > 0).sum()) for pool in pools])

    def _column(self, name):
        return self._slots[:, _COLUMNS.index(name)]

    def step(self, step, slots, fields, num_batches, num_lookups, order, num_rows):
        """Does a training step.

        Args:
            step: Its number, from 1.
            slots: int64 `[num_distinct]`, of the batch's rows; -1: never popular so far, and with
                too few batches to be.
            fields: int64 `[num_distinct]`.
            num_batches: int64 `[num_distinct]`, batches that looked each row up so far, this one
                included.
            num_lookups: int64 `[num_distinct]`, in this batch.
            order: int64 `[num_distinct]`, increasing in the order of first appearance in the batch.
            num_rows: int64 `[num_fields]`, of each table.
        """
        policy, every = self.policy, self.policy.refresh_every
        is_refresh = every > 0 and step % every == 0
        if is_refresh:
            self._woken_at = step
        if slots.size and int(slots.max()) >= len(self._slots):
            self._grow(int(slots.max()) + 1)
        known = np.flatnonzero(slots >= 0)
        found = self._slots[slots[known]]
        is_popular = found[:, 0] >= 0
        popular, others = known[is_popular], known[~is_popular]
        if popular.size:
            found = found[is_popular]
            self._look_up(step, found, slots[popular], fields[popular], num_lookups[popular])
            self._slots[slots[popular]] = found
        if others.size and step > policy.warm_up:
            others = others[num_batches[others] >= policy.min_updates]
            others = others[np.argsort(order[others], kind="stable")]
            self._promote(step, slots[others], fields[others], num_batches[others], num_rows)
        if is_refresh:
            self._refresh(step)

    def _grow(self, num_slots):
        num_old = len(self._slots)
        size = max(num_slots, 2 * num_old)
        grown = np.zeros((size, len(_COLUMNS)), np.int64)
        grown[:, 0] = -1
        grown[:num_old] = self._slots
        self._slots = grown
        self._net, self._path = (
            np.concatenate([one, np.zeros((size - len(one), *one.shape[1:]))])
            for one in (self._net, self._path)
        )

    def _look_up(self, step, found, slots, fields, num_lookups):
        """Notes a lookup of popular rows in `found`, what is known of their slots."""
        _, wake, live, _, held, period, _, skipping = found.T
        is_skipped = skipping > 0
        asleep = (live <= step) & (step < wake) & (live >= self._woken_at)
        asleep &= is_skipped | (held < period - 1)
        skipped, deferred = asleep & is_skipped, asleep & ~is_skipped
        for name in ("held_steps", "num_updates"):
            found[:, _COLUMNS.index(name)] += deferred
        for kind, mask in (("deferred", deferred), ("skipped", skipped)):
            if mask.any():
                counts = np.bincount(fields[mask], minlength=self._num_fields)
                sums = np.bincount(fields[mask], num_lookups[mask], self._num_fields)
                getattr(self, f"num_{kind}_row_updates")[:] += counts
                getattr(self, f"num_{kind}_lookups")[:] += sums.astype(np.int64)
        awake = np.flatnonzero(~asleep)
        found[awake] = self._updated(step, found[awake], slots[awake])

    def _updated(self, step, found, slots):
        """Returns what is known of slots whose rows are updated."""
        policy = self.policy
        skips = policy.on_stale == "skip"
        entry, wake, live, num_updates, held, period, window, is_skipped = found.T
        cycle = np.maximum(1, step - live)
        slept, was_woken = wake > 0, live < self._woken_at
        is_counted = ~slept | (is_skipped == 0) if not skips else np.ones(len(slots), bool)
        k = np.maximum(1, np.where(is_counted, held + 1, period))
        num_updates, window = num_updates + 1, window + 1
        grown = (num_updates / policy.updates_per_sleep) ** policy.sleep_growth
        limit = np.maximum(1, np.minimum(policy.max_sleep, grown).astype(np.int64))
        num_judged = np.where(skips & (is_skipped > 0), policy.probe, policy.window)
        is_judged = window >= num_judged
        at_rest = np.ones(len(slots), bool)
        if self._walk_dim is not None:
            drift = self._walk(slots, k)
            swings = drift < policy.min_drift
            is_judged |= swings & (period > 1) & (2 * window >= policy.window)
            threshold = policy.max_threshold if policy.threshold is None else policy.threshold
            at_rest = ~swings & (drift <= threshold)
            self._net[slots[is_judged]] = 0
            self._path[slots[is_judged]] = 0
        before = period.copy()
        if skips:
            num_sleep = np.where(is_judged, np.minimum(period, limit), 0)
            period = np.where(is_judged, np.minimum(2 * period, policy.max_sleep), period)
            is_skipped = np.where(is_judged, 1, is_skipped)
        else:
            longer = np.minimum(np.maximum(2 * period, policy.first_sleep), limit)
            changed = np.where(at_rest, longer, np.maximum(1, period // 2))
            period = np.where(is_judged, changed, period)
            if policy.skip_below > 0:
                is_skipped = np.where(is_judged, 1, is_skipped)
            sleeps = is_judged | (slept & ~was_woken)
            num_sleep = np.where(sleeps, np.minimum(period, limit) - 1, 0)
        window = np.where(is_judged, 0, window)
        num_steps = np.minimum(policy.max_age, (num_sleep * cycle + k - 1) // k)
        if not skips:
            is_new = (period != before) | ~(slept & ~was_woken)
            shift = (step + 1 + num_steps + entry) % (num_steps + 1)
            num_steps = np.where(is_new, num_steps - shift, num_steps)
        wake = np.where(num_sleep > 0, step + 1 + num_steps, 0)
        zeros = np.zeros_like(wake)
        columns = [entry, wake, zeros + step, num_updates, zeros, period, window, is_skipped]
        return np.stack(columns, axis=1)

    def _walk(self, slots, num_batches):
        """Takes a step of each row, of so many batches; returns the rows' coherence."""
        steps = self._rng.standard_normal((len(slots), self._walk_dim))
        steps *= np.sqrt(num_batches)[:, None]
        self._net[slots] += steps
        self._path[slots] += (steps**2).sum(axis=1)
        return (self._net[slots] ** 2).sum(axis=1) / self._path[slots]

    def _promote(self, step, slots, fields, num_batches, num_rows):
        for field in np.unique(fields):
            mine = np.flatnonzero(fields == field)
            size = int(self.num_popular[field])
            share = math.ceil(self.policy.popular_share * num_rows[field])
            num_free = max(0, max(_MIN_CAPACITY, share) - size)
            entries = np.arange(size, size + min(num_free, len(mine)))
            if len(mine) > num_free:
                freed = self._evict(step, field, len(mine) - num_free)
                entries = np.concatenate([entries, freed])
            if not len(entries):
                continue
            pool = self._pools[field]
            if entries.max() >= len(pool):
                pool = np.concatenate([pool, np.zeros(len(pool) + len(entries), np.int64)])
                self._pools[field] = pool
            mine = mine[: len(entries)]
            new = slots[mine]
            pool[entries] = new
            self.num_popular[field] = max(size, int(entries.max()) + 1)
            self._slots[new] = 0
            self._net[new], self._path[new] = 0, 0
            self._column("entry")[new] = entries
            self._column("live_step")[new] = step
            self._column("num_updates")[new] = num_batches[mine]
            skips = self.policy.on_stale == "skip"
            self._column("period")[new] = self.policy.first_sleep if skips else 1

    def _evict(self, step, field, num_wanted):
        """Returns entries that idle rows have lost, int64, so many at most."""
        size = int(self.num_popular[field])
        if not size:
            return np.zeros(0, np.int64)
        window = (self._hands[field] + np.arange(min(_IDLE_WINDOW, size))) % size
        slots = self._pools[field][window]
        latest = np.maximum(self._column("live_step")[slots], self._column("wake_step")[slots])
        is_idle = np.flatnonzero(step - latest >= _IDLE_STEPS)[:num_wanted]
        self._column("entry")[slots[is_idle]] = -1
        self._hands[field] = (self._hands[field] + _IDLE_WINDOW) % size
        return window[is_idle]

    def _refresh(self, step):
        is_entry = self._column("entry") >= 0
        holds = is_entry & (self._column("held_steps") > 0)
        self._column("live_step")[holds] = step
        self._column("window_updates")[holds] += 1
        self._column("held_steps")[holds] = 0
        self._column("wake_step")[is_entry] = 0
