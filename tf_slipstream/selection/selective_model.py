"""The Keras model that trains another one on chosen inputs."""

import collections
import contextlib
import threading

import tensorflow as tf

from tf_slipstream import _compat
from tf_slipstream.selection import batches as parts
from tf_slipstream.selection.corrected_loss import (
    CorrectedLoss,
    Correction,
    checked_decider,
    other_loss,
    weighted,
)
from tf_slipstream.selection.selector import InputSelector
from tf_slipstream.selection.wide_model import WideModel

BATCHES = ("auto", "full", "shrunk")

# Inputs of a training step: as the user's data has them, and what `Selection` says of each.
_Inputs = collections.namedtuple("_Inputs", ["data", "offsets", "inverse", "log_odds"])


class SelectiveModel(_compat.keras.Model):
    """Trains a model of clicks on the inputs that teach it something, and leaves out the others.

    A pilot predicts each input before the model's forward pass. An input is kept with probability
    `min(1, c |label - p|)`, and the loss of those kept is corrected by the log odds of their being
    kept, so that the model's probabilities are those of all inputs (local case-control sampling:
    Fithian and Hastie 2014; Wang, Zhang and Wang 2021). `fit` reads every input and does fewer
    training steps. See docs/guide/choosing_inputs.md for when it is worth it.

    What is evaluated, predicted with, saved and exported is the user's model, without the pilot
    unless `wide`. `save_weights` and `tf.train.Checkpoint` have the pilot and all else that
    training goes on with.

    Args:
        model: Keras model of the probability or the logit of label 1, `[batch, 1]` or `[batch]`;
            or of several outputs, as a dict or a list, of which one is such.
        pilot: `Pilot`; None where `method` is another and the model not wide.
        keep: Share of the inputs to train on, in (0, 1]. With 1 training is plain, to the bit.
        method: How inputs are chosen: `"contribution"`; or, to compare with, `"negatives"`
            (positives and a share of the negatives) or `"random"`.
        wide: Whether the pilot's log odds are added to the model's, in training and ever after: a
            wide and deep model. The model is then trained with those from before the pilot learned
            the input.
        batches: `"full"`: inputs that are kept wait until there are as many as a batch that is
            read has; what waits at the end of an epoch is trained on in a smaller batch.
            `"shrunk"`: a step for each batch read, on what is kept of it. `"auto"`: full, but
            under several replicas shrunk.
        warm_up: Number of batches at first of which every input is kept.
        output: Of several outputs the name or place of the one whose label decides. The losses of
            others, which may be any, are weighted by 1 / the probability of being kept.
        seed: Integer of the random numbers that choose.
        name: String.

    Raises:
        ValueError: For an argument out of its range; for a model with a `train_step` of its own; at
            `compile`, for a loss of the output that decides that is no binary cross-entropy.

    Example:

    ```python
    pilot = slipstream.Pilot({"user": 1_000_000, "item": 200_000})
    selective = slipstream.SelectiveModel(model, pilot, keep=0.5)
    selective.compile(optimizer, loss=keras.losses.BinaryCrossentropy(from_logits=True))
    selective.fit(dataset)  # of ({"user": ids, "item": ids}, label)
    selective.selection_stats().share_kept
    selective.export("served")
    ```
    """

    def __init__(
        self,
        model,
        pilot,
        keep=0.5,
        method="contribution",
        wide=False,
        batches="auto",
        warm_up=0,
        output=None,
        seed=0,
        name="selective_model",
    ):
        super().__init__(name=name)
        _check(model, batches)
        self.selector = InputSelector(
            pilot, keep, method, warm_up, seed, uses_log_odds=wide, name="selector"
        )
        self.model, self.wide, self.batches, self.output_key = model, wide, batches, output
        if getattr(model, "output_names", None):
            # What is logged is then called as the model's own.
            self.output_names = list(model.output_names)
        self._waiting = None
        # The model that is served: of a wide one, not before it is known what the loss is of.
        self._served = lambda: model
        # A thread traces each replica's step.
        self._of_thread = threading.local()
        self._end_epoch_function = None
        self.supports_jit = False
        # tf_keras has no variables of a model that is not.
        self.built = bool(model.built)

    @property
    def served_model(self):
        """The model that is evaluated, saved and exported: the user's, or with the pilot."""
        return self._served()

    def compile(
        self, optimizer="rmsprop", loss=None, metrics=None, weighted_metrics=None, **kwargs
    ):
        """As Keras's, for this model and the user's."""
        decider, corrected = self._corrected(loss)
        if self.wide:
            from_logits = decider.get_config()["from_logits"]
            self.wide_model = WideModel(
                self.model, self.selector.pilot, from_logits, self.output_key
            )
            self._served = lambda: self.wide_model
        super().compile(
            optimizer=optimizer,
            loss=corrected,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            **kwargs,
        )
        self._end_epoch_function = None
        # So that the model is saved with its optimizer. It has metrics of its own.
        self.served_model.compile(
            optimizer=self.optimizer,
            loss=loss,
            metrics=_copies(metrics),
            weighted_metrics=_copies(weighted_metrics),
            **kwargs,
        )

    def _corrected(self, loss):
        """Returns the deciding output's loss, and an argument `loss` that corrects it."""
        correction = lambda: self._correction  # noqa: E731

        def one(loss, decides):
            found = checked_decider(loss) if decides else other_loss(loss)
            return CorrectedLoss(found, decides, correction)

        if not isinstance(loss, (dict, list, tuple)):
            if self.output_key is not None or len(getattr(self.model, "outputs", None) or [1]) > 1:
                raise ValueError(
                    "A SelectiveModel of several outputs needs a dict or list of their losses and "
                    "`output`, the name or place of the one that decides; got loss="
                    f"{loss!r} and output={self.output_key!r}."
                )
            found = one(loss, True)
            return found.loss, found
        keys = list(loss) if isinstance(loss, dict) else list(range(len(loss)))
        if self.output_key not in keys:
            raise ValueError(
                f"`output`, which says whose label decides what is kept, must be one of {keys} for "
                f"this loss; got {self.output_key!r}."
            )
        found = {
            key: None if loss[key] is None else one(loss[key], key == self.output_key)
            for key in keys
        }
        decider = found[self.output_key].loss
        return decider, found if isinstance(loss, dict) else list(found.values())

    def build(self, input_shape=None):
        # The parts build themselves.
        self.built = True

    def call(self, inputs, training=None):
        correction = self._correction
        if not self.wide:
            return self.model(inputs, training=training)
        if correction is None:
            return self.served_model(inputs, training=training)
        # The pilot has learned this input by now.
        return self.wide_model.add(self.model(inputs, training=training), correction.log_odds)

    def fit(self, *args, callbacks=None, **kwargs):
        """As Keras's. What waits at the end of an epoch is trained on before its validation."""
        ending = _EndOfEpoch(self)
        if callbacks is None or isinstance(callbacks, _compat.keras.callbacks.Callback):
            callbacks = [] if callbacks is None else [callbacks]
        if isinstance(callbacks, (list, tuple)):
            callbacks = [ending, *callbacks]
        else:
            callbacks.append(ending)
        return super().fit(*args, callbacks=callbacks, **kwargs)

    def train_step(self, data):
        x, y, weights = _compat.keras.utils.unpack_x_y_sample_weight(data)
        if y is None:
            raise ValueError("SelectiveModel needs labels: train it on (inputs, labels).")
        _compat.build_in_graph(self.served_model, x)
        selection = self.selector.select(x, self._deciding(y), self._deciding(weights))
        kept = _Inputs(parts.take((x, y, weights), selection.positions), *selection[1:])
        num_read = parts.size(x)
        if self._is_shrunk():
            self._train(_at_least_one(kept, (x, y, weights)))
        else:
            self._train_when_full(kept, num_read)
        share = tf.cast(tf.size(selection.positions), tf.float32) / tf.cast(num_read, tf.float32)
        return {**self.get_metrics_result(), "share_kept": share}

    def _deciding(self, values):
        if self.output_key is None or not isinstance(values, (dict, list, tuple)):
            return values[0] if isinstance(values, (list, tuple)) else values
        return values[self.output_key]

    def _is_shrunk(self):
        num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if self.batches == "full" and num_replicas > 1:
            raise ValueError(
                f"batches='full' works for one replica, and there are {num_replicas}: each would "
                "do steps at its own times. Construct SelectiveModel with batches='shrunk'."
            )
        return self.batches == "shrunk" or num_replicas > 1

    def _train_when_full(self, kept, num_read):
        if self._waiting is None:
            self._waiting = parts.Waiting(kept)
        waiting = parts.join(self._waiting.read(), kept)
        num_waiting = tf.shape(waiting.offsets)[0]
        most = self._waiting.most_of(num_read)
        # A last batch that is smaller may be the one that its few inputs are enough for.
        is_full = num_waiting >= num_read
        num_taken = tf.where(is_full, tf.minimum(num_waiting, most), 0)
        self._waiting.write(parts.take(waiting, tf.range(num_taken, num_waiting, dtype=tf.int32)))

        def train():
            batch = parts.take(waiting, tf.range(num_taken))
            if isinstance(num_read, int):
                batch = parts.with_size(batch, num_read)
            self._train(batch)
            return tf.constant(True)

        tf.cond(is_full, train, lambda: tf.constant(False))

    def _train(self, batch):
        """Does a training step as Keras does it."""
        weights = batch.inverse / tf.reduce_mean(batch.inverse)
        with self._correcting(Correction(batch.offsets, weights, batch.log_odds)):
            super().train_step(batch.data if batch.data[2] is not None else batch.data[:2])

    @property
    def _correction(self):
        """The `Correction` of the training step that is being done; None outside of one."""
        return getattr(self._of_thread, "correction", None)

    @contextlib.contextmanager
    def _correcting(self, correction):
        self._of_thread.correction = correction
        try:
            yield
        finally:
            self._of_thread.correction = None

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if self._correction is None:
            return super().compute_metrics(x, y, y_pred, sample_weight)
        weights = self._correction.weights
        _compat.update_metrics(self, y, y_pred, weights, _times(weights, sample_weight))
        return self.get_metrics_result()

    def end_epoch(self):
        """Trains on the inputs that wait, with the weight that they would have in a full batch.

        `fit` does so at the end of each epoch. Call it at the end of your data where you call
        `train_on_batch` yourself; eagerly.
        """
        if self._waiting is None:
            return
        if self._end_epoch_function is None:
            self._end_epoch_function = tf.function(self._train_on_waiting, autograph=False)
        self._end_epoch_function()

    def _train_on_waiting(self):
        waiting = self._waiting.read()
        num_waiting = tf.shape(waiting.offsets)[0]
        # Not of a known length 0: TensorFlow would take it for that of what was read before.
        self._waiting.write(parts.take(waiting, tf.range(num_waiting, num_waiting)))

        def train():
            # In the mean over a full batch, so that a few inputs move the model as few do.
            share = tf.cast(num_waiting / self._waiting.most(), tf.float32)
            x, y, weights = waiting.data
            shares = share * tf.ones_like(waiting.offsets)
            self._train(waiting._replace(data=(x, y, _times(shares, weights))))
            return tf.constant(True)

        tf.cond(num_waiting > 0, train, lambda: tf.constant(False))

    def selection_stats(self):
        """Returns what was read and what was kept since training began, `SelectionStats`."""
        return self.selector.stats()

    def evaluate(self, *args, **kwargs):
        self.end_epoch()
        return super().evaluate(*args, **kwargs)

    def save(self, *args, **kwargs):
        """Saves the user's model, or the wide one, as its `save` does."""
        return self.served_model.save(*args, **kwargs)

    def export(self, *args, **kwargs):
        """Exports the user's model, or the wide one, as its `export` does."""
        return self.served_model.export(*args, **kwargs)


class _EndOfEpoch(_compat.keras.callbacks.Callback):
    """First of all callbacks at the end of an epoch, so that others see the model trained."""

    def __init__(self, selective):
        super().__init__()
        self._selective = lambda: selective

    def on_epoch_end(self, epoch, logs=None):
        self._selective().end_epoch()


def _check(model, batches):
    keras = _compat.keras
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a Keras model, got {model!r}.")
    if type(model).train_step is not keras.Model.train_step:
        raise ValueError(
            f"{type(model).__name__} has a `train_step` of its own, which SelectiveModel would "
            "leave out. Use slipstream.InputSelector in it instead."
        )
    if batches not in BATCHES:
        raise ValueError(f"`batches` must be one of {BATCHES}, got {batches!r}.")
    if isinstance(tf.distribute.get_strategy(), tf.distribute.ParameterServerStrategy):
        raise ValueError(
            "SelectiveModel does not work under ParameterServerStrategy: its pilot would learn "
            "from many workers at once. Use one machine or MirroredStrategy."
        )


def _at_least_one(kept, data):
    """Returns inputs kept, or where there is none the first of the data with weight 0."""
    x, y, weights = data
    is_none = tf.cast(tf.size(kept.offsets) == 0, tf.int64)
    spare = tf.range(is_none)
    data = parts.join(kept.data, parts.take(data, spare))
    zero, one = tf.zeros([is_none]), tf.ones([is_none])
    is_real = tf.concat([tf.ones_like(kept.offsets), zero], axis=0)
    x, y, weights = data
    return _Inputs(
        (x, y, _times(is_real, weights)),
        tf.concat([kept.offsets, zero], axis=0),
        tf.concat([kept.inverse, one], axis=0),
        tf.concat([kept.log_odds, zero], axis=0),
    )


def _times(weights, sample_weight):
    """Returns the user's weights, of each output perhaps, times weights of inputs `[batch]`."""
    if sample_weight is None:
        return weights
    return tf.nest.map_structure(lambda given: weighted(weights, given), sample_weight)


def _copies(metrics):
    """Returns metrics with objects of their own."""

    def copy(metric):
        is_object = isinstance(metric, _compat.keras.metrics.Metric)
        return type(metric).from_config(metric.get_config()) if is_object else metric

    return None if metrics is None else tf.nest.map_structure(copy, metrics)
