"""Scalars and histograms in the files that TensorBoard reads.

TensorFlow writes the files, all values of a step at once. `tf.summary.scalar` would need the
package tensorboard, which only those need who look at them.
"""

import warnings

import numpy as np
import tensorflow as tf

_NUM_BUCKETS = 30


class EventFiles:
    """Writes a folder of event files.

    A folder that cannot be written to, a full disk for one, ends the writing with a warning, not
    the training.

    Args:
        log_dir: Path of the folder, which is made.
    """

    def __init__(self, log_dir):
        self._log_dir = str(log_dir)
        self._writer, self._has_failed = None, False

    def write(self, step, scalars, histograms):
        """Writes values of one step.

        Args:
            step: Integer.
            scalars: Dict from a tag to a number.
            histograms: Dict from a tag to a float array `[num_values]`; empty ones are left out.
        """
        if self._has_failed:
            return
        try:
            if self._writer is None:
                self._writer = tf.summary.create_file_writer(
                    self._log_dir, filename_suffix=".slipstream"
                )
            summary = _summary(scalars, histograms).SerializeToString()
            # One op, where one for each value takes a hundred times as long.
            with self._writer.as_default(), tf.device("cpu:0"):
                tf.summary.experimental.write_raw_pb(summary, step=int(step))
            self._writer.flush()
        except (tf.errors.OpError, OSError) as error:
            self._has_failed = True
            warnings.warn(
                f"SlipstreamMonitor cannot write to log_dir {self._log_dir!r}, and writes there no "
                f"more; training goes on. Free the disk, or give another folder. ({error})",
                RuntimeWarning,
                stacklevel=2,
            )

    def close(self):
        if self._writer is not None and not self._has_failed:
            self._writer.close()
            self._writer = None


def _summary(scalars, histograms):
    summary = tf.compat.v1.Summary()
    for tag, value in scalars.items():
        summary.value.add(tag=tag, simple_value=value)
    for tag, values in histograms.items():
        values = np.asarray(values, np.float64)
        values = values[np.isfinite(values)]
        if len(values):
            summary.value.add(tag=tag, histo=_histogram(values))
    return summary


def _histogram(values):
    counts, edges = np.histogram(values, _NUM_BUCKETS)
    return tf.compat.v1.HistogramProto(
        min=values.min(),
        max=values.max(),
        num=len(values),
        sum=values.sum(),
        sum_squares=(values**2).sum(),
        bucket_limit=edges[1:],
        bucket=counts,
    )
