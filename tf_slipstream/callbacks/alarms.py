"""Alarms: limits on what a monitor reads, and what is done when one is passed."""

import dataclasses
import logging
import math

ACTIONS = ("log", "raise")
# What an alarm may watch, its limit where none is given, and what its message says.
WATCHED = {
    "age": (20_000, "a row that sleeps was last updated {value:,.0f} steps ago"),
    "share": (0.95, "{value:.1%} of lookups are deferred or skipped"),
    "drift": (1.5, "half of the sleeping rows drift at {value:.2f} times the threshold or more"),
    "loss": (0.05, "the training loss has risen by {value:.1%} of itself"),
    "refused": (0, "a GPU refused {value:,.0f} step(s) for an id or a gradient"),
}
_logger = logging.getLogger("tf_slipstream")


class AlarmError(RuntimeError):
    """An alarm whose action is `"raise"`.

    Attributes:
        event: The `AlarmEvent`.
    """

    def __init__(self, event):
        super().__init__(event.message)
        self.event = event


@dataclasses.dataclass(frozen=True)
class Alarm:
    """A limit, and what to do when it is passed.

    It acts once when the value passes the limit, and again only after it was back within it.

    Args:
        watch: What is watched, of each table since the reading before:

            - `"age"`: the most steps since the last update of a row that sleeps. Beyond the
              policy's `max_age` and `refresh_every` nobody looks the row up any more.
            - `"share"`: share of lookups whose gradients were deferred or skipped.
            - `"drift"`: the median drift of rows that sleep, over the threshold in force.
            - `"loss"`: relative rise of the training loss, which `LossWatch` tells from noise;
              infinite for a loss that is not finite. Of the model, not of a table.
            - `"refused"`: steps that a GPU refused.
        above: The largest value that is none; None: 20,000 steps, 0.95, 1.5, 0.05, 0.
        action: `"log"`: a warning of the logger `tf_slipstream`; `"raise"`: an `AlarmError`, which
            ends training; or a function, called with the `AlarmEvent`.

    Raises:
        ValueError: For a value outside its range.
    """

    watch: str
    above: float | None = None
    action: object = "log"

    def __post_init__(self):
        if self.watch not in WATCHED:
            raise ValueError(
                f"An alarm's `watch` must be one of {tuple(WATCHED)}, got {self.watch!r}."
            )
        if self.above is None:
            object.__setattr__(self, "above", WATCHED[self.watch][0])
        is_number = isinstance(self.above, (int, float)) and not isinstance(self.above, bool)
        if not is_number or math.isnan(self.above) or self.above < 0:
            raise ValueError(f"An alarm's `above` must be a number >= 0, got {self.above!r}.")
        if self.action not in ACTIONS and not callable(self.action):
            raise ValueError(
                f"An alarm's `action` must be one of {ACTIONS} or a function of an AlarmEvent, got "
                f"{self.action!r}."
            )


@dataclasses.dataclass(frozen=True)
class AlarmEvent:
    """What passed a limit.

    Attributes:
        watch: As of the `Alarm`.
        table: The table's name; None for `"loss"`.
        value: What was read.
        above: The limit.
        step: Steps so far.
    """

    watch: str
    table: str | None
    value: float
    above: float
    step: int

    @property
    def message(self):
        where = f"table '{self.table}'" if self.table is not None else "the model"
        what = WATCHED[self.watch][1].format(value=self.value)
        return (
            f"Slipstream alarm '{self.watch}' at step {self.step:,}, {where}: {what} (limit "
            f"{self.above:g}). docs/guide/watching.md says what to do."
        )


def as_alarms(alarms):
    """Returns the tuple of `Alarm`s that an `alarms` argument stands for.

    Args:
        alarms: `"default"`: one for each of `WATCHED`; `"log"`, `"raise"` or a function: the same
            with that action; None: none; a dict from what is watched to its limit or `Alarm`; or an
            iterable of `Alarm`s and names of what is watched.

    Raises:
        ValueError: For anything else.
    """
    if alarms is None:
        return ()
    if isinstance(alarms, str) and alarms in ("default", *ACTIONS) or callable(alarms):
        action = "log" if alarms == "default" else alarms
        return tuple(Alarm(watch, action=action) for watch in WATCHED)
    if isinstance(alarms, (str, Alarm)):
        alarms = [alarms]
    if isinstance(alarms, dict):
        made = [_as_alarm(one, watch) for watch, one in alarms.items()]
        wrong = [watch for watch, one in zip(alarms, made) if one.watch != watch]
        if wrong:
            raise ValueError(f"`alarms` has an Alarm of something else at {wrong[0]!r}.")
        return tuple(made)
    try:
        return tuple(_as_alarm(one) for one in alarms)
    except TypeError:
        raise ValueError(
            "`alarms` must be 'default', 'log', 'raise', a function, None, a dict from what is "
            f"watched to its limit, or a list of slipstream.Alarm; got {alarms!r}."
        ) from None


def _as_alarm(one, watch=None):
    if isinstance(one, Alarm):
        return one
    if watch is not None:
        return Alarm(watch, one)
    return Alarm(one)


class AlarmState:
    """Which alarms are on, and what becomes of one that begins.

    Args:
        alarms: Tuple of `Alarm`s.

    Attributes:
        events: List of `AlarmEvent`s, one for each time that a limit was passed.
        active: Dict from a pair of what is watched and a table's name to whether it is on.
    """

    def __init__(self, alarms):
        self._alarms = alarms
        self._is_on = {}  # by an alarm's place and a table's name
        self.events = []

    @property
    def active(self):
        on = {}
        for (index, table), is_on in self._is_on.items():
            place = (self._alarms[index].watch, table)
            on[place] = on.get(place, False) or is_on
        return on

    def limit_of(self, watch):
        """Returns the smallest limit of the alarms that watch something; None without any."""
        return min((a.above for a in self._alarms if a.watch == watch), default=None)

    def update(self, step, values):
        """Takes values that were read, and acts where one has passed a limit.

        Args:
            step: Steps so far.
            values: Dict from pairs of what is watched and a table's name to a number.
        """
        raised = []
        for index, alarm in enumerate(self._alarms):
            for (watch, table), value in values.items():
                if watch != alarm.watch:
                    continue
                place = (index, table)
                is_on = value > alarm.above
                begins = is_on and not self._is_on.get(place, False)
                self._is_on[place] = is_on
                if begins:
                    event = AlarmEvent(watch, table, float(value), alarm.above, step)
                    self.events.append(event)
                    raised.append((alarm.action, event))
        # All are known before one of them ends training.
        for action, event in raised:
            if callable(action):
                action(event)
            elif action == "log":
                _logger.warning("%s", event.message)
        for action, event in raised:
            if action == "raise":
                raise AlarmError(event)
