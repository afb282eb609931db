"""Scalars and histograms in the files that TensorBoard reads.

TensorFlow writes the files; `tf.summary.scalar` needs the package tensorboard, which only those
need who look at them. The two kinds of data are those of TensorBoard's plugins of the same names.
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
            with self._writer.as_default(step=int(step)), tf.device("cpu:0"):
                for tag, value in scalars.items():
                    tf.summary.write(tag, np.float32(value), metadata=_metadata("scalars"))
                for tag, values in histograms.items():
                    if len(values):
                        tf.summary.write(tag, _buckets(values), metadata=_metadata("histograms"))
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


def _metadata(plugin):
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = plugin
    metadata.data_class = {"scalars": 1, "histograms": 2}[plugin]  # DATA_CLASS_SCALAR, _TENSOR
    return metadata


def _buckets(values):
    """Returns float64 `[num_buckets, 3]`: left edge, right edge, count."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return np.zeros([0, 3])
    low, high = values.min(), values.max()
    if low == high:
        return np.array([[low - 0.5, high + 0.5, len(values)]])
    counts, edges = np.histogram(values, _NUM_BUCKETS, (low, high))
    return np.stack([edges[:-1], edges[1:], counts.astype(np.float64)], axis=1)
