"""Chooses from batches, one after the other: for `SelectiveModel` and for loops of one's own."""

import collections
import numbers

import numpy as np
import tensorflow as tf

from tf_slipstream import _compat
from tf_slipstream.engine.replicas import num_replicas
from tf_slipstream.selection import probabilities
from tf_slipstream.selection.pilot import Pilot
from tf_slipstream.selection.stats import POPULARITY_BOUNDS, SelectionStats

# Batches over which `log c` is smoothed; in the first ones a quarter of those so far.
_SMOOTHING = 30
# Batches in which what was kept too many or too few is made up for. While the pilot gets better the
# right `c` grows, and a mean of the past is behind it.
_CATCHING_UP = 30
# Of so many batches one is counted by popularity, because counting takes as long as choosing.
_POPULARITY_EVERY = 8
_NUM_BUCKETS = len(POPULARITY_BOUNDS) + 1

# What is kept of a batch, by position: int64 `[num_kept]`; and float32 `[num_kept]` each: what to
# add to a logit in the loss, `1 / probability` of being kept, and the pilot's log odds (0 without).
Selection = collections.namedtuple(
    "Selection", ["positions", "offsets", "inverse_probabilities", "log_odds"]
)


@_compat.register_serializable
class InputSelector(_compat.keras.layers.Layer):
    """Chooses the inputs of each batch that are worth training on.

    `SelectiveModel` has one. In a loop of your own, inside a `tf.function` or not, call `select`
    for every batch, train on the inputs at `positions`, and add `offsets` to their logits in the
    loss, which is binary cross-entropy. All its state is variables of this layer.

    Args:
        pilot: `Pilot`; None where neither `method` nor `uses_log_odds` needs one.
        keep: Share of the inputs to keep, in (0, 1].
        method: `"contribution"`: an input is kept with probability `min(1, c |label - p|)`, where
            `p` is what the pilot predicts and `c` follows `keep`. `"negatives"`: positives are
            kept and a share of the negatives. `"random"`: a share of all.
        warm_up: Number of batches at first of which every input is kept.
        seed: Integer of the random numbers, which depend on it and on the batch's number alone.
        uses_log_odds: Whether the pilot is to predict and learn whatever the method.

    Raises:
        ValueError: For an argument out of its range.

    Example:

    ```python
    selector = slipstream.InputSelector(pilot, keep=0.5)
    for inputs, labels in dataset:
        kept = selector.select(inputs, labels)
        with tf.GradientTape() as tape:
            logits = model(tf.gather(inputs, kept.positions))[:, 0] + kept.offsets
            losses = tf.nn.sigmoid_cross_entropy_with_logits(
                tf.gather(labels, kept.positions), logits
            )
            loss = tf.reduce_mean(losses)
        ...
    ```
    """

    def __init__(
        self,
        pilot,
        keep=0.5,
        method="contribution",
        warm_up=0,
        seed=0,
        uses_log_odds=False,
        name="input_selector",
    ):
        super().__init__(name=name, dtype="float32")
        _check(pilot, keep, method, warm_up, seed, uses_log_odds)
        self.keep, self.method, self.warm_up, self.seed = float(keep), method, int(warm_up), seed
        self.uses_log_odds = uses_log_odds
        # A pilot that nobody asks would cost its time for nothing.
        self._is_pilot_used = uses_log_odds or method == "contribution"
        self.pilot = pilot
        self.pilot_optimizer = pilot.make_optimizer() if self._is_pilot_used else None
        add = _compat.add_replicated
        self.num_batches = add(self, "num_batches", [], "int64")
        self.log_c = add(self, "log_c", [], "float32")
        # How many inputs too few were kept so far, in batches.
        self.deficit = add(self, "deficit", [], "float32")
        # By label: read, kept.
        self.label_counts = add(self, "label_counts", [2, 2], "int64")
        num_fields = len(pilot.field_names) if self._is_pilot_used else 0
        shape = [2, num_fields, _NUM_BUCKETS]
        self.popularity_counts = add(self, "popularity_counts", shape, "int64")
        self.trainable = False
        self.built = True

    def select(self, inputs, labels, weights=None):
        """Chooses from a batch; the pilot, which has predicted it, then learns all of it.

        Args:
            inputs: The model's inputs, of which the pilot finds the ids.
            labels: `[batch]` or `[batch, 1]`, each 0 or 1.
            weights: The inputs' own weights of the same shape, which the pilot learns by; None: 1.

        Returns:
            `Selection`.

        Raises:
            tf.errors.InvalidArgumentError: For a label that is neither 0 nor 1, or an id that is
                not in its field. Nothing has changed then.
        """
        labels = tf.reshape(tf.cast(labels, tf.float32), [-1])
        weights = None if weights is None else tf.reshape(tf.cast(weights, tf.float32), [-1])
        is_label = tf.reduce_all((labels == 0) | (labels == 1))
        message = "Choosing inputs needs labels that are 0 or 1, got"
        with tf.control_dependencies([tf.debugging.Assert(is_label, [message, labels])]):
            labels = tf.identity(labels)
        prediction, log_odds = None, tf.zeros_like(labels)
        if self._is_pilot_used:
            prediction = self.pilot.predict_batch(inputs)
            log_odds = prediction.log_odds
            _check_sizes(log_odds, labels)
        # Nothing is written before all is checked.
        with tf.control_dependencies([labels, log_odds]):
            num_batches = _compat.tf_variable(self.num_batches).read_value()
            kept, inverse, offsets = self._choose(log_odds, labels, num_batches)
            if prediction is not None:
                self.pilot.learn(prediction, labels, self.pilot_optimizer, weights)
            self._note(prediction, labels, kept, num_batches)
        positions = tf.where(kept)[:, 0]
        return Selection(
            positions, *(tf.gather(v, positions) for v in (offsets, inverse, log_odds))
        )

    def _choose(self, log_odds, labels, num_batches):
        """Returns what is kept, `1 / q` and offsets, each `[batch]`."""
        ones = tf.ones_like(labels)
        if self.keep == 1.0:
            return ones > 0, ones, 0 * ones
        log_c_of_past = _compat.tf_variable(self.log_c).read_value()
        deficit = _compat.tf_variable(self.deficit).read_value()
        wanted = tf.clip_by_value(
            self.keep + deficit / _CATCHING_UP, self.keep / 2, (1 + self.keep) / 2
        )
        distance = probabilities.distances(self.method, log_odds, labels)
        found = _mean_of_replicas(probabilities.log_c_for(distance, wanted))
        # That of the batches before: `c` then does not depend on the labels that it decides about.
        log_c = tf.where(num_batches > 0, log_c_of_past, found)
        arguments = (self.method, log_odds, labels, log_c)
        is_warm = num_batches >= self.warm_up
        kept_with = tf.where(is_warm, probabilities.keep_probabilities(*arguments), ones)
        offsets = tf.where(is_warm, probabilities.offsets(*arguments), 0 * ones)
        uniform = tf.random.stateless_uniform(tf.shape(labels), self._random_seed(num_batches))
        kept = uniform < kept_with
        missing = self.keep - tf.reduce_mean(tf.cast(kept, tf.float32))
        missing = tf.where(is_warm, _mean_of_replicas(missing), 0.0)
        _compat.tf_variable(self.deficit).assign_add(missing)
        share = 1 / tf.minimum(1 + tf.cast(num_batches, tf.float32) / 4, _SMOOTHING)
        _compat.tf_variable(self.log_c).assign(log_c + share * (found - log_c))
        return kept, 1 / kept_with, offsets

    def _random_seed(self, num_batches):
        context = tf.distribute.get_replica_context()
        replica = 0 if context is None else context.replica_id_in_sync_group
        return tf.stack(
            [tf.cast(self.seed, tf.int64), num_batches * 4096 + tf.cast(replica, tf.int64)]
        )

    def _note(self, prediction, labels, kept, num_batches):
        kept = tf.cast(kept, tf.float32)
        counts = tf.stack([1 - labels, labels])  # [2, batch]
        by_label = tf.stack([tf.reduce_sum(counts, 1), tf.linalg.matvec(counts, kept)])
        changes = [(self.label_counts, by_label)]
        if prediction is not None:
            by_popularity = tf.cond(
                num_batches % _POPULARITY_EVERY == 0,
                lambda: self._by_popularity(prediction, kept),
                lambda: tf.zeros(self.popularity_counts.shape),
            )
            changes.append((self.popularity_counts, by_popularity))
        for variable, change in changes:
            _compat.tf_variable(variable).assign_add(tf.cast(_sum_of_replicas(change), tf.int64))
        _compat.tf_variable(self.num_batches).assign_add(1)

    def _by_popularity(self, prediction, kept):
        """Returns lookups, and those of inputs kept, `[2, num_fields, num_buckets]`."""
        bounds = [self.pilot.popularity_of(bound) for bound in POPULARITY_BOUNDS]
        bucket = tf.searchsorted(tf.constant(bounds), prediction.popularities, side="right")
        place = prediction.lookups.fields() * _NUM_BUCKETS + bucket
        size = int(np.prod(self.popularity_counts.shape[1:]))
        weights = [
            tf.ones_like(prediction.popularities),
            prediction.lookups.per_lookup(kept),
        ]
        sums = [tf.math.unsorted_segment_sum(one, place, size) for one in weights]
        return tf.reshape(tf.stack(sums), self.popularity_counts.shape)

    def stats(self):
        """Returns `SelectionStats` since training began."""
        read, kept = self.label_counts.numpy().tolist()
        lookups, kept_lookups = self.popularity_counts.numpy().tolist()
        names = self.pilot.field_names if self._is_pilot_used else []
        return SelectionStats(
            num_inputs=sum(read),
            num_kept=sum(kept),
            num_inputs_by_label=tuple(read),
            num_kept_by_label=tuple(kept),
            num_lookups_by_popularity=dict(zip(names, map(tuple, lookups))),
            num_kept_lookups_by_popularity=dict(zip(names, map(tuple, kept_lookups))),
            log_c=float(self.log_c.numpy()),
        )


def _check(pilot, keep, method, warm_up, seed, uses_log_odds):
    if method not in probabilities.METHODS:
        raise ValueError(f"`method` must be one of {probabilities.METHODS}, got {method!r}.")
    is_number = isinstance(keep, numbers.Real) and not isinstance(keep, bool)
    if not is_number or not 0 < keep <= 1:
        raise ValueError(f"`keep`, the share of inputs to keep, must be in (0, 1], got {keep!r}.")
    for name, value in (("warm_up", warm_up), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
            raise ValueError(f"`{name}` must be an integer of at least 0, got {value!r}.")
    is_needed = uses_log_odds or method == "contribution"
    if not isinstance(pilot, Pilot) and (is_needed or pilot is not None):
        raise ValueError(
            f"Method '{method}'{' with the pilot in the model' if uses_log_odds else ''} takes a "
            f"`slipstream.Pilot`, got {pilot!r}."
        )


def _check_sizes(log_odds, labels):
    tf.debugging.assert_equal(
        tf.size(log_odds),
        tf.size(labels),
        "The pilot's ids are of another number of inputs than there are labels",
    )


def _sum_of_replicas(value):
    if num_replicas() == 1:
        return value
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def _mean_of_replicas(value):
    return _sum_of_replicas(value) / num_replicas()
