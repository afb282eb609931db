"""The policy's oracle: a table whose rows sleep, as docs/reference/sleeping_rows.md has it.

In float64 and plain Python, row by row, so that every line can be held against that page; it
imports nothing of the product. Numbers in comments are those of the page's list. What momentum and
weight decay do to a row between its batches is `tests/reference.py`'s.
"""

import dataclasses
import math

import numpy as np

from tests.policy.drift import drift
from tests.policy.held_sums import correlation, held_update
from tests.reference import ReferenceTable, summed_rows

MAX_COUNT = 2**31 - 1
CLOCK_STEPS = 2**31 - 1
INT_FIELDS = (
    "row",
    "wake_step",
    "live_step",
    "num_updates",
    "held_steps",
    "period",
    "window_updates",
    "is_skipped",
)


@dataclasses.dataclass
class Entry:
    """A popular row."""

    row: int
    live_step: int
    num_updates: int
    period: int
    held: np.ndarray
    snapshot: np.ndarray
    wake_step: int = 0
    held_steps: int = 0
    window_updates: int = 0
    is_skipped: int = 0
    path: float = 0.0

    def is_idle(self, step):
        """Whether nobody has looked the row up for so long that another may get its entry."""
        return step - max(self.live_step, self.wake_step) >= 1000


class PolicyTable(ReferenceTable):
    """A table with its optimizer state and its policy's, trained one step at a time.

    Args:
        values: Floats `[num_rows, dim]`, copied.
        rule: A key of `RULES`.
        policy: An object with the fields of a `StalenessPolicy`.
        least_capacity: Entries that any pool has, where there are as many rows.
        **options: `weight_decay`, `clipvalue` and fields of the rule, as of `ReferenceTable`.

    Attributes:
        values, slots, last_step, is_spent, step_number: As in `ReferenceTable`.
        counts: Int64 `[num_rows]`, the batches that looked a row up before it was popular.
        pool: The `Entry` of each popular row, by its place.
        woken_at, learning_rate, threshold, strictness, control_lookups, control_stale, hand: As in
            `policy_state`.
        counters: Dict from the names in `SkipStats` to counts.
        closest_call: The smallest distance of a drift from what it was compared with, as a share
            of that. What rounds may judge otherwise where it is small.
        num_at_rest, num_moving: Judgements so far, by what they found; num_swinging: those moving
            ones whose drift was below `min_drift`.
        num_evicted: Rows that have lost their entry so far.
    """

    def __init__(self, values, rule, policy, *, least_capacity=4096, **options):
        super().__init__(values, rule, **options)
        num_rows = len(self.values)
        self.policy = policy
        self.counts = np.zeros(num_rows, np.int64)
        self.pool, self._entries = [], {}
        share = math.ceil(policy.popular_share * num_rows)
        self.capacity = min(num_rows, max(least_capacity, share))
        self.woken_at, self.learning_rate, self.strictness, self.hand = 0, 0.0, 1.0, 0
        is_found = policy.threshold is None
        self.threshold = float(policy.max_threshold if is_found else policy.threshold)
        self.control_lookups = self.control_stale = 0
        kinds = ("", "_skipped", "_deferred")
        names = [f"num{kind}_{what}" for what in ("lookups", "row_updates") for kind in kinds]
        self.counters = dict.fromkeys(names, 0)
        self.closest_call = math.inf
        self.num_at_rest = self.num_moving = self.num_swinging = self.num_evicted = 0

    @property
    def num_sleeping(self):
        return sum(entry.wake_step > 0 for entry in self.pool)

    def step(self, ids, grads, learning_rate):
        """Does a step with gradients `[num_lookups, dim]` of `ids` `[num_lookups]`."""
        ids, learning_rate = np.asarray(ids, np.int64), float(learning_rate)
        self.step_number += 1
        t, every = self.step_number, self.policy.refresh_every
        if self.learning_rate == 0:  # 1
            self.learning_rate = learning_rate
        elif not 0.8 * self.learning_rate <= learning_rate <= 1.25 * self.learning_rate:
            self.learning_rate, self.woken_at = learning_rate, t
        is_refresh = every > 0 and t % every == 0
        # The counter of steps may have been set back.
        if is_refresh or self.woken_at > t:  # 2
            self.woken_at = t
        candidates = []
        for row, grad in zip(*summed_rows(ids, grads), strict=True):
            if self.clipvalue is not None:
                grad = np.clip(grad, -self.clipvalue, self.clipvalue)
            self._look_up(int(row), grad, np.count_nonzero(ids == row), learning_rate, candidates)
        self._make_popular(candidates, learning_rate)
        if is_refresh:
            self._apply_held(learning_rate, wake=True)
        if self.policy.threshold is None:
            self._control_threshold()

    def settle(self, learning_rate, wake=False):
        """Applies all that is held and what rows are behind; then they sleep on, or wake."""
        if wake:
            self.woken_at = max(1, self.step_number)
        self._apply_held(learning_rate, wake)
        super().settle(learning_rate)

    def wake_all(self, learning_rate):
        """Does the same, and ends every sleep."""
        self.settle(learning_rate, wake=True)

    def set_back(self, num_steps):
        """Sets the counter of steps back."""
        self.step_number = num_steps

    def entry_of(self, row):
        """Returns the `Entry` of a row, or None."""
        return self._entries.get(row)

    def is_asleep(self, entry):
        """Whether a row sleeps in step `step_number`."""
        if self.step_number >= entry.wake_step or entry.live_step < self.woken_at:
            return False
        if self.step_number < entry.live_step:  # the counter of steps was set back
            return False
        return bool(entry.is_skipped) or entry.held_steps < entry.period - 1

    def _look_up(self, row, grad, num_lookups, learning_rate, candidates):
        entry = self.entry_of(row)
        self._count("", num_lookups)
        if entry is None:
            self._update_live(row, grad, learning_rate, candidates)
        elif not self.is_asleep(entry):
            self._update_popular(entry, grad, learning_rate)
        elif entry.is_skipped:  # 3
            self._count("_skipped", num_lookups)
        else:  # 4
            entry.held = entry.held + grad
            entry.held_steps += 1
            entry.num_updates += 1
            self._count("_deferred", num_lookups)

    def _count(self, kind, num_lookups):
        self.counters[f"num{kind}_lookups"] += num_lookups
        self.counters[f"num{kind}_row_updates"] += 1
        if self.policy.threshold is None:
            self.control_lookups += 0 if kind else num_lookups
            self.control_stale += num_lookups if kind else 0

    def _update_live(self, row, grad, learning_rate, candidates):  # 5
        self._update_row_with_sum(row, grad, 1, learning_rate)
        self.counts[row] = min(self.counts[row] + 1, MAX_COUNT)
        if self.counts[row] >= self.policy.min_updates and self.step_number > self.policy.warm_up:
            candidates.append(row)

    def _make_popular(self, candidates, learning_rate):
        num_free = self.capacity - len(self.pool)
        evicted = self._evict(len(candidates) - num_free, learning_rate)
        for number, row in enumerate(candidates):
            if number >= num_free + len(evicted):
                break
            entry = Entry(
                row=row,
                live_step=self.step_number,
                num_updates=int(self.counts[row]),
                period=self.policy.first_sleep if self.policy.on_stale == "skip" else 1,
                held=np.zeros_like(self.values[row]),
                snapshot=self.values[row].copy(),
            )
            self._entries[row] = entry
            if number < num_free:
                self.pool.append(entry)
            else:
                self.pool[evicted[number - num_free]] = entry

    def _evict(self, num_wanted, learning_rate):
        """Returns places in the pool, so many at most, that idle rows have lost."""
        evicted, num_entries = [], len(self.pool)
        if num_wanted <= 0 or num_entries == 0:
            return evicted
        for number in range(min(256, num_entries)):
            place = (self.hand + number) % num_entries
            entry = self.pool[place]
            if len(evicted) == num_wanted or not entry.is_idle(self.step_number):
                continue
            if entry.held_steps > 0:
                self._apply(entry, entry.held, entry.held_steps, learning_rate)
            self.counts[entry.row] = min(entry.num_updates, MAX_COUNT)
            del self._entries[entry.row]
            evicted.append(place)
        self.hand = (self.hand + 256) % num_entries
        self.num_evicted += len(evicted)
        return evicted

    def _update_popular(self, entry, grad, learning_rate):  # 6
        total, num_batches = entry.held + grad, entry.held_steps + 1
        num_in_cycle = num_batches
        if self.policy.on_stale == "defer" and entry.wake_step > 0 and entry.is_skipped:
            num_in_cycle = entry.period
        cycle = max(1, self.step_number - entry.live_step)
        sleeps_on = entry.wake_step > 0 and entry.live_step >= self.woken_at
        entry.num_updates += 1
        self._apply(entry, total, num_batches, learning_rate)
        policy = self.policy
        num_judged = policy.window
        if policy.on_stale == "skip" and entry.is_skipped:
            num_judged = policy.probe
        num_sleeps, period = 0, entry.period  # of batches
        is_judged = entry.window_updates >= num_judged
        if entry.period > 1 and 2 * entry.window_updates >= policy.window:
            is_judged = is_judged or self._swings(entry, self._drift(entry, cycle))
        if is_judged:
            num_sleeps = self._judge(entry, cycle)
        if policy.on_stale == "defer" and (is_judged or sleeps_on):
            num_sleeps = min(entry.period, self._longest(entry)) - 1
        entry.wake_step = 0
        if num_sleeps > 0:
            num_steps = min(-(-num_sleeps * cycle // num_in_cycle), policy.max_age)  # rounded up
            if policy.on_stale == "defer" and (entry.period != period or not sleeps_on):
                end = self.step_number + 1 + num_steps + self.pool.index(entry)
                num_steps -= end % (num_steps + 1)
            entry.wake_step = self.step_number + 1 + num_steps

    def _longest(self, entry):
        """Returns the limit of a sleep, in batches."""
        longest = math.floor(self.policy.max_sleep * self.strictness)
        grown = (entry.num_updates / self.policy.updates_per_sleep) ** self.policy.sleep_growth
        return max(1, min(longest, math.floor(grown)))

    def _apply(self, entry, total, num_batches, learning_rate):
        before = self.values[entry.row].copy()
        self._update_row_with_sum(entry.row, total, num_batches, learning_rate)
        entry.window_updates += 1
        entry.live_step = max(1, self.step_number)
        entry.held = np.zeros_like(entry.held)
        entry.held_steps = 0
        if self.policy.drift_metric == "coherence":
            entry.path += float(np.sum((self.values[entry.row] - before) ** 2))
        elif self.policy.drift_metric == "loss":
            entry.path -= float(np.dot(total, before - entry.snapshot))

    def _apply_held(self, learning_rate, wake):  # 7
        for entry in self.pool:
            if entry.held_steps > 0:
                self._apply(entry, entry.held, entry.held_steps, learning_rate)
            if wake:
                entry.wake_step = 0

    def _control_threshold(self):  # 8
        if self.step_number % 100 or self.control_lookups == 0:
            return
        share, target = self.control_stale / self.control_lookups, self.policy.target_skip
        self._compare(share, target)
        threshold = self.threshold
        if share >= target:
            threshold /= 1.25
        elif self.strictness == 1:
            threshold *= 1.25
        most = self.policy.max_threshold
        self.threshold = min(max(threshold, most / 1000), most)
        self.control_lookups = self.control_stale = 0

    def _judge(self, entry, cycle):
        """Returns for how many batches the row sleeps under "skip"."""
        policy = self.policy
        moved = self._drift(entry, cycle)
        is_at_rest = self._compare(moved, self.threshold * self.strictness)
        is_swinging = self._swings(entry, moved)
        self.num_swinging += is_swinging
        is_at_rest = is_at_rest and not is_swinging
        longest, num_sleeps = self._longest(entry), 0
        self.num_at_rest += is_at_rest
        self.num_moving += not is_at_rest
        if policy.on_stale == "skip":
            entry.is_skipped = int(is_at_rest)
            if is_at_rest:
                num_sleeps = min(entry.period, longest)
                entry.period = min(2 * entry.period, policy.max_sleep)
            else:
                entry.period = policy.first_sleep
        else:
            is_skipped = policy.skip_below > 0 and self._compare(moved, policy.skip_below)
            entry.is_skipped = int(is_skipped)
            if is_at_rest:
                entry.period = min(max(2 * entry.period, policy.first_sleep), longest)
            else:
                entry.period = max(1, entry.period // 2)
        entry.snapshot = self.values[entry.row].copy()
        entry.path, entry.window_updates = 0.0, 0
        return num_sleeps

    def _drift(self, entry, cycle):
        return drift(
            self.policy.drift_metric,
            self.values[entry.row],
            entry.snapshot,
            entry.path,
            entry.window_updates,
            # A row that missed a step before this one got all of its last gradient at once.
            correlation(self.rule) if cycle == 1 else 0.0,
        )

    def _swings(self, entry, moved):
        policy = self.policy
        if policy.on_stale == "skip" or policy.drift_metric != "coherence" or entry.path == 0:
            return False
        return not self._compare(policy.min_drift, moved)

    def _compare(self, value, limit):
        """Whether a value is at most a limit."""
        gap = abs(value - limit) / limit if limit > 0 else math.inf
        self.closest_call = min(self.closest_call, gap)
        return bool(value <= limit)

    def _update_row_with_sum(self, row, total, num_batches, learning_rate):
        step = max(1, self.step_number)
        self._touch(
            row,
            num_batches,
            learning_rate,
            lambda *before: held_update(
                self.rule, *before, total, num_batches, learning_rate, step
            ),
        )

    def arrays(self):
        """Returns the variables of docs/reference/sleeping_rows.md as arrays, all in 64 bits."""
        num_rows, dim = self.values.shape
        row_states = self.counts.copy()
        pool_ints = np.zeros([self.capacity, len(INT_FIELDS)], np.int64)
        pool_floats = np.zeros([self.capacity, 2 * dim + 1])
        clocks = np.where(self.last_step > 0, 1 + (self.last_step - 1) % CLOCK_STEPS, 0)
        for number, entry in enumerate(self.pool):
            row_states[entry.row] = -1 - number
            pool_ints[number] = [getattr(entry, field) for field in INT_FIELDS]
            pool_floats[number] = [*entry.held, *entry.snapshot, entry.path]
        state = [len(self.pool), self.num_sleeping, self.woken_at, self.learning_rate]
        state += [self.threshold, self.strictness, self.control_lookups, self.control_stale]
        state += [self.hand]
        return {
            "table": self.values,
            "last_steps": np.where(self.is_spent, clocks - 2**31, clocks),
            "row_states": row_states,
            "pool_ints": pool_ints,
            "pool_floats": pool_floats,
            "policy_state": np.array(state, np.float64),
            "counters": np.array([*self.counters.values(), 0, 0, 0], np.int64),
        } | {f"slot {name}": slot.reshape(num_rows, -1) for name, slot in self.slots.items()}
