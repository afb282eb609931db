"""Checks that readings are the means of the batches' losses, however these are logged."""

import types

import numpy as np
import pytest

from tf_slipstream.callbacks.batch_losses import BatchLosses


class Mean:
    name = "loss"

    def result(self):
        return self.value


def readings_of(epochs, interval, num_at_once=1, has_metric=True, is_running_mean=True):
    """Feeds the batch losses of some epochs and returns the readings."""
    losses, metric, found = BatchLosses(interval), Mean(), []
    model = types.SimpleNamespace(metrics=[metric] if has_metric else [])
    for values in epochs:
        losses.begin_epoch()
        for num in range(num_at_once, len(values) + 1, num_at_once):
            metric.value = np.float32(np.mean(values[:num]))
            logged = metric.value if is_running_mean else np.float32(values[num - 1])
            found.append(losses.add(num, logged, model))
        losses.end_epoch()
    return [reading for reading in found if reading is not None]


VALUES = np.random.default_rng(0).uniform(0.2, 0.8, 60)


@pytest.mark.parametrize("num_at_once", [1, 2])
def test_a_running_mean_gives_the_means_of_its_batches(num_at_once):
    readings = readings_of([VALUES], 10, num_at_once)
    np.testing.assert_allclose(readings, VALUES.reshape(6, 10).mean(axis=1), rtol=1e-4)


def test_batches_at_the_end_of_an_epoch_go_into_the_next_reading():
    readings = readings_of([VALUES[:15], VALUES[15:18], VALUES[18:]], 10)
    np.testing.assert_allclose(readings, VALUES.reshape(6, 10).mean(axis=1), rtol=1e-4)


@pytest.mark.parametrize("has_metric", [True, False])
def test_losses_of_single_batches_are_taken_as_they_are(has_metric):
    readings = readings_of([VALUES], 10, has_metric=has_metric, is_running_mean=False)
    np.testing.assert_allclose(readings, VALUES.reshape(6, 10).mean(axis=1), rtol=1e-6)
