"""The popularity part of a policy's state machine, run over a log without training.

docs/policy_reference.md with a learning rate that does not change. What is deferred then depends on
the ids, and on whether rows are at rest whenever they are judged. With every row at rest it follows
from the ids alone, and bounds what a policy defers in training. With rows that walk at random it is
what training is expected to do: noise alone makes some rows look as if they swung.
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
        self._pools = [[] for _ in range(num_fields)]  # slots by entry
        self._slots = np.zeros((len(_COLUMNS), 1024), np.int64)
        self._slots[0] = -1

    def num_sleeping(self):
        """Returns how many rows of each field sleep, as `num_stale_rows`: int64 `[num_fields]`."""
        wake = self._column("wake_step")
        return np.array([int((wake[pool] > 0).sum()) if pool else 0 for pool in self._pools])

    def _column(self, name):
        return self._slots[_COLUMNS.index(name)]

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
        if slots.size and int(slots.max()) >= self._slots.shape[1]:
            self._grow(int(slots.max()) + 1)
        known = np.flatnonzero(slots >= 0)
        is_popular = self._column("entry")[slots[known]] >= 0
        popular, others = known[is_popular], known[~is_popular]
        if popular.size:
            self._look_up(step, slots[popular], fields[popular], num_lookups[popular])
        if others.size and step > policy.warm_up:
            others = others[num_batches[others] >= policy.min_updates]
            others = others[np.argsort(order[others], kind="stable")]
            self._promote(step, slots[others], fields[others], num_batches[others], num_rows)
        if is_refresh:
            self._refresh(step)

    def _grow(self, num_slots):
        size = max(num_slots, 2 * self._slots.shape[1])
        grown = np.zeros((len(_COLUMNS), size), np.int64)
        grown[0] = -1
        grown[:, : self._slots.shape[1]] = self._slots
        self._slots = grown
        self._net, self._path = (
            np.concatenate([one, np.zeros((size - len(one), *one.shape[1:]))])
            for one in (self._net, self._path)
        )

    def _look_up(self, step, slots, fields, num_lookups):
        wake, live = self._column("wake_step")[slots], self._column("live_step")[slots]
        held, period = self._column("held_steps")[slots], self._column("period")[slots]
        is_skipped = self._column("is_skipped")[slots] > 0
        asleep = (live <= step) & (step < wake) & (live >= self._woken_at)
        asleep &= is_skipped | (held < period - 1)
        skipped, deferred = asleep & is_skipped, asleep & ~is_skipped
        self._column("held_steps")[slots[deferred]] += 1
        self._column("num_updates")[slots[deferred]] += 1
        for kind, mask in (("deferred", deferred), ("skipped", skipped)):
            if mask.any():
                counts = np.bincount(fields[mask], minlength=self._num_fields)
                sums = np.bincount(fields[mask], num_lookups[mask], self._num_fields)
                getattr(self, f"num_{kind}_row_updates")[:] += counts
                getattr(self, f"num_{kind}_lookups")[:] += sums.astype(np.int64)
        self._update(step, slots[~asleep])

    def _update(self, step, slots):
        policy = self.policy
        skips = policy.on_stale == "skip"
        entry, wake, live, num_updates, held, period, window, is_skipped = self._slots[:, slots]
        cycle = np.maximum(1, step - live)
        slept, was_woken = wake > 0, live < self._woken_at
        is_counted = ~slept | (is_skipped == 0) if not skips else np.ones(len(slots), bool)
        k = np.maximum(1, np.where(is_counted, held + 1, period))
        num_updates += 1
        window += 1
        limit = np.maximum(1, np.minimum(policy.max_sleep, num_updates // policy.updates_per_sleep))
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
        for name, values in (
            ("wake_step", wake),
            ("live_step", step),
            ("num_updates", num_updates),
            ("held_steps", 0),
            ("period", period),
            ("window_updates", window),
            ("is_skipped", is_skipped),
        ):
            self._column(name)[slots] = values

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
            pool = self._pools[field]
            share = math.ceil(self.policy.popular_share * num_rows[field])
            num_free = max(_MIN_CAPACITY, share) - len(pool)
            freed = self._evict(step, field, len(mine) - num_free) if len(mine) > num_free else []
            for number, index in enumerate(mine.tolist()):
                slot = int(slots[index])
                if number < num_free:
                    entry = len(pool)
                    pool.append(slot)
                elif number - max(0, num_free) < len(freed):
                    entry = freed[number - max(0, num_free)]
                    pool[entry] = slot
                else:
                    break
                period = self.policy.first_sleep if self.policy.on_stale == "skip" else 1
                self._net[slot], self._path[slot] = 0, 0
                new = [entry, 0, step, int(num_batches[index]), 0, period, 0, 0]
                self._slots[:, slot] = new
            self.num_popular[field] = len(pool)

    def _evict(self, step, field, num_wanted):
        """Returns entries that idle rows have lost."""
        pool, freed = self._pools[field], []
        if not pool:
            return freed
        for number in range(min(_IDLE_WINDOW, len(pool))):
            if len(freed) == num_wanted:
                break
            entry = (self._hands[field] + number) % len(pool)
            slot = pool[entry]
            latest = max(self._column("live_step")[slot], self._column("wake_step")[slot])
            if step - latest >= _IDLE_STEPS:
                self._column("entry")[slot] = -1
                freed.append(entry)
        self._hands[field] = (self._hands[field] + _IDLE_WINDOW) % len(pool)
        return freed

    def _refresh(self, step):
        is_entry = self._column("entry") >= 0
        holds = is_entry & (self._column("held_steps") > 0)
        self._column("live_step")[holds] = step
        self._column("window_updates")[holds] += 1
        self._column("held_steps")[holds] = 0
        self._column("wake_step")[is_entry] = 0
