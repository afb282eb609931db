"""A callback that records what is skipped, for plots."""

import dataclasses

from tf_slipstream import _compat
from tf_slipstream.model_tables import tables_of


class SkipHistory(_compat.keras.callbacks.Callback):
    """Records each table's `SkipStats` while a model trains.

    A record is a dict: `step`, and the fields of `SkipStats`, counted since training began. There
    is one every `every` batches, and one at the end of each epoch. Those of a later `fit` follow.
    Put it before a `SkipGuard`, which wakes rows at the end of an epoch, to see how many slept.

    Args:
        every: Batches between two records, at least 1. A record takes about 1 ms for 26 tables.

    Attributes:
        history: Dict from a table's name to its list of records.

    Raises:
        ValueError: If `every` is no integer of at least 1; and when training begins, if no
            `SlipstreamOptimizer` trains the model's tables.

    Example:

    ```python
    skips = slipstream.SkipHistory()
    model.fit(dataset, callbacks=[skips])
    table = pandas.DataFrame(skips.history["user"]).set_index("step")
    (table.num_deferred_lookups / table.num_lookups).plot()
    ```
    """

    def __init__(self, every=100):
        super().__init__()
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"`every` must be an integer of at least 1, got {every!r}.")
        self.every = every
        self.history = {}
        self._num_seen = 0  # batches of this epoch
        self._num_due = every  # batches until the next record
        # tf_keras then does not copy the logs of each batch to the host.
        self._supports_tf_logs = True

    def on_train_begin(self, logs=None):
        tables_of(self.model, "SkipHistory")

    def on_epoch_begin(self, epoch, logs=None):
        self._num_seen = 0

    def on_train_batch_end(self, batch, logs=None):
        # With `steps_per_execution` several batches end at once.
        num_seen = _compat.num_batches_done(self, batch)
        self._num_due -= num_seen - self._num_seen
        self._num_seen = num_seen
        if self._num_due <= 0:
            self._num_due = self.every
            self._record()

    def on_epoch_end(self, epoch, logs=None):
        self._record()

    def _record(self):
        # This model's own optimizer comes first, others that train a table of it later.
        stats_of = {}
        for tables in tables_of(self.model, "SkipHistory"):
            step = tables.num_steps
            for name, stats in tables.stats().items():
                stats_of.setdefault(name, (step, stats))
        for name, (step, stats) in stats_of.items():
            records = self.history.setdefault(name, [])
            if not records or records[-1]["step"] != step:
                records.append({"step": step, **dataclasses.asdict(stats)})
