"""Resident memory stays flat: over steps, models made and dropped, saves and retraces.

Only in the long form: what a process keeps resident for other reasons, in a short run, is more than
a leak. tests/test_memory.py tells in short that models are freed.
"""

import gc
import os
import pathlib

import numpy as np
import tensorflow as tf

from tests.models import click_data, click_model, embedding_of, random_table, sleepy
from tf_slipstream import SlipstreamOptimizer
from tf_slipstream._compat import keras

# Growth of the second half that is no leak: what allocators keep. The rest of the process is large.
_MOST_BYTES = 12 << 20


def resident():
    gc.collect()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _model():
    optimizer = SlipstreamOptimizer(keras.optimizers.Adam(0.01), policy=sleepy())
    return click_model(embedding_of(random_table(2000, 8), name="user"), optimizer)


def steps(number):
    model = _model()
    ids, labels = click_data(16, num_rows=2000)
    for _ in range(number):
        yield lambda: model.train_on_batch(ids, labels)


def models(number):
    def make():
        model = _model()
        model.train_on_batch(*click_data(16, num_rows=2000))
        keras.backend.clear_session()

    for _ in range(number):
        yield make


def saves(number, folder):
    model = _model()
    model.train_on_batch(*click_data(16, num_rows=2000))
    # Not a file of Keras's: those take 6 KiB more per variable each time, under stock Keras too.
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    path = str(pathlib.Path(folder, "checkpoint"))
    for _ in range(number):
        yield lambda: checkpoint.write(path)


def retraces(number):
    model = _model()
    gradient = tf.IndexedSlices(tf.ones([2, 8]), tf.constant([1, 2]), tf.constant([2000, 8]))
    table = model.layers[1].weights[0]
    model.optimizer.build(model.trainable_variables)

    def retrace():
        tf.function(lambda: model.optimizer.apply_gradients([(gradient, table)]))()

    for _ in range(number):
        yield retrace


def growth(actions, number):
    """Runs actions; returns the bytes by which the second half of them grew the process."""
    for count, action in enumerate(actions):
        if count == number // 2:
            before = resident()
        action()
    return resident() - before


NUMBERS = {"steps": 5000, "models": 60, "saves": 200, "retraces": 100}


def trial(seed, folder):
    """Measures one of the four, by turns."""
    name = list(NUMBERS)[seed % len(NUMBERS)]
    number = NUMBERS[name]
    actions = saves(number, folder) if name == "saves" else globals()[name](number)
    grown = growth(actions, number)
    assert grown < _MOST_BYTES, f"{number} {name}: {grown / 2**20:.1f} MiB in the second half"
    return {name: number, "grown_kib": int(np.ceil(grown / 1024))}
