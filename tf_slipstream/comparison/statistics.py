"""Measures of a model's scores, and how sure a difference between two models is."""

import math

import numpy as np

_TOP = 0.1


def placements(labels, scores):
    """Returns each example's part in the AUC.

    The AUC is the mean over the positives of the share of negatives that score lower (a tie counts
    half), and the mean over the negatives of the share of positives that score higher: the
    structural components of DeLong et al., "Comparing the areas under two or more correlated
    receiver operating characteristic curves", 1988.

    Args:
        labels: Bool `[num_examples]`.
        scores: Float `[num_examples]`.

    Returns:
        Float `[num_positives]` and `[num_negatives]`.
    """
    positives, negatives = scores[labels], scores[~labels]
    sorted_negatives, sorted_positives = np.sort(negatives), np.sort(positives)
    below = np.searchsorted(sorted_negatives, positives, "left")
    up_to = np.searchsorted(sorted_negatives, positives, "right")
    lower = (below + up_to) / 2 / len(negatives)
    below = np.searchsorted(sorted_positives, negatives, "left")
    up_to = np.searchsorted(sorted_positives, negatives, "right")
    return lower, 1 - (below + up_to) / 2 / len(positives)


def auc(labels, scores):
    return float(placements(labels, scores)[0].mean())


def log_losses(labels, scores):
    """Returns the log loss of each example."""
    scores = np.clip(scores, 1e-7, 1 - 1e-7)
    return -np.log(np.where(labels, scores, 1 - scores))


def measures(labels, scores):
    """Returns a dict of measures: `auc`, `log_loss`, `calibration` (mean score over the share of
    positives; 1 is right) and `recall` (share of positives among the tenth that scores highest)."""
    num_top = max(1, round(_TOP * len(scores)))
    top = np.argpartition(scores, len(scores) - num_top)[len(scores) - num_top :]
    return {
        "auc": auc(labels, scores),
        "log_loss": float(log_losses(labels, scores).mean()),
        "calibration": float(scores.mean() / labels.mean()),
        "recall": float(labels[top].sum() / labels.sum()),
    }


def auc_change(labels, pairs):
    """Returns the change of AUC of the second model of pairs, and the error of its mean.

    The error has two parts that add up: of the test examples, which all pairs share (DeLong's
    variance of the mean placement), and of the seeds, by which pairs differ.

    Args:
        labels: Bool `[num_examples]`.
        pairs: List of pairs of scores, one for each seed.

    Returns:
        A dict as of `_change`.
    """
    found = [(placements(labels, one), placements(labels, other)) for one, other in pairs]
    changes = [float(other[0].mean() - one[0].mean()) for one, other in found]
    mean = [np.mean([other[side] - one[side] for one, other in found], axis=0) for side in (0, 1)]
    return _change(changes, sum(part.var(ddof=1) / len(part) for part in mean))


def loss_change(labels, pairs):
    """Returns the same of the log loss."""
    found = [log_losses(labels, other) - log_losses(labels, one) for one, other in pairs]
    mean = np.mean(found, axis=0)
    return _change([float(one.mean()) for one in found], mean.var(ddof=1) / len(mean))


def _change(changes, examples_variance):
    """Returns `mean`, `low` and `high` of its 95% interval, `num_seeds`, and the errors."""
    num = len(changes)
    seeds_variance = float(np.var(changes, ddof=1)) / num if num > 1 else 0.0
    error = math.sqrt(seeds_variance + examples_variance)
    # The seeds' part is known from few: Welch-Satterthwaite's degrees of freedom.
    freedom = math.inf
    if seeds_variance > 0:
        freedom = (num - 1) * (error**2 / seeds_variance) ** 2
    width = t_quantile(freedom) * error
    mean = float(np.mean(changes))
    return {
        "mean": mean,
        "low": mean - width,
        "high": mean + width,
        "num_seeds": num,
        "seeds_error": math.sqrt(seeds_variance),
        "examples_error": math.sqrt(examples_variance),
    }


def t_quantile(freedom):
    """Returns the 97.5% quantile of Student's t, to four digits from one degree of freedom on."""
    normal = 1.959964
    if freedom > 100:
        return normal + (normal**3 + normal) / (4 * freedom)
    low, high = 1.9, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        if _t_tail(middle, freedom) > 0.025:
            low = middle
        else:
            high = middle
    return low


def _t_tail(t, freedom):
    """Returns P(T > t), by the integral over the angle atan(t / sqrt(freedom)), Simpson's rule."""
    begin = math.atan(t / math.sqrt(freedom))
    angles = np.linspace(begin, math.pi / 2, 2001)
    values = np.cos(angles) ** (freedom - 1)
    weights = np.full(len(angles), 2.0)
    weights[1::2], weights[0], weights[-1] = 4, 1, 1
    integral = float(weights @ values) * (angles[1] - angles[0]) / 3
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    return math.exp(log_scale) / math.sqrt(math.pi) * integral


def seeds_needed(change, margin):
    """Returns about how many seeds would tell whether a change is worse than a margin.

    Args:
        change: What `auc_change` gives.
        margin: The loss that is none yet, positive.

    Returns:
        An integer; None where more seeds would not help, because of the test examples.
    """
    room = change["mean"] + margin
    if room <= 0 or change["num_seeds"] < 2:
        return None
    variance = change["seeds_error"] ** 2 * change["num_seeds"]
    left = (room / 2) ** 2 - change["examples_error"] ** 2
    return math.ceil(variance / left) if left > 0 else None
