"""Checks that SkipGuard acts when the model gets worse, and only then."""

import numpy as np
import pytest
import tensorflow as tf

from tests.callbacks.models import IDS, LABELS, keras, sleepy_model
from tf_slipstream.callbacks import SkipGuard
from tf_slipstream.callbacks.loss_watch import LossWatch


class Planted(keras.callbacks.Callback):
    """Puts values of a metric in the logs, one per epoch; before the guard in the list."""

    def __init__(self, name, values):
        super().__init__()
        self.name, self.values = name, values

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.values[epoch]


def fit(guard, *before, epochs=1, model=None):
    model = sleepy_model() if model is None else model
    callbacks = [*before, guard]
    model.fit(IDS, LABELS, batch_size=16, epochs=epochs, verbose=0, callbacks=callbacks)
    return model


def fit_values(values, name="val_auc", **options):
    guard = SkipGuard(monitor=name, loss_tolerance=None, **options)
    fit(guard, Planted(name, values), epochs=len(values))
    return guard


def actions(guard):
    return [decision["action"] for decision in guard.history]


def strictness(guard):
    return [round(decision["strictness"], 4) for decision in guard.history]


@pytest.mark.parametrize("name, sign", [("val_auc", 1), ("val_loss", -1)])
def test_a_metric_that_falls_behind_its_best_tightens(name, sign):
    values = [0.7, 0.75, 0.7495, 0.74, 0.76, 0.76, 0.76]
    guard = fit_values([sign * value for value in values], name)
    assert actions(guard) == ["keep", "keep", "keep", "tighten", "loosen", "loosen", "loosen"]
    assert strictness(guard) == [1, 1, 1, 0.5, 0.625, 0.7812, 0.9766]
    assert guard.best == sign * 0.76
    fall = guard.history[3]
    assert fall["reason"] == "metric" and fall["reference"] == sign * 0.75
    assert fall["value"] == sign * 0.74 and fall["epoch"] == 3


def test_it_wakes_every_row_and_lasts_in_the_optimizer():
    guard = SkipGuard(monitor="val_auc", loss_tolerance=None)
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            stats = self.model.optimizer.skip_stats()["user"]
            seen.append((stats.num_stale_rows, stats.drift_threshold))

    model = sleepy_model()
    callbacks = [Planted("val_auc", [0.7, 0.5]), Look(), guard, Look()]
    model.fit(IDS, LABELS, batch_size=16, epochs=2, verbose=0, callbacks=callbacks)
    assert [asleep > 0 for asleep, _ in seen] == [True, True, True, False]
    assert seen[2][1] == 2 * seen[3][1]
    assert model.optimizer.strictness == 0.5


def test_strictness_has_a_floor():
    guard = fit_values([0.9, *[0.5] * 6], min_strictness=0.2)
    assert strictness(guard) == [1, 0.5, 0.25, 0.2, 0.2, 0.2, 0.2]


def test_patience_waits():
    guard = fit_values([0.9, 0.5, 0.5, 0.5, 0.5], patience=2)
    assert actions(guard) == ["keep", "keep", "tighten", "keep", "tighten"]


def test_a_metric_that_is_not_finite_tightens():
    assert actions(fit_values([0.9, float("nan")])) == ["keep", "tighten"]


def test_a_missing_metric_is_a_warning_that_lists_what_there_is():
    with pytest.warns(UserWarning, match="val_auc.*not available.*loss"):
        fit(SkipGuard(monitor="val_auc"))


def test_a_direction_that_is_not_known_is_an_error():
    with pytest.raises(ValueError, match="mode='max'"):
        fit_values([0.1], "val_something")
    assert actions(fit_values([2.0, 1.0], "val_something", mode="max")) == ["keep", "tighten"]


def test_another_optimizer_is_an_error():
    model = sleepy_model()
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match="SkipGuard needs .* SlipstreamOptimizer"):
        fit(SkipGuard(), model=model)


def test_it_says_what_it_does(capsys):
    fit_values([0.9, 0.5], verbose=1)
    assert "val_auc 0.5 is more than 0.001 behind its best, 0.9" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option, value",
    [
        ("mode", "up"),
        ("tolerance", -1),
        ("loss_tolerance", "x"),
        ("tighten", 1.0),
        ("loosen", 1.0),
        ("min_strictness", 0.0),
        ("patience", 0),
        ("loss_interval", 0),
    ],
)
def test_a_value_outside_its_range_is_named(option, value):
    with pytest.raises(ValueError, match=f"`{option}` must be"):
        SkipGuard(**{option: value})


def test_a_real_metric_of_fit():
    guard = SkipGuard(monitor="val_binary_accuracy")
    model = sleepy_model(metrics=["binary_accuracy"])
    data = (IDS, LABELS)
    model.fit(*data, validation_data=data, epochs=2, verbose=0, callbacks=[guard])
    assert guard.best is not None and len(guard.history) == 2


def test_a_loss_that_rises_is_told_from_noise():
    random = np.random.default_rng(0)
    watch = LossWatch(0.05)
    quiet = 0.5 + 0.01 * random.normal(size=500) - 1e-4 * np.arange(500)
    assert not any(watch.has_risen(loss) for loss in quiet)
    risen = [watch.has_risen(loss) for loss in 0.6 + 0.01 * random.normal(size=20)]
    assert sum(one is not None for one in risen) == 1
    assert watch.has_risen(float("nan")) is None


class Remote(tf.distribute.experimental.coordinator.RemoteValue):
    """What tf_keras's `fit` on parameter servers gives callbacks as the logs of a batch."""

    num_fetched = 0

    def __init__(self, logs):
        self._logs = logs

    def fetch(self):
        Remote.num_fetched += 1
        return self._logs


def test_losses_that_workers_have_are_fetched_once_a_reading():
    class Sending(SkipGuard):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, Remote(dict(logs)))

    labels = np.tile(np.zeros(256, np.float32), 8)
    labels[1500:] = 1.0
    ids = np.tile(IDS, [8, 1])
    guards = []
    for kind in (SkipGuard, Sending):
        guards.append(kind(monitor=None, loss_interval=2))
        model = sleepy_model()
        model.layers[-1].kernel.assign(np.full([8, 1], 0.5, np.float32))
        model.layers[0].set_weights([np.full([10, 4], 0.5, np.float32)])
        data = {"batch_size": 16, "shuffle": False, "verbose": 0}
        model.fit(ids, labels, callbacks=guards[-1:], **data)
    assert guards[0].history == guards[1].history and "tighten" in actions(guards[1])
    assert Remote.num_fetched == 2048 // 16 // 2


def test_a_training_loss_that_rises_tightens_within_the_epoch():
    guard = SkipGuard(monitor=None, loss_interval=1)
    model = sleepy_model()
    labels = np.tile(np.zeros(256, np.float32), 8)
    labels[1500:] = 1.0  # all that was learnt is wrong now
    ids = np.tile(IDS, [8, 1])
    model.fit(ids, labels, batch_size=16, shuffle=False, verbose=0, callbacks=[guard])
    assert "tighten" in actions(guard)
    assert guard.history[0]["reason"] == "loss" and guard.history[0]["step"] > 1500 // 16
