"""Training on chosen inputs, with the product's parts in the bench's own loop."""

import tensorflow as tf

import tf_slipstream as slipstream
from quality.controls import StaleInputs
from tf_slipstream.selection import batches


class Chooser:
    """Chooses inputs of batches and calls `step` for each full batch of them.

    What is left at the end of the log is not trained on, as with the other configurations.

    Args:
        configuration: `Configuration` with `keep`.
        data_set: `DataSet`.
        seed: Of what is drawn.
        step: `step(ids, dense, labels, offsets, log_odds)` trains on a batch; the last is None
            without a pilot in the model.
    """

    def __init__(self, configuration, data_set, seed, step):
        dims = [t.num_rows for t in data_set.tables for _ in range(t.num_columns)]
        num_dense = data_set.test.dense.shape[1]
        dense = {"dense": lambda inputs: inputs[1], "num_dense": num_dense} if num_dense else {}
        self.pilot = slipstream.Pilot(dims, ids=lambda inputs: inputs[0], **dense)
        if configuration.method == "stale_inputs":
            self.selector = StaleInputs(dims, configuration.keep)
        else:
            self.selector = slipstream.InputSelector(
                self.pilot,
                configuration.keep,
                configuration.method,
                seed=seed,
                uses_log_odds=configuration.wide,
            )
        self._is_wide, self._step, self._waiting = configuration.wide, step, None

    def read(self, ids, dense, labels):
        """Reads a batch, and trains if there are enough for one."""
        size = labels.shape[0]
        chosen = self.selector.select((ids, dense), labels)
        kept = batches.take((ids, dense, labels), chosen.positions)
        kept = (*kept, chosen.offsets, chosen.log_odds)
        if self._waiting is None:
            self._waiting = batches.Waiting(kept)
        waiting = batches.join(self._waiting.read(), kept)
        num = tf.shape(waiting[0])[0]
        taken = tf.where(num >= size, size, 0)
        self._waiting.write(batches.take(waiting, tf.range(taken, num)))

        def train():
            batch = batches.with_size(batches.take(waiting, tf.range(size)), size)
            return self._train(batch)

        return tf.cond(num >= size, train, lambda: 0.0)

    def _train(self, batch):
        ids, dense, labels, offsets, log_odds = batch
        return self._step(ids, dense, labels, offsets, log_odds if self._is_wide else None)

    def log_odds(self, ids, dense):
        """Returns what the pilot adds to logits when the model is used; None where nothing."""
        return self.pilot.call((ids, dense)) if self._is_wide else None
