"""What choosing inputs must compute, in NumPy and float64, an input at a time."""

import math

import numpy as np


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def keep_probability(label, log_odds, c, least=1e-3):
    """`min(1, c |label - p|)`, of at least `least`."""
    return min(1.0, max(least, c * abs(label - sigmoid(log_odds))))


def offset(log_odds, c):
    ones, zeros = (keep_probability(label, log_odds, c) for label in (1, 0))
    return math.log(ones / zeros)


def c_for(distances, keep):
    """Bisects for the `c` at which the mean of `min(1, c * distance)` is `keep`."""
    low, high = 1e-9, 1e9
    for _ in range(200):
        middle = math.sqrt(low * high)
        if np.mean(np.minimum(1, middle * np.asarray(distances, np.float64))) < keep:
            low = middle
        else:
            high = middle
    return low


class Pilot:
    """Adagrad on the sum of a batch's gradients per weight; ids of a field count as their mean."""

    def __init__(self, input_dims, num_dense=0, rate=0.1, accumulator=0.1):
        shapes = {**input_dims, "bias": 1, "dense": num_dense}
        self.weights = {name: np.zeros(size) for name, size in shapes.items()}
        self.sums = {name: np.full(size, accumulator) for name, size in shapes.items()}
        self.fields, self.rate = list(input_dims), rate

    def _features(self, bags, dense):
        """Yields a name, a place and a value for all that an input has."""
        yield "bias", 0, 1.0
        for name, bag in zip(self.fields, bags, strict=True):
            for id_ in bag:
                yield name, id_, 1 / len(bag)
        for place, value in enumerate(dense):
            yield "dense", place, value

    def log_odds(self, bags, dense=()):
        return sum(self.weights[n][i] * value for n, i, value in self._features(bags, dense))

    def learn(self, inputs, labels, weights=None, dense=None):
        """Learns a batch: a list of bags by field per input."""
        weights = np.ones(len(labels)) if weights is None else weights
        dense = [()] * len(labels) if dense is None else dense
        grads = {name: np.zeros_like(values) for name, values in self.weights.items()}
        for bags, label, weight, features in zip(inputs, labels, weights, dense, strict=True):
            grad = weight * (sigmoid(self.log_odds(bags, features)) - label)
            for name, place, value in self._features(bags, features):
                grads[name][place] += grad * value
        for name, grad in grads.items():
            self.sums[name] += grad**2
            self.weights[name] -= self.rate * grad / (np.sqrt(self.sums[name]) + 1e-7)
