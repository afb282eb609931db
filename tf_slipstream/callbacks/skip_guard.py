"""A callback that has fewer rows sleep while the model gets worse."""

import math
import re
import warnings

from tf_slipstream import _compat
from tf_slipstream.callbacks.batch_losses import BatchLosses
from tf_slipstream.callbacks.loss_watch import LossWatch
from tf_slipstream.model_tables import tables_of

MODES = ("auto", "min", "max")

# Words in the names of metrics that do not say themselves which way is better: those of tf_keras,
# and the users' own.
_UP = {*"acc accuracy auc f1 hit hits map mrr ndcg precision r2 recall".split()}
_DOWN = {*"crossentropy divergence error hinge logloss loss mae mape mse msle rmse".split()}


class SkipGuard(_compat.keras.callbacks.Callback):
    """Wakes every row and tightens the policies when the model gets worse.

    It acts when

    - at the end of an epoch the monitored metric is behind its best by more than `tolerance`, or is
      not finite;
    - within an epoch the training loss has risen by more than `loss_tolerance` of itself, which
      `LossWatch` tells from noise: readings, each the mean of `loss_interval` batches, go into an
      average over the last 4 and one over the last 32.

    It then calls `optimizer.wake_all()` and multiplies `optimizer.strictness` by `tighten`, down to
    `min_strictness`. An epoch that ends with neither multiplies it by `loosen`, up to 1, which is
    what the policies say. Where an epoch is long, let `steps_per_epoch` make it shorter: the metric
    is seen no more often.

    On parameter servers tf_keras's `fit` sends steps ahead of what workers have done: the guard
    waits for the last one of each reading. `ParameterServerTrainer` logs no losses of batches, so
    that there the metric alone is watched.

    The guard does not know why a model gets worse. One that overfits falls behind its best as well,
    and is trained almost without skipping from then on: that costs time, no quality.

    Strictness is part of the optimizer's state, which `BackupAndRestore` and checkpoints keep. The
    best value and the averages are the callback's: they outlast a `fit`, but not the process.

    Args:
        monitor: The metric's name in the logs; None: the training loss alone.
        mode: `"min"`, `"max"`, or `"auto"`: as the metric says of itself, or by its name.
        tolerance: How far the metric may be behind its best, in its own unit; at least 0.
        loss_tolerance: Relative rise of the training loss that is none yet, at least 0; None: do
            not watch it.
        tighten: In (0, 1).
        loosen: Above 1.
        min_strictness: In (0, 1]; at 1/16 no row sleeps whose policy has a `max_sleep` below 32.
        patience: After so many epochs in a row with the metric behind, it acts; at least 1.
        loss_interval: Batches of a reading, at least 1. More where batches are small or their
            losses fluctuate.
        verbose: 1 prints what it does, 0 does not.

    Attributes:
        history: List of decisions, dicts: `epoch` and `step`; `action`, which is `"tighten"`,
            `"loosen"` or `"keep"`; `reason`, `"metric"` or `"loss"`; `value`, and `reference`,
            what it was compared with; `strictness` from then on.
        best: Best value of the metric so far, None before the first.

    Raises:
        ValueError: For a value outside its range; when training begins, if no `SlipstreamOptimizer`
            trains the model's tables; and at the first value of a metric whose direction is not
            known.

    Example:

    ```python
    guard = slipstream.SkipGuard(monitor="val_auc", verbose=1)
    model.fit(dataset, validation_data=held_out, epochs=5, callbacks=[guard])
    ```
    """

    def __init__(
        self,
        monitor="val_auc",
        mode="auto",
        tolerance=0.001,
        loss_tolerance=0.05,
        tighten=0.5,
        loosen=1.25,
        min_strictness=0.0625,
        patience=1,
        loss_interval=50,
        verbose=0,
    ):
        super().__init__()
        _check(mode in MODES, "mode", f"one of {MODES}", mode)
        _check(_is_number(tolerance, 0), "tolerance", "a number >= 0", tolerance)
        is_good = loss_tolerance is None or _is_number(loss_tolerance, 0)
        _check(is_good, "loss_tolerance", "a number >= 0 or None", loss_tolerance)
        _check(_is_number(tighten, 0) and 0 < tighten < 1, "tighten", "in (0, 1)", tighten)
        _check(_is_number(loosen, 1) and loosen > 1, "loosen", "above 1", loosen)
        is_good = _is_number(min_strictness, 0) and 0 < min_strictness <= 1
        _check(is_good, "min_strictness", "in (0, 1]", min_strictness)
        _check(_is_count(patience), "patience", "an integer >= 1", patience)
        _check(_is_count(loss_interval), "loss_interval", "an integer >= 1", loss_interval)
        self.monitor = monitor
        self.mode = mode
        self.tolerance = tolerance
        self.tighten = tighten
        self.loosen = loosen
        self.min_strictness = min_strictness
        self.patience = patience
        self.verbose = verbose
        self.history = []
        self.best = None
        self._num_behind = 0
        self._losses = BatchLosses(loss_interval)
        self._watch = None if loss_tolerance is None else LossWatch(loss_tolerance)
        # tf_keras then does not copy the logs of each batch to the host.
        self._supports_tf_logs = True

    def on_train_begin(self, logs=None):
        tables_of(self.model, "SkipGuard")

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._has_risen = False
        self._losses.begin_epoch()

    def on_train_batch_end(self, batch, logs=None):
        if self._watch is None:
            return
        reading = self._losses.take(_compat.num_batches_done(self, batch), logs, self.model)
        risen = None if reading is None else self._watch.has_risen(reading)
        if risen is not None:
            self._has_risen = True
            self._decide("tighten", "loss", *risen)

    def on_epoch_end(self, epoch, logs=None):
        self._losses.end_epoch()
        if self.monitor is None:
            self._decide("keep" if self._has_risen else "loosen", "loss", None, None)
            return
        value = (logs or {}).get(self.monitor)
        if value is None:
            warnings.warn(
                f"SkipGuard watches `{self.monitor}`, which is not available. Available are: "
                f"{', '.join(sorted(logs or {}))}. Give `fit` validation data, or SkipGuard "
                "another `monitor`; None: the training loss alone.",
                stacklevel=2,
            )
            return
        value, best = float(value), self.best
        behind = self._behind(value)
        if behind <= self.tolerance:
            self._num_behind = 0
            self._decide("keep" if self._has_risen else "loosen", "metric", value, best)
            return
        self._num_behind += 1
        is_time = self._num_behind >= self.patience
        self._num_behind %= self.patience
        self._decide("tighten" if is_time else "keep", "metric", value, best)

    def _behind(self, value):
        """Returns how far a value is behind the best, and notes a new best."""
        if self.mode == "auto":
            self.mode = _direction(self.monitor, self.model)
        if not math.isfinite(value):
            return math.inf
        sign = 1 if self.mode == "max" else -1
        if self.best is None or sign * (value - self.best) > 0:
            self.best = value
        return sign * (self.best - value)

    def _decide(self, action, reason, value, reference):
        trained = tables_of(self.model, "SkipGuard")
        before = strictness = min((tables.strictness for tables in trained), default=1.0)
        if action == "tighten":
            for tables in trained:
                tables.settle(wake=True)
            # A strictness that a user set below the floor is not raised to it.
            strictness = min(before, max(self.min_strictness, before * self.tighten))
        elif action == "loosen":
            strictness = min(1.0, before * self.loosen)
            action = "loosen" if strictness > before else "keep"
        if strictness != before:
            for tables in trained:
                tables.strictness = strictness
        self.history.append(
            {
                "epoch": self._epoch,
                "step": max((tables.num_steps for tables in trained), default=0),
                "action": action,
                "reason": reason,
                "value": value,
                "reference": reference,
                "strictness": strictness,
            }
        )
        if self.verbose and action != "keep":
            print(f"\nEpoch {self._epoch + 1}: SkipGuard: {self._message(before)}")

    def _message(self, before):
        made = self.history[-1]
        change = f"strictness {before:.4g} -> {made['strictness']:.4g}"
        if made["action"] == "loosen":
            return f"all is well; {change}."
        if made["reason"] == "loss":
            cause = f"training loss rose from {made['reference']:.5g} to {made['value']:.5g}"
        elif made["reference"] is None:
            cause = f"{self.monitor} is {made['value']:.5g}"
        else:
            cause = (
                f"{self.monitor} {made['value']:.5g} is more than {self.tolerance:g} behind its "
                f"best, {made['reference']:.5g}"
            )
        return f"{cause}; every row is awake, {change}."


def _direction(monitor, model):
    """Returns `"min"` or `"max"`, as Keras 3's metrics say it of themselves, or by the name."""
    name = monitor.removeprefix("val_")
    for metric in _leaves(model.metrics):
        direction = getattr(metric, "_direction", None)
        if metric.name == name and direction in ("up", "down"):
            return "max" if direction == "up" else "min"
    words = {*re.split(r"[^a-z0-9]+", name.lower())}
    if bool(words & _UP) != bool(words & _DOWN):
        return "max" if words & _UP else "min"
    raise ValueError(
        f"SkipGuard does not know whether a larger `{monitor}` is better. Give it `mode='max'` or "
        "`mode='min'`."
    )


def _leaves(metrics):
    """Yields metrics, those within Keras 3's compiled ones as well."""
    for metric in metrics:
        within = getattr(metric, "metrics", None)
        if within:
            yield from _leaves(within)
        else:
            yield metric


def _check(is_good, name, expected, value):
    if not is_good:
        raise ValueError(f"`{name}` must be {expected}, got {value!r}.")


def _is_number(value, least):
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= least


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
