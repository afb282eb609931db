"""One run: trains a configuration with a seed and says how good it is and what it saved."""

import contextlib
import time

import numpy as np
import tensorflow as tf

import tf_slipstream as slipstream
from quality import metrics
from quality.batches import make_epoch
from quality.choosing import Chooser
from quality.controls import Filter

keras = tf.keras

optimizers = keras.optimizers
OPTIMIZERS = {
    "sgd": optimizers.SGD,
    "momentum": lambda rate: optimizers.SGD(rate, momentum=0.9),
    "nesterov": lambda rate: optimizers.SGD(rate, momentum=0.9, nesterov=True),
    # Keras starts Adagrad's accumulators at 0.1, far above the squared gradients of a mean loss.
    "adagrad": lambda rate: optimizers.Adagrad(rate, initial_accumulator_value=1e-6),
    "adam": optimizers.Adam,
    "adamw": lambda rate: optimizers.AdamW(rate, weight_decay=0.01),
    "amsgrad": lambda rate: optimizers.Adam(rate, amsgrad=True),
    "rmsprop": optimizers.RMSprop,
    "rmsprop_momentum": lambda rate: optimizers.RMSprop(rate, momentum=0.9),
    "ftrl": optimizers.Ftrl,
}
EVALUATION_BATCH = 8192


class Trainer:
    """A model with its tables and optimizer.

    Args:
        data_set: `DataSet`.
        configuration: `Configuration`.
        optimizer: Name in `OPTIMIZERS`.
        learning_rate: Float.
        dim: Length of a row.
        seed: Of all weights and of random rows.
    """

    def __init__(self, data_set, configuration, optimizer, learning_rate, dim, seed):
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        self._tables = data_set.tables
        self._stock = configuration.stock
        kind = keras.layers.Embedding if self._stock else slipstream.SlipstreamEmbedding
        self._layers = [kind(t.num_rows, dim, name=t.name) for t in data_set.tables]
        for layer in self._layers:
            layer.build()
        self.model = data_set.make_model(dim)
        num_lookups = sum(table.num_columns for table in data_set.tables)
        num_dense = data_set.test.dense.shape[1]
        self.model(tf.zeros([1, num_lookups, dim]), tf.zeros([1, num_dense]))
        layers = [*self._layers, *self.model.layers]
        self._variables = [v for layer in layers for v in layer.trainable_variables]
        self.optimizer = OPTIMIZERS[optimizer](learning_rate)
        if not self._stock:
            self.optimizer = slipstream.SlipstreamOptimizer(
                self.optimizer, policy=configuration.policy
            )
        self.optimizer.build(self._variables)
        sizes = [table.num_rows for table in data_set.tables]
        self._begins = np.cumsum([0, *sizes])
        self.filter = Filter(configuration, int(self._begins[-1]), seed)
        self.chooser = None
        if configuration.keep:
            self.chooser = Chooser(configuration, data_set, seed, self._step)

    def _columns(self, ids):
        """Splits ids `[batch, num_lookups]` by table."""
        return tf.split(ids, [table.num_columns for table in self._tables], axis=1)

    def table(self, place):
        """Returns a table's `tf.Variable`."""
        return self._layers[place].embeddings.value

    def _logits(self, ids, dense):
        rows = [layer(part) for layer, part in zip(self._layers, self._columns(ids))]
        return self.model(tf.concat(rows, axis=1), dense)

    @tf.function(reduce_retracing=True)
    def train(self, ids, dense, labels):
        """Trains on batches, stacked: `[num_steps, batch, ...]`. Returns the mean loss."""
        total = 0.0
        for i in tf.range(tf.shape(ids)[0]):
            step = self._step if self.chooser is None else self.chooser.read
            total += step(ids[i], dense[i], labels[i])
        return total / tf.cast(tf.shape(ids)[0], tf.float32)

    def _step(self, ids, dense, labels, *added):
        """Trains on a batch; `added` are log odds `[batch]` that its logits lack, or None."""
        with tf.GradientTape() as tape:
            logits = self._logits(ids, dense)
            for log_odds in added:
                logits = logits if log_odds is None else logits + log_odds
            losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        grads = tape.gradient(loss, [variable.value for variable in self._variables])
        if self.filter.is_active:
            grads = self._filtered(grads, ids)
        if self._stock == "dense":
            grads = [tf.convert_to_tensor(grad) for grad in grads]
        self.optimizer.apply_gradients(zip(grads, self._variables))
        return loss

    def _filtered(self, grads, ids):
        parts = self._columns(ids)
        rows = [tf.reshape(p + int(b), [-1]) for p, b in zip(parts, self._begins)]
        step = tf.cast(self.optimizer.iterations.value, tf.int64)
        kept = self.filter.keep(tf.concat(rows, axis=0), step)
        kept = tf.split(kept, [tf.size(part) for part in rows])
        tables = [
            tf.IndexedSlices(
                tf.boolean_mask(grad.values, keep),
                tf.boolean_mask(grad.indices, keep),
                grad.dense_shape,
            )
            for grad, keep in zip(grads, kept)
        ]
        return [*tables, *grads[len(tables) :]]

    @tf.function(reduce_retracing=True)
    def scores(self, ids, dense):
        logits = self._logits(ids, dense)
        log_odds = None if self.chooser is None else self.chooser.log_odds(ids, dense)
        return logits if log_odds is None else logits + log_odds

    @contextlib.contextmanager
    def all_applied(self):
        """Applies all that is held for the time being; training then goes on as if it were not."""
        variables = [v.value for v in (*self._variables, *self.optimizer.variables)]
        values = [variable.numpy() for variable in variables]
        self.settle()
        yield
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    def settle(self):
        """Brings the tables up to date, as `fit` does before a validation."""
        if not self._stock:
            self.optimizer.settle()

    def saved(self):
        """Returns shares of lookups and of row updates saved so far."""
        if self._stock:
            return 0.0, 0.0
        if self.filter.is_active:
            lookups, left_out, row_updates, rows_left_out = self.filter.counts()
            return left_out / lookups, rows_left_out / row_updates
        stats = self.optimizer.skip_stats().values()
        lookups = sum(one.num_lookups for one in stats)
        row_updates = sum(one.num_row_updates for one in stats)
        return (
            sum(one.num_skipped_lookups + one.num_deferred_lookups for one in stats) / lookups,
            sum(one.num_skipped_row_updates + one.num_deferred_row_updates for one in stats)
            / row_updates,
        )


def run(data_set, configuration, settings, on_examples=lambda num_examples: None):
    """Trains and evaluates.

    Args:
        data_set: `DataSet`.
        configuration: `Configuration`.
        settings: Dict with "optimizer", "learning_rate", "dim", "seed", "epochs", "batch_size" and
            "checkpoints", a number of evenly spaced evaluations on the way.
        on_examples: Called with the number of examples that were trained on since the last call.

    Returns:
        Dict of results; all but "examples_per_second" are the same in every run.

    Raises:
        FloatingPointError: If the loss is no longer finite.
    """
    names = ("optimizer", "learning_rate", "dim", "seed")
    trainer = Trainer(data_set, configuration, **{name: settings[name] for name in names})
    seconds, num_timed, num_given, checkpoints = 0.0, 0, 0, []
    for number in range(settings["epochs"]):
        epoch = make_epoch(data_set, configuration, settings, number)
        num_given += epoch.num_steps
        step = 0
        for batches in epoch.dataset:
            start = time.perf_counter()
            loss = float(trainer.train(*batches))
            if not np.isfinite(loss):
                raise FloatingPointError(f"The loss became {loss} after step {step}.")
            num_steps = batches[0].shape[0]
            num_examples = num_steps * settings["batch_size"]
            # The first call traces.
            if number or step:
                seconds += time.perf_counter() - start
                num_timed += num_examples
            step += num_steps
            on_examples(num_examples)
            if step in epoch.stops:
                checkpoints.append({"epoch": number} | _checkpoint(trainer, data_set, step))
    trainer.settle()
    result = _results(trainer, data_set, configuration, num_given)
    if checkpoints:
        result["checkpoints"] = checkpoints
        # A step of a short run moves the mean prediction by 10% and more: of the second half's.
        of_these = [one["calibration"] for one in checkpoints[len(checkpoints) // 2 :]]
        result["calibration"] = float(np.mean(of_these))
    return result | {"examples_per_second": num_timed / seconds if num_timed else 0.0}


def _checkpoint(trainer, data_set, step):
    """Evaluates on the way: the model that saving it here would give, and the one in training."""
    lookups_saved, row_updates_saved = trainer.saved()
    in_training = _evaluate(trainer, data_set)
    with trainer.all_applied():
        saved = _evaluate(trainer, data_set)["auc"]
    return {
        "step": step,
        "auc": saved,
        "auc_while_held": in_training["auc"],
        "calibration": in_training["calibration"],
        "lookups_saved": lookups_saved,
        "row_updates_saved": row_updates_saved,
    }


def _results(trainer, data_set, configuration, num_given):
    lookups_saved, row_updates_saved = trainer.saved()
    num_steps = int(trainer.optimizer.iterations.numpy())
    kept = num_steps / num_given
    if configuration.random_inputs:
        kept = 1 - configuration.random_inputs
    if trainer.chooser is not None:
        kept = trainer.chooser.selector.stats().share_kept
    tables = {} if configuration.stock else trainer.optimizer.tables
    states = [state for state in tables.values() if state.policy is not None]
    return _evaluate(trainer, data_set) | {
        "lookups_saved": 1 - kept * (1 - lookups_saved),
        "row_updates_saved": 1 - kept * (1 - row_updates_saved),
        "inputs_dropped": 1 - kept,
        "steps": num_steps,
        "num_popular": sum(int((s.row_states.numpy() < 0).sum()) for s in states),
        # Tables that had no place for a further popular row.
        "num_full": sum(
            int(s.policy_state.numpy()[0]) == s.pool_ints.shape[0] < s.num_rows for s in states
        ),
    }


def _evaluate(trainer, data_set):
    ids, dense, labels = data_set.test
    parts = [slice(i, i + EVALUATION_BATCH) for i in range(0, len(ids), EVALUATION_BATCH)]
    logits = np.concatenate([trainer.scores(ids[part], dense[part]).numpy() for part in parts])
    labels, logits = labels.reshape(-1), logits.reshape(-1)
    result = {
        "auc": metrics.area_under_curve(labels, logits),
        "log_loss": metrics.log_loss(labels, logits),
        "calibration": float(np.mean(1 / (1 + np.exp(-logits.astype(np.float64)))) / labels.mean()),
    }
    if data_set.ranking is not None:
        users, known, wanted = data_set.ranking
        queries = trainer.model.query(tf.gather(trainer.table(0), users[:, np.newaxis]))
        scores = tf.matmul(queries, trainer.table(1), transpose_b=True).numpy()
        result["recall_at_20"] = metrics.recall_at(20, scores, known, wanted)
    return result
