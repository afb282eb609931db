"""What the examples need to run and no model needs: arguments, progress, a table of results."""

import argparse
import contextlib
import math
import os
import pathlib
import sys
import tempfile
import time

import numpy as np


@contextlib.contextmanager
def quiet_start():
    """Keeps off the terminal what TensorFlow's C++ says while it starts, unless the start fails.

    It says so before it reads TF_CPP_MIN_LOG_LEVEL, so that only its file descriptor can be turned.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(terminal, said.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


# Scripts import this module before TensorFlow.
with quiet_start():
    import tensorflow as tf

    import tf_slipstream  # noqa: F401

    tf.config.list_physical_devices()

# The first steps trace and compile.
_NUM_WARM_UP = 5


def parser_of(script_docstring):
    """Returns an argument parser whose help is the script's docstring."""
    return argparse.ArgumentParser(
        description=script_docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def count(text):
    """Type of arguments that are whole numbers above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def rate(text):
    """Type of arguments that are numbers above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def new_folder(text):
    """Type of arguments that name a folder to write in: it is made, or is there and empty."""
    folder = pathlib.Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot make the folder: {error}") from error
    if not is_empty:
        raise argparse.ArgumentTypeError(f"{text} has files; name a new folder")
    return folder


class Progress(tf.keras.callbacks.Callback):
    """Shows on stderr how far training is, and keeps the time of every step.

    Args:
        name: What is trained.
        num_steps: Integer, of all epochs together.
    """

    def __init__(self, name, num_steps):
        super().__init__()
        self.name, self.num_steps = name, num_steps
        self.seconds = []
        self._shown = 0.0

    @property
    def ms_per_step(self):
        """Median over all steps but the first ones."""
        return 1e3 * float(np.median(self.seconds[_NUM_WARM_UP:] or self.seconds))

    def on_train_batch_begin(self, batch, logs=None):
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        self.seconds.append(now - self._start)
        if sys.stderr.isatty() and now - self._shown > 0.2:
            self._shown = now
            self._show("\r")

    def on_train_end(self, logs=None):
        self._show("\r" if sys.stderr.isatty() else "")
        print(file=sys.stderr)

    def _show(self, start):
        text = f"{self.name}: {len(self.seconds):,} of {self.num_steps:,} steps"
        text += f", {sum(self.seconds):.0f} s"
        print(f"{start}{text}", end="", file=sys.stderr, flush=True)


def print_table(titles, rows):
    """Prints rows of texts below their titles; the first column is aligned to the left."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    print()
    for row in (titles, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())


def area_under_curve(labels, scores):
    """Returns the exact AUC: the share of (click, no click) pairs in the right order, ties half.

    It is NaN where all or none were clicked.
    """
    order = np.argsort(scores, kind="stable")
    _, first, counts = np.unique(scores[order], return_index=True, return_counts=True)
    ranks = np.repeat(first + (counts + 1) / 2, counts)
    clicks = labels[order] > 0.5
    num_clicks = int(clicks.sum())
    if num_clicks in (0, len(labels)):
        return math.nan
    above = ranks[clicks].sum() - num_clicks * (num_clicks + 1) / 2
    return above / (num_clicks * (len(labels) - num_clicks))
