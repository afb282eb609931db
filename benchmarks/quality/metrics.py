"""How good scores are."""

import numpy as np


def area_under_curve(labels, scores):
    """Returns the exact AUC: the share of (click, no click) pairs in the right order, ties half."""
    order = np.argsort(scores, kind="stable")
    _, first, count = np.unique(scores[order], return_index=True, return_counts=True)
    ranks = np.repeat(first + (count + 1) / 2, count)
    clicks = labels[order] > 0.5
    num_clicks = int(clicks.sum())
    num_others = len(labels) - num_clicks
    if not num_clicks or not num_others:
        raise ValueError(f"AUC needs both labels; {num_clicks} of {len(labels)} are clicks.")
    return float(
        (ranks[clicks].sum() - num_clicks * (num_clicks + 1) / 2) / num_clicks / num_others
    )


def log_loss(labels, logits):
    """Returns the mean binary cross-entropy of logits, in float64."""
    labels, logits = np.asarray(labels, np.float64), np.asarray(logits, np.float64)
    return float(np.mean(np.logaddexp(0, logits) - labels * logits))


def recall_at(num_best, scores, known, wanted):
    """Returns the mean share of wanted items among each user's best ones.

    Args:
        num_best: Length of the list that is judged.
        scores: Float array `[num_users, num_items]`; changed by the call.
        known: Per user the items seen in training, which are not ranked.
        wanted: Per user the items to find, at least one.
    """
    shares = []
    for row, seen, items in zip(scores, known, wanted, strict=True):
        row[seen] = -np.inf
        best = np.argpartition(-row, num_best)[:num_best]
        shares.append(np.isin(best, items).sum() / min(num_best, len(items)))
    return float(np.mean(shares))
