"""Checks SkipGuard with what else takes part in `fit`."""

import numpy as np
import pytest

from tests.callbacks.models import IDS, LABELS, keras, sleepy_model
from tests.callbacks.test_skip_guard import Planted, actions
from tf_slipstream.callbacks import SkipGuard, SkipHistory


def loss_scaling(optimizer):
    scaling = getattr(keras.mixed_precision, "LossScaleOptimizer", None)
    return (scaling or keras.optimizers.LossScaleOptimizer)(optimizer)


def test_callbacks_find_the_optimizer_within_a_loss_scaling_one():
    model = sleepy_model()
    optimizer = model.optimizer
    model.compile(loss_scaling(optimizer), loss="binary_crossentropy")
    guard, history = SkipGuard(loss_tolerance=None), SkipHistory()
    callbacks = [Planted("val_auc", [0.9, 0.5]), history, guard]
    model.fit(IDS, LABELS, batch_size=16, epochs=2, verbose=0, callbacks=callbacks)
    assert actions(guard) == ["keep", "tighten"] and optimizer.strictness == 0.5
    assert history.history["user"][-1]["step"] == 32


class Fails(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise InterruptedError


def test_strictness_outlasts_a_crash_with_backup_and_restore(tmp_path):
    def fit(values, *others):
        model, guard = sleepy_model(), SkipGuard(loss_tolerance=None)
        backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
        callbacks = [guard, backup, Planted("val_auc", values), *others]
        callbacks.sort(key=lambda callback: not isinstance(callback, Planted))
        model.fit(IDS, LABELS, batch_size=16, epochs=3, verbose=0, callbacks=callbacks)
        return guard

    with pytest.raises(InterruptedError):
        fit([0.9, 0.5, None], Fails())
    guard = fit([None, None, 0.9])
    # 0.5 from the second epoch; the third is the first that this guard sees.
    assert [decision["epoch"] for decision in guard.history] == [2]
    assert guard.history[0]["strictness"] == 0.625


def test_the_best_outlasts_a_fit():
    model, guard = sleepy_model(), SkipGuard(loss_tolerance=None)
    for value in (0.9, 0.5):
        callbacks = [Planted("val_auc", [value]), guard]
        model.fit(IDS, LABELS, batch_size=16, verbose=0, callbacks=callbacks)
    assert actions(guard) == ["keep", "tighten"]


@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_a_loss_that_only_fluctuates_changes_nothing(steps_per_execution):
    model = sleepy_model()
    model.compile(
        model.optimizer, loss="binary_crossentropy", steps_per_execution=steps_per_execution
    )
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(10, size=[4000, 2]), rng.integers(2, size=4000).astype("float32")
    guard, history = SkipGuard(monitor=None, loss_interval=4), SkipHistory(every=60)
    model.fit(ids, labels, batch_size=16, epochs=2, verbose=0, callbacks=[guard, history])
    assert actions(guard) == ["keep", "keep"]
    assert [record["step"] for record in history.history["user"]][:3] == [60, 120, 180]


@pytest.mark.parametrize(
    ("monitor", "metric", "mode"),
    [
        ("val_auc", "AUC", "max"),
        ("val_mean_squared_error", "MeanSquaredError", "min"),
        ("val_precision", "Precision", "max"),
        ("loss", None, "min"),
    ],
)
def test_the_direction_is_the_metrics(monitor, metric, mode):
    # Named, for Keras counts up the names of a process: the second AUC is "auc_1".
    metrics = [getattr(keras.metrics, metric)(name=monitor[4:])] if metric else []
    model, guard = sleepy_model(metrics), SkipGuard(monitor, loss_tolerance=None)
    data = (IDS, LABELS)
    model.fit(*data, validation_data=data, batch_size=64, verbose=0, callbacks=[guard])
    assert guard.mode == mode and guard.best == guard.history[0]["value"]
