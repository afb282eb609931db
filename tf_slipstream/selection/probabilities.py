"""How likely an input is kept, and what that does to the loss. Pure functions of tensors.

Fithian and Hastie 2014, "Local case-control sampling"; Wang, Zhang and Wang 2021, "Nonuniform
negative sampling and log odds correction with rare events data".
"""

import tensorflow as tf

from tf_slipstream import _compat

METHODS = ("contribution", "negatives", "random")

# No input is kept less often than this. It costs at most as large a share of the inputs, and bounds
# weights and offsets where the pilot is sure and wrong.
LEAST_PROBABILITY = 1e-3
# Where leaving out negatives is not enough, positives are left out as well: when 1 negative in
# this many is kept.
_POSITIVES_OVER_NEGATIVES = 20.0
_MOST_LOG_C = 15.0


def distances(method, log_odds, labels):
    """Returns what the probabilities are proportional to, in `(0, 1]` for contribution.

    Args:
        method: `"contribution"`: `|label - p|`; `"negatives"`: a number for each label;
            `"random"`: 1.
        log_odds: float32 `[batch]`, the pilot's. Contribution alone uses it.
        labels: float32 `[batch]`, each 0 or 1.
    """
    if method == "random":
        return tf.ones_like(labels)
    if method == "negatives":
        return tf.where(labels > 0.5, _POSITIVES_OVER_NEGATIVES, 1.0)
    # |1 - sigmoid(z)| = sigmoid(-z), without the loss of digits near 1.
    return tf.sigmoid(tf.where(labels > 0.5, -log_odds, log_odds))


def keep_probabilities(method, log_odds, labels, log_c):
    """Returns the probability with which each input is kept, float32 `[batch]`.

    `min(1, c * distance)`, of at least `LEAST_PROBABILITY`. Arguments as in `distances`, and
    `log_c`, float32 scalar.
    """
    kept = tf.exp(log_c) * distances(method, log_odds, labels)
    return tf.clip_by_value(kept, LEAST_PROBABILITY, 1.0)


def offsets(method, log_odds, labels, log_c):
    """Returns `log(q1 / q0)`, the log odds of being kept with label 1 against label 0, `[batch]`.

    Among the inputs that are kept, the odds of label 1 are those among all times `q1 / q0`. A model
    whose logit plus this fits those kept has the right logit for all.
    """
    ones = tf.ones_like(labels)
    kept = [keep_probabilities(method, log_odds, y, log_c) for y in (ones, 0 * ones)]
    return tf.math.log(kept[0]) - tf.math.log(kept[1])


def log_c_for(distance, keep):
    """Returns the logarithm of the `c` at which the mean of `min(1, c * distance)` is `keep`.

    Args:
        distance: float32 `[num]`, not negative.
        keep: Number in (0, 1), or such a float32 scalar.
    """
    num = tf.cast(tf.size(distance), tf.float32)
    high_first = tf.sort(distance, direction="DESCENDING")
    # With the k highest at 1 the others must make up for the rest: c_k is right for the first k
    # whose own highest is then not above 1.
    rest = tf.cumsum(high_first, reverse=True)
    c = (keep * num - tf.range(num)) / tf.maximum(rest, 1e-30)
    first = tf.argmax(c * high_first <= 1.0)
    return tf.clip_by_value(tf.math.log(tf.maximum(c[first], 1e-30)), -_MOST_LOG_C, _MOST_LOG_C)


def add_log_odds(predictions, log_odds, from_logits):
    """Returns predictions whose log odds are higher by so much.

    Adding 0 changes no bit, of the gradient either.

    Args:
        predictions: Float `[batch]` or `[batch, 1]`: logits or probabilities.
        log_odds: Float `[batch]`.
        from_logits: Which they are.
    """
    log_odds = tf.cast(tf.reshape(log_odds, tf.shape(predictions)), predictions.dtype)
    if from_logits:
        return predictions + log_odds
    logits = _compat.logits_behind(predictions)
    if logits is not None:
        # Keras takes the logits from such an op, and from no other, for a precise loss.
        return tf.sigmoid(logits + log_odds)
    odds = tf.exp(log_odds)
    shifted = predictions * odds / (predictions * odds + (1 - predictions))
    return tf.where(log_odds == 0, predictions, shifted)
