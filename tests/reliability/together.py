"""Threads that train, read, save and publish at once: no update is lost.

Gradients are integers and the rate is 1, so that sums are exact in whatever order.
"""

import pathlib
import threading
import time

import numpy as np
import tensorflow as tf

from tests.models import embedding_of, sleepy
from tf_slipstream import SlipstreamOptimizer, export
from tf_slipstream._compat import keras

NUM_ROWS, DIM, SIZE = 40, 4, 16


class Fit:
    """A model whose `fit` runs in a thread, and what its table must be in the end.

    Args:
        seed: Of the examples.
        num_steps: How many there are.
    """

    def __init__(self, seed, num_steps):
        random = np.random.default_rng(seed)
        self.ids = (NUM_ROWS * random.random([num_steps * SIZE, 1]) ** 2).astype(np.int64)
        # The loss is a mean over SIZE examples of the sum of `DIM` elements times the label.
        self.labels = (SIZE * random.integers(-3, 4, [num_steps * SIZE, 1])).astype(np.float32)
        self.layer = embedding_of(np.zeros([NUM_ROWS, DIM], np.float32), name="user")
        ids = keras.Input([1], dtype="int64", name="ids")
        rows = keras.layers.Flatten()(self.layer(ids))
        dense = keras.layers.Dense(DIM, kernel_initializer="identity", name="dense")
        dense.trainable = False
        self.model = keras.Model(ids, dense(rows))
        optimizer = SlipstreamOptimizer(keras.optimizers.SGD(1.0), policy=sleepy(max_sleep=16))
        self.model.compile(optimizer, loss=_sum_times_label)
        self.tracker = None
        self.error = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            self.model.fit(self.ids, self.labels, batch_size=SIZE, verbose=0, shuffle=False)
        except BaseException as error:
            self.error = error

    @property
    def expected(self):
        sums = np.zeros([NUM_ROWS, DIM])
        np.subtract.at(sums, self.ids[:, 0], self.labels / SIZE)
        return sums


def _sum_times_label(labels, outputs):
    return tf.reduce_sum(outputs * labels, axis=-1)


def trial(seed, folder, num_steps=400):
    """Trains two models in two threads while a third uses them in every way.

    Returns:
        How many things the third did.
    """
    folder = pathlib.Path(folder, f"together-{seed}")
    folder.mkdir()
    fits = [Fit(10 * seed + n, num_steps) for n in range(2)]
    for fit in fits:
        fit.model.optimizer.build(fit.model.trainable_variables)
        fit.model.predict(fit.ids[:4], verbose=0)
    tracker = export.DeltaTracker(fits[0].model)
    export.save_version(fits[0].model, folder / "1")
    for fit in fits:
        fit.thread.start()
    random, number, version = np.random.default_rng(seed), 0, 1
    while any(fit.thread.is_alive() for fit in fits):
        for fit in fits:
            optimizer = fit.model.optimizer
            what = random.integers(0, 7)
            if what == 0:
                optimizer.skip_stats()
            elif what == 1:
                optimizer.wake_all()
            elif what == 2:
                optimizer.set_strictness(float(random.choice([0.25, 0.5, 1.0])))
            elif what == 3:
                optimizer.settle()
            elif what == 4:
                assert np.isfinite(fit.model.predict(fit.ids[:4], verbose=0)).all()
            elif what == 5:
                fit.model.save_weights(str(folder / "model.weights.h5"))
            elif fit is fits[0]:
                version += 1
                export.save_delta(fit.model, version - 1, folder / f"d{version}", version=version)
            number += 1
        time.sleep(0.002)
    del tracker
    for fit in fits:
        fit.thread.join()
        assert fit.error is None, fit.error
        fit.model.optimizer.wake_all()
        stats = fit.model.optimizer.skip_stats()["user"]
        assert stats.num_lookups == num_steps * SIZE, stats
        np.testing.assert_array_equal(fit.layer.get_weights()[0], fit.expected)
    return {"calls": number}
