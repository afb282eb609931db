"""When a row is stale."""

import dataclasses
import math

ON_STALE = ("defer", "skip")
# The largest integers that cross into the native library exactly, and that it counts batches in.
_MOST, _MOST_BATCHES = 2**53, 2**31 - 1
# The largest count of updates to its power is a float64.
_MAX_GROWTH = 8
DRIFT_METRICS = ("coherence", "relative_l2", "l2", "mean_abs", "loss")


@dataclasses.dataclass(frozen=True)
class StalenessPolicy:
    """Which rows of a table are stale, for how long, and what becomes of their gradients.

    A row is *live* until it has had `min_updates` updates. From then on it is *popular*: its drift
    is measured over its last `window` updates, and while it is at rest, which is `drift <=
    threshold`, it sleeps. One that sleeps too long overshoots and swings, and is not at rest:
    `min_drift`. Sleeps begin at `first_sleep` batches and double, up to `max_sleep` and
    up to the row's updates over `updates_per_sleep`; a row that moves again sleeps half as long.
    Batches here are those that look the row up, translated into steps by how often they came; with
    `"defer"` a sleep also ends when it has held its batches.

    With `on_stale="defer"` the gradients of a sleeping row are summed and applied in one update
    when it wakes, as one batch that is so many times larger (docs/reference/rare_rows.md has each
    rule's equation); a popular row is then updated once in as many batches as its sleep is long.
    With `"skip"` they are never read; a row that wakes is updated `probe` times before it is judged
    again.

    Args:
        on_stale: `"defer"` or `"skip"`.
        min_updates: Batches that must have looked a row up before it may sleep; at least 1.
        window: Updates over which a popular row's drift is measured; at least 2.
        probe: With `"skip"`, the same after a sleep; at least 2.
        drift_metric: With `w` the row now, `w0` at the start of the window and `d` each update:

            - `"coherence"`: `|w - w0|^2 / sum |d|^2`, divided by what pure noise gives under the
              rule's momentum. 1 for a random walk, more for a row that is going somewhere, less for
              one that is held in place. No unit.
            - `"relative_l2"`: `|w - w0| / |w0|`.
            - `"l2"`: `|w - w0|`.
            - `"mean_abs"`: the mean of `|w - w0|` over the row's elements.
            - `"loss"`: `max(0, -sum g (w' - w0)) / updates`, `w'` the row that the gradient `g` is
              of: how much loss the movement is still winning, to first order.
        threshold: Largest drift of a row at rest. None: found per table, to meet `target_skip`.
        target_skip: Share of lookups, in (0, 1), that is to be deferred or skipped; only with
            `threshold=None`.
        max_threshold: Bound on the threshold found.
        min_drift: With `"defer"` and `"coherence"`, a row that moves and whose drift is below this
            swings back and forth: it is not at rest, and sleeps half as long. Half a window shows
            it. 0: none does.
        first_sleep: Length of a row's first sleep, in its batches; at least 1. 1 is no sleep under
            `"defer"`.
        max_sleep: Longest sleep, in its batches; at least 1.
        updates_per_sleep: A row with `n` updates so far sleeps at most `n / updates_per_sleep`
            batches: the longer it has trained, the less an update changes. At least 1. Where the
            model learns fast, 400 is the careful choice: it saves far less.
        sleep_growth: Number in [1, 8]. The bound is `(n / updates_per_sleep) ** sleep_growth`:
            above 1 a row sleeps little in a short run and long in a long one.
        max_age: Longest sleep in steps, whatever the row's batches; at least 1.
        skip_below: With `"defer"`, a row whose drift is at most this is skipped until it wakes,
            instead of deferred. 0: never.
        refresh_every: In each step that is a multiple of it every row is live, and all that is held
            is applied. 0: never.
        warm_up: Steps before which no row becomes popular.
        popular_share: Largest share of a table's rows that may be popular, in (0, 1], at least
            4,096 rows. When they are, further rows stay live. A popular row takes 8 dim + 68 bytes.

    Raises:
        ValueError: For a value outside its range.
    """

    on_stale: str = "defer"
    min_updates: int = 100
    window: int = 8
    probe: int = 4
    drift_metric: str = "coherence"
    threshold: float | None = 3.0
    target_skip: float | None = None
    max_threshold: float = 3.0
    min_drift: float = 0.5
    first_sleep: int = 2
    max_sleep: int = 8
    updates_per_sleep: int = 125
    sleep_growth: float = 1.0
    max_age: int = 10_000
    skip_below: float = 0.0
    refresh_every: int = 10_000
    warm_up: int = 0
    popular_share: float = 0.04

    def __post_init__(self):
        self._check(self.on_stale in ON_STALE, "on_stale", f"one of {ON_STALE}")
        self._check(self.drift_metric in DRIFT_METRICS, "drift_metric", f"one of {DRIFT_METRICS}")
        for name, least in (
            ("min_updates", 1),
            ("window", 2),
            ("probe", 2),
            ("first_sleep", 1),
            ("max_sleep", 1),
            ("updates_per_sleep", 1),
            ("max_age", 1),
            ("refresh_every", 0),
            ("warm_up", 0),
        ):
            most = _MOST_BATCHES if name in ("first_sleep", "max_sleep") else _MOST
            value = getattr(self, name)
            self._check(_is_integer(value, least), name, f"an integer >= {least}")
            self._check(value <= most, name, f"at most {most}")
        for name in ("threshold", "max_threshold", "min_drift", "skip_below"):
            value = getattr(self, name)
            is_good = value is None and name == "threshold" or _is_number(value) and value >= 0
            self._check(is_good, name, "a finite number >= 0")
        growth = self.sleep_growth
        is_growth = _is_number(growth) and 1 <= growth <= _MAX_GROWTH
        self._check(is_growth, "sleep_growth", f"a number in [1, {_MAX_GROWTH}]")
        for name in ("target_skip", "popular_share"):
            value = getattr(self, name)
            is_none = value is None and name == "target_skip"
            is_share = _is_number(value) and 0 < value <= 1
            self._check(is_none or is_share, name, "a number in (0, 1]")
        if (self.threshold is None) == (self.target_skip is None):
            raise ValueError(
                "Exactly one of `threshold` and `target_skip` must be None: a threshold is given, "
                f"or found to meet a target; got {self.threshold!r} and {self.target_skip!r}."
            )
        self._check(self.first_sleep <= self.max_sleep, "first_sleep", "at most `max_sleep`")

    def _check(self, is_good, name, expected):
        if not is_good:
            raise ValueError(f"`{name}` must be {expected}, got {getattr(self, name)!r}.")

    @classmethod
    def conservative(cls, **changes):
        """The default; docs/evidence/sleeping_rows.md has what it saved and cost."""
        return cls(**changes)

    @classmethod
    def balanced(cls, **changes):
        """Sleeps up to twice as long, and grows to it twice as fast."""
        return cls(**{"max_sleep": 16, "updates_per_sleep": 50} | changes)

    @classmethod
    def aggressive(cls, **changes):
        """For runs of many thousand steps: rows sleep early.

        With 5,000 steps or more, changes of `min_updates=10, updates_per_sleep=8, max_sleep=32,
        warm_up=200` save more, and cost Adagrad less; in short runs not so
        (docs/guide/sleeping_rows.md).
        """
        values = {"min_updates": 20, "max_sleep": 16, "updates_per_sleep": 10}
        return cls(**values | changes)

    @classmethod
    def auto(cls, budget=0.0003, **changes):
        """How long a row may sleep follows from its own updates: short runs stay careful.

        A row that has had `n` updates sleeps at most `budget n^3 / 2400` batches, and at most 32:
        with the default budget it first sleeps after 252 updates, and for 32 batches after 635. The
        cube and its factor were fitted: docs/evidence/sleeping_rows.md has what it saved and cost.

        Args:
            budget: About the loss of AUC that is none yet, in [1e-6, 0.1].
            changes: Other settings.

        Raises:
            ValueError: For a budget outside its range, or as the class.
        """
        if not _is_number(budget) or not 1e-6 <= budget <= 0.1:
            raise ValueError(f"`budget` must be a number in [1e-6, 0.1], got {budget!r}.")
        age = math.ceil((2400 / budget) ** (1 / 3))
        # A row may sleep 2 batches from here on, and is judged when it has had a window.
        first = math.ceil(2 ** (1 / 3) * age)
        values = {"min_updates": max(1, first - cls.window), "max_sleep": 32}
        return cls(**{"updates_per_sleep": age, "sleep_growth": 3.0} | values | changes)

    def numbers(self, correlation):
        """Returns what the native library gets of it: a dict from a field's name to a number.

        Args:
            correlation: Of a row's movement in one step with that in the step before, the rule's.
        """
        numbers = dataclasses.asdict(self)
        # What a table's state begins with.
        del numbers["threshold"], numbers["popular_share"]
        numbers = {"skips": numbers.pop("on_stale") == "skip", **numbers}
        numbers["drift_metric"] = DRIFT_METRICS.index(self.drift_metric)
        numbers["target_skip"] = self.target_skip or 0
        numbers["correlation"] = correlation
        return {name: float(value) for name, value in numbers.items()}

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)


# "default" is the first.
PRESETS = ("conservative", "balanced", "aggressive", "auto")


def as_policy(policy, also=()):
    """Returns what a `policy` argument stands for.

    Args:
        policy: `StalenessPolicy`, the name of a preset, None, or one of `also`.
        also: Further values that are returned as they are.

    Raises:
        ValueError: For anything else.
    """
    if policy is None or isinstance(policy, StalenessPolicy):
        return policy
    if isinstance(policy, str) and policy in also:
        return policy
    if policy == "default":
        return getattr(StalenessPolicy, PRESETS[0])()
    if isinstance(policy, str) and policy in PRESETS:
        return getattr(StalenessPolicy, policy)()
    names = ", ".join(repr(name) for name in ("default", *PRESETS))
    raise ValueError(
        f"`policy` must be a StalenessPolicy, one of {names}, or None (never skip); got {policy!r}."
    )


def _is_integer(value, least):
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False
