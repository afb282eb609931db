"""The mean loss of every few batches, from the logs that a callback gets."""

import math

import tensorflow as tf

from tf_slipstream import _compat


class BatchLosses:
    """Turns the logged loss into readings: means over so many batches, across epochs.

    Keras logs the mean since the epoch began; some models of their own log each batch's loss. Which
    of them it is shows from the model's metric of that name.

    Args:
        interval: Batches of a reading, at least 1.

    Attributes:
        interval: The same.
    """

    def __init__(self, interval):
        self.interval = interval
        self._sum, self._num = 0.0, 0  # of batches that are in no reading yet
        self.begin_epoch()

    def begin_epoch(self):
        self._is_running_mean = None  # not known yet
        self._taken = self._latest = (0, 0.0)  # batches of this epoch, and their mean

    def take(self, num_batches, logs, model):
        """Takes what `on_train_batch_end` gets, after so many batches of the epoch.

        Returns:
            A reading, or None: there is none yet.
        """
        if not logs:
            return None
        if isinstance(logs, tf.distribute.experimental.coordinator.RemoteValue):
            # On parameter servers. To fetch it is to wait for the step.
            if num_batches % self.interval:
                return None
            logs = logs.fetch()
        loss = logs.get("loss")
        return None if loss is None else self.add(num_batches, loss, model)

    def add(self, num_batches, loss, model):
        """Takes the loss logged after `num_batches` batches of the epoch.

        Returns:
            A reading, or None: there is none yet.
        """
        if self._is_running_mean is None and num_batches > 1:
            self._is_running_mean = _is_running_mean(loss, model)
            if not self._is_running_mean:
                self._take_latest()  # the first batch's loss is its mean as well
        if self._is_running_mean is False:
            self._num += num_batches - self._latest[0]
            self._sum += (num_batches - self._latest[0]) * float(loss)
            self._latest = (num_batches, loss)
            return self._reading()
        self._latest = (num_batches, loss)
        if self._num + num_batches - self._taken[0] < self.interval:
            return None
        self._take_latest()
        return self._reading()

    def end_epoch(self):
        """Keeps what the epoch's last batches lost for the next reading."""
        if self._is_running_mean is not False:
            self._take_latest()

    def _take_latest(self):
        (before, mean_before), (num, mean) = self._taken, self._latest
        self._num += num - before
        self._sum += num * float(mean) - before * float(mean_before)
        self._taken = self._latest

    def _reading(self):
        if self._num < self.interval:
            return None
        reading = self._sum / self._num
        self._sum, self._num = 0.0, 0
        return reading


def _is_running_mean(loss, model):
    # Keras's own step logs its metrics; on parameter servers these go on meanwhile.
    if getattr(type(model), "train_step", None) is _compat.keras.Model.train_step:
        return True
    means = [metric.result() for metric in model.metrics if metric.name == "loss"]
    return any(math.isclose(float(mean), float(loss), rel_tol=1e-5) for mean in means)
