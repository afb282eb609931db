"""Learning rates: for each data set and optimizer that of the best stock Keras model.

Chosen on a part of the training data by `python benchmarks/parity.py --tune`, of `CANDIDATES`.
"""

_ADAPTIVE = (3e-4, 1e-3, 3e-3, 1e-2)
_CLICKS = {
    "sgd": (0.03, 0.1, 0.3, 1.0),
    "momentum": (0.003, 0.01, 0.03, 0.1, 0.3),
    "nesterov": (0.003, 0.01, 0.03, 0.1, 0.3),
    "adagrad": (0.01, 0.03, 0.1, 0.3),
    "adam": _ADAPTIVE,
    "adamw": _ADAPTIVE,
    "amsgrad": _ADAPTIVE,
    "rmsprop": (*_ADAPTIVE, 3e-2),
    "rmsprop_momentum": (1e-4, 3e-4, 1e-3, 3e-3),
    "ftrl": (0.03, 0.1, 0.3, 1.0),
}
# Most rows see few examples, and the loss is a mean over many candidates.
_RANKING = {
    "sgd": (100.0, 300.0, 1000.0, 3000.0),
    "momentum": (10.0, 30.0, 100.0, 300.0),
    "nesterov": (10.0, 30.0, 100.0, 300.0),
    "adagrad": (0.1, 0.3, 1.0, 3.0),
    "adam": (1e-3, 3e-3, 1e-2, 3e-2),
    "adamw": (1e-3, 3e-3, 1e-2, 3e-2),
    "amsgrad": (1e-3, 3e-3, 1e-2, 3e-2),
    "rmsprop": (3e-3, 1e-2, 3e-2, 1e-1),
    "rmsprop_momentum": (1e-3, 3e-3, 1e-2, 3e-2),
    "ftrl": (0.3, 1.0, 3.0),
}
CANDIDATES = {
    "long_tail": _CLICKS,
    "criteo80k": _CLICKS,
    "gowalla": _RANKING,
    "diginetica": _RANKING
    | {"sgd": (10.0, 30.0), "momentum": (1.0, 3.0, 10.0)}
    | {"nesterov": (1.0, 3.0, 10.0)},
}
# What decides. In the ranking sets the log loss is a bias's, which learns at a table's rate.
MEASURES = {"long_tail": "log_loss", "criteo80k": "log_loss", "gowalla": "auc", "diginetica": "auc"}

# Of the synthetic logs those that ours, without a policy, learned best by.
RATES = {
    "long_tail": {
        "sgd": 0.3,
        "momentum": 0.1,
        "nesterov": 0.03,
        "adagrad": 0.03,
        "adam": 0.003,
        "adamw": 0.003,
        "amsgrad": 0.003,
        "rmsprop": 0.01,
        "rmsprop_momentum": 0.001,
        "ftrl": 0.3,
    },
    "criteo80k": {
        "sgd": 0.3,
        "momentum": 0.03,
        "nesterov": 0.03,
        "adagrad": 0.03,
        "adam": 0.001,
        "adamw": 0.001,
        "amsgrad": 0.001,
        "rmsprop": 0.01,
        "rmsprop_momentum": 0.0003,
        "ftrl": 0.1,
    },
    "gowalla": {
        "sgd": 1000.0,
        "momentum": 100.0,
        "nesterov": 100.0,
        "adagrad": 1.0,
        "adam": 0.01,
        "adamw": 0.01,
        "amsgrad": 0.01,
        "rmsprop": 0.1,
        "rmsprop_momentum": 0.01,
        "ftrl": 1.0,
    },
    "diginetica": {
        "sgd": 10.0,
        "momentum": 10.0,
        "nesterov": 10.0,
        "adagrad": 0.3,
        "adam": 0.01,
        "adamw": 0.01,
        "amsgrad": 0.01,
        "rmsprop": 0.01,
        "rmsprop_momentum": 0.001,
        "ftrl": 1.0,
    },
    "synthetic": {"adam": 2e-3, "adagrad": 0.05, "sgd": 0.3},
    "changing": {"adam": 2e-3, "adagrad": 0.05, "sgd": 0.3},
    "seasonal": {"adam": 2e-3, "adagrad": 0.05, "sgd": 0.3},
    "trending": {"adam": 2e-3, "adagrad": 0.05, "sgd": 0.3},
    "drifting": {"adam": 2e-3, "adagrad": 0.05, "sgd": 0.3},
}
