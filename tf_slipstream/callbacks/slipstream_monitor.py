"""A callback that shows what sleeping rows do while a model trains, and raises alarms."""

import math
import time

import numpy as np

from tf_slipstream import _compat
from tf_slipstream.callbacks.alarms import AlarmState, as_alarms
from tf_slipstream.callbacks.batch_losses import BatchLosses
from tf_slipstream.callbacks.event_files import EventFiles
from tf_slipstream.callbacks.loss_watch import LossWatch
from tf_slipstream.callbacks.prometheus_endpoint import Families, PrometheusEndpoint
from tf_slipstream.callbacks.readings import WAKE_CAUSES, read_tables, wakes_between
from tf_slipstream.model_tables import tables_of

_USER = "SlipstreamMonitor"
_LOSS_INTERVAL = 50  # batches, as SkipGuard's
# Readings of popular rows that are spread evenly stand for all.
_MAX_ROWS = 1024


class SlipstreamMonitor(_compat.keras.callbacks.Callback):
    """Shows what sleeping rows do while a model trains, and raises alarms.

    There is a reading every `every` batches and one at the end of each epoch. It has of each table

    - since training began: `num_lookups`, `num_row_updates`, those of them deferred and skipped;
    - since the reading before: `deferred_lookups_share`, `skipped_lookups_share`,
      `deferred_row_updates_share`, `skipped_row_updates_share`, and about how many sleeps ended
      (an estimate), `wakes_schedule`, `wakes_batches` (held as many batches as the sleep was for),
      `wakes_max_age`, `wakes_refresh`, `wakes_learning_rate` and `wakes_asked` (`wake_all`, a
      `SkipGuard`);
    - now: `rows_asleep`, `rows_popular`, `threshold`, `strictness`, `refused_steps`,
      `cache_hit_rate` on parameter servers; and of 1,024 popular rows, evenly spread: `age` (steps
      since the last update of a row that sleeps), `held_norm` (the l2 norm of what is held of a
      row) and `drift`, in the policy's metric. Of these `TensorBoard` has histograms.

    On parameter servers `held_norm` is of what servers hold, not of what workers do. Under
    `MultiWorkerMirroredStrategy` every process has an endpoint and alarms, and the chief writes
    `log_dir`. In a loop of your own call `record`.

    Args:
        log_dir: Folder for TensorBoard; None: none. Its tags are `slipstream/TABLE/NAME`.
        every: Batches between two readings, at least 1.
        prometheus_port: Port of an HTTP endpoint for Prometheus, 0 for any that is free, or a pair
            of address and port; None: none. It serves `/metrics`, without a password, from when
            training begins until `close()` or the end of the process. Needs
            `tf_slipstream[monitor]`.
        alarms: `"default"`: a log line at the limits of `Alarm`; `"raise"` or a function: the same
            limits with that action; a dict from what is watched (`"age"`, `"share"`, `"drift"`,
            `"loss"`, `"refused"`) to its limit; a list of `Alarm`s; or None.

    Attributes:
        latest: Dict from a table's name to the numbers of its last reading, a dict.
        events: List of `AlarmEvent`s so far.
        port: Of the endpoint; None where there is none.

    Raises:
        ImportError: For `prometheus_port` without prometheus_client.
        ValueError: For a value outside its range; and when training begins, if no
            `SlipstreamOptimizer` trains the model's tables.
        AlarmError: By an alarm whose action is `"raise"`.

    Example:

    ```python
    monitor = slipstream.SlipstreamMonitor(log_dir="logs", prometheus_port=9100)
    model.fit(dataset, callbacks=[monitor])
    ```
    """

    def __init__(self, log_dir=None, every=100, prometheus_port=None, alarms="default"):
        super().__init__()
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"`every` must be an integer of at least 1, got {every!r}.")
        self.every = every
        self.latest = {}
        self._alarms = AlarmState(as_alarms(alarms))
        self._files = None if log_dir is None else EventFiles(log_dir)
        self._address = _address(prometheus_port)
        if self._address is not None:
            Families()  # Says at once that a package is missing.
        self._endpoint = None
        self._readings, self._wakes = {}, {}
        self._loss = None
        self._losses = BatchLosses(_LOSS_INTERVAL)
        limit = self._alarms.limit_of("loss")
        self._watch = None if limit is None else LossWatch(limit)
        self._num_seen = 0  # batches of this epoch
        self._num_due = every  # batches until the next reading
        # tf_keras then does not copy the logs of each batch to the host.
        self._supports_tf_logs = True

    @property
    def events(self):
        return self._alarms.events

    @property
    def port(self):
        return None if self._endpoint is None else self._endpoint.port

    def on_train_begin(self, logs=None):
        tables_of(self.model, _USER)
        self._open()

    def on_epoch_begin(self, epoch, logs=None):
        self._num_seen = 0
        self._losses.begin_epoch()

    def on_train_batch_end(self, batch, logs=None):
        reading = self._losses.take(_compat.num_batches_done(self, batch), logs, self.model)
        if reading is not None:
            self._take_loss(reading)
        # With `steps_per_execution` several batches end at once.
        num_seen = _compat.num_batches_done(self, batch)
        self._num_due -= num_seen - self._num_seen
        self._num_seen = num_seen
        if self._num_due <= 0:
            self._num_due = self.every
            self.record()

    def on_epoch_end(self, epoch, logs=None):
        self._losses.end_epoch()
        self.record(loss=(logs or {}).get("loss") if self._loss is None else None)

    def on_train_end(self, logs=None):
        if self._files is not None:
            self._files.close()

    def record(self, model=None, loss=None):
        """Takes a reading now, as training does every `every` batches.

        Args:
            model: Model or optimizer; None: the model that `fit` trains.
            loss: The training loss to show, and to watch; None: the last known.

        Raises:
            AlarmError: By an alarm whose action is `"raise"`.
        """
        if loss is not None:
            self._take_loss(float(loss))
        trained = tables_of(self.model if model is None else model, _USER)
        self._open()
        found, seconds = {}, time.monotonic()
        for tables in trained:
            # This model's own optimizer comes first, others that train a table of it later.
            for name, reading in read_tables(tables, seconds, _MAX_ROWS).items():
                found.setdefault(name, reading)
        if not found or self._is_old(found):
            return
        latest = {name: self._numbers(name, reading) for name, reading in found.items()}
        self._readings, self.latest = found, latest
        step = max(reading.step for reading in found.values())
        if self._files is not None and any(tables.writes_summaries for tables in trained):
            self._files.write(step, *self._summaries(found))
        try:
            self._alarms.update(step, self._watched(found))
        finally:
            if self._endpoint is not None:
                self._endpoint.publish(self._families(step, found))

    def close(self):
        """Closes the endpoint and the event files. Training may go on; both then open anew."""
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None
        if self._files is not None:
            self._files.close()

    def _open(self):
        if self._address is not None and self._endpoint is None:
            self._endpoint = PrometheusEndpoint(self._address[1], self._address[0])

    def _is_old(self, found):
        return self._readings.keys() == found.keys() and all(
            self._readings[name].step == reading.step for name, reading in found.items()
        )

    def _take_loss(self, loss):
        self._loss = loss
        if self._watch is None:
            return
        risen = self._watch.has_risen(loss)
        value = 0.0
        if not math.isfinite(loss):
            value = math.inf
        elif risen is not None:
            fast, slow = risen
            value = (fast - slow) / abs(slow) if slow else math.inf
        step = max((reading.step for reading in self._readings.values()), default=0)
        self._alarms.update(step, {("loss", None): value})

    def _numbers(self, name, reading):
        """Returns the numbers of a table's reading, and adds up its wakes."""
        before = self._readings.get(name)
        stats, old = reading.stats, None if before is None else before.stats
        if old is not None and old.num_lookups > stats.num_lookups:
            before = old = None  # a new optimizer, or a restored one
        numbers = {
            "step": reading.step,
            "num_lookups": stats.num_lookups,
            "num_row_updates": stats.num_row_updates,
            "rows": stats.num_rows,
            "rows_asleep": stats.num_stale_rows,
            "threshold": stats.drift_threshold,
            "strictness": reading.strictness,
            "refused_steps": reading.num_refused_steps,
        }
        for kind in ("deferred", "skipped"):
            for what in ("lookups", "row_updates"):
                field = f"num_{kind}_{what}"
                numbers[field] = getattr(stats, field)
                numbers[f"{kind}_{what}_share"] = _share(stats, old, field, f"num_{what}")
        if before is not None and reading.seconds > before.seconds:
            numbers["steps_per_second"] = (reading.step - before.step) / (
                reading.seconds - before.seconds
            )
        if reading.cache_hit_rate is not None:
            numbers["cache_hit_rate"] = reading.cache_hit_rate
        wakes = self._wakes.setdefault(name, dict.fromkeys(WAKE_CAUSES, 0.0))
        ended = dict.fromkeys(WAKE_CAUSES, 0.0)
        if before is not None:
            ended = wakes_between(before, reading)
        for cause, num in ended.items():
            wakes[cause] += num
            numbers[f"wakes_{cause}"] = num
        popular = reading.popular
        if popular is not None:
            numbers["rows_popular"] = popular.num_popular
            ages = popular.ages[popular.is_asleep]
            held = popular.held_norms[popular.held_norms > 0]
            drifts = popular.drifts[popular.is_drift_asleep]
            for what, values in (("age", ages), ("held_norm", held), ("drift", drifts)):
                is_empty = not len(values)
                numbers[f"{what}_median"] = 0.0 if is_empty else float(np.median(values))
                numbers[f"{what}_max"] = 0.0 if is_empty else float(np.max(values))
        return numbers

    def _watched(self, found):
        values = {}
        for name, reading in found.items():
            numbers = self.latest[name]
            values["refused", name] = numbers["refused_steps"]
            if reading.popular is None:
                continue
            values["age", name] = numbers["age_max"]
            values["share", name] = (
                numbers["deferred_lookups_share"] + numbers["skipped_lookups_share"]
            )
            threshold = numbers["threshold"]
            # A few rows tell nothing.
            is_told = reading.popular.is_drift_asleep.sum() >= 16 and threshold > 0
            values["drift", name] = numbers["drift_median"] / threshold if is_told else 0.0
        return values

    def _summaries(self, found):
        scalars, histograms = {}, {}
        if self._loss is not None:
            scalars["slipstream/loss"] = self._loss
        for name, reading in found.items():
            for what, value in self.latest[name].items():
                if what != "step":
                    scalars[f"slipstream/{name}/{what}"] = value
            popular = reading.popular
            if popular is not None:
                place = f"slipstream/{name}/"
                histograms[place + "age"] = popular.ages[popular.is_asleep]
                histograms[place + "sleep"] = popular.sleeps[popular.is_asleep]
                histograms[place + "held_norm"] = popular.held_norms[popular.held_norms > 0]
                histograms[place + "drift"] = popular.drifts
        return scalars, histograms

    def _families(self, step, found):
        families = Families()
        families.gauge("slipstream_step", "Training steps so far.", step)
        if self._loss is not None:
            families.gauge("slipstream_loss", "Training loss, of some batches.", self._loss)
        for name, reading in found.items():
            numbers = self.latest[name]
            for what, (kind, metric, help_text, labels) in _METRICS.items():
                if what in numbers:
                    add = families.counter if kind == "counter" else families.gauge
                    add(metric, help_text, numbers[what], table=name, **labels)
            for cause, num in self._wakes[name].items():
                help_text = "About how many sleeps have ended: estimated, no step counts them."
                families.counter("slipstream_wakes", help_text, num, table=name, cause=cause)
            popular = reading.popular
            if popular is not None:
                families.histogram(
                    "slipstream_sleep_age_steps",
                    "Steps since the last update, of up to 1,024 popular rows that sleep.",
                    popular.ages[popular.is_asleep],
                    table=name,
                )
        for (watch, table), is_on in self._alarms.active.items():
            help_text = "1 while a limit is passed."
            families.gauge("slipstream_alarm", help_text, is_on, alarm=watch, table=table or "")
        return families


def _kinds(what, text):
    """Yields the counters of a count, of all and of those that were not applied at once."""
    yield f"num_{what}", ("counter", f"slipstream_{what}", text, {"kind": "all"})
    for kind in ("deferred", "skipped"):
        yield f"num_{kind}_{what}", ("counter", f"slipstream_{what}", text, {"kind": kind})


# What Prometheus gets of a table's numbers: kind, name, help and labels beside the table's name.
_METRICS = {
    **dict(_kinds("lookups", "Ids looked up in training steps; deferred and skipped are part.")),
    **dict(_kinds("row_updates", "Distinct rows of batches; deferred and skipped are part.")),
    "rows": ("gauge", "slipstream_rows", "Rows of the table.", {}),
    "rows_asleep": ("gauge", "slipstream_rows_asleep", "Rows that sleep.", {}),
    "rows_popular": ("gauge", "slipstream_rows_popular", "Rows that may sleep.", {}),
    "threshold": ("gauge", "slipstream_threshold", "Drift below which a row is at rest.", {}),
    "strictness": ("gauge", "slipstream_strictness", "What multiplies limits; 1 at first.", {}),
    "refused_steps": ("gauge", "slipstream_refused_steps", "Steps refused and not yet told.", {}),
    "cache_hit_rate": ("gauge", "slipstream_cache_hit_rate", "Share of rows workers had.", {}),
    "steps_per_second": ("gauge", "slipstream_steps_per_second", "Since the last reading.", {}),
    **{
        f"{what}_{stat}": ("gauge", f"slipstream_{what}", text, {"stat": stat})
        for what, text in (
            ("age", "Steps since the last update of rows that sleep."),
            ("held_norm", "L2 norm of what is held of a row."),
            ("drift", "Drift of rows that sleep, in the policy's metric."),
        )
        for stat in ("median", "max")
    },
}


def _share(stats, old, field, of):
    """Returns the share of a count since an older one."""
    part, whole = getattr(stats, field), getattr(stats, of)
    if old is not None:
        part, whole = part - getattr(old, field), whole - getattr(old, of)
    return part / whole if whole > 0 else 0.0


def _address(prometheus_port):
    """Returns an endpoint's address and port, or None.

    Raises:
        ValueError: For what is no port.
    """
    if prometheus_port is None:
        return None
    address, port = "0.0.0.0", prometheus_port
    if isinstance(prometheus_port, (tuple, list)) and len(prometheus_port) == 2:
        address, port = prometheus_port
    is_port = isinstance(port, int) and not isinstance(port, bool) and 0 <= port < 65536
    if not is_port or not isinstance(address, str):
        raise ValueError(
            "`prometheus_port` must be an integer in [0, 65535], or a pair of an address and such "
            f"an integer; got {prometheus_port!r}."
        )
    return address, port
