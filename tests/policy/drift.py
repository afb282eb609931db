"""The oracle's drift metrics: how far a row is from its snapshot."""

import math

import numpy as np


def noise(num_updates, correlation):
    """Returns |sum of steps|^2 over the sum of |step|^2 in a walk whose steps resemble the last."""
    n, b = num_updates, correlation
    return 1 + 2 * sum((1 - i / n) * b**i for i in range(1, n))


def drift(metric, row, snapshot, path, num_updates, correlation):
    """Returns how far a row has moved.

    Args:
        metric: A `drift_metric`.
        row, snapshot: The row `[dim]` now and at the begin of its window.
        path: The sum of |step|^2 since then; for "loss" of the loss won.
        num_updates: The window's, at least 1.
        correlation: How much of an update is the update before.
    """
    net = row - snapshot
    length = math.sqrt(np.dot(net, net))
    if metric == "coherence":
        return 0.0 if path == 0 else np.dot(net, net) / (path * noise(num_updates, correlation))
    if metric == "loss":
        return max(0.0, path) / num_updates
    if metric == "mean_abs":
        return np.mean(np.abs(net))
    if metric == "l2":
        return length
    from_length = math.sqrt(np.dot(snapshot, snapshot))
    if from_length == 0:
        return math.inf if length > 0 else 0.0
    return length / from_length
