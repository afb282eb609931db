"""What training would cost: bytes, time and memory, by the models of the pages on distribution.

docs/reference/parameter_servers.md ("Bytes of a step") has the bytes of a worker's step, and
docs/reference/sleeping_rows.md the memory of a policy. Nothing is measured here.
"""

import math

# Bytes beside a row on its way: id, state, and count; of a push likewise.
_PULL_BYTES, _PUSH_BYTES = 8, 12
# Found rows over deferred row updates: measured as 0.70 and 0.84 there, and at most 1.
_CACHED_PER_DEFERRED = 0.7
# Of Adagrad and the like; Adam and the like; by an optimizer's name.
NUM_SLOTS = {"sgd": 0, "momentum": 1, "adagrad": 1, "rmsprop": 1, "adam": 2, "ftrl": 2}
_WITH_CLOCK = ("momentum", "rmsprop", "adam")
# Seconds of a processor for a row that is updated, with its table in memory, docs/inside/engine.md.
_SECONDS_PER_ROW = 1.5e-7


def bytes_per_step(num_lookups, num_rows, dim, deferred=0.0):
    """Returns bytes that a worker's step moves to and from parameter servers.

    Args:
        num_lookups: Of a worker's batch.
        num_rows: Distinct rows among them.
        dim: Length of a row.
        deferred: Share of row updates that are deferred.
    """
    wire, cached = 4 * dim, _CACHED_PER_DEFERRED * deferred
    pulled = (1 - cached) * (wire + _PULL_BYTES)
    return num_rows * (pulled + (1 - deferred) * (wire + _PUSH_BYTES))


def stock_bytes_per_step(num_lookups, num_rows, dim):
    """Returns the same of tf_keras's embedding and optimizers."""
    return (num_lookups + num_rows) * (4 * dim + _PULL_BYTES)


def memory(num_rows, dim, optimizer, popular_share, has_policy):
    """Returns bytes of tables: a dict of `tables`, `slots` and `policy`.

    Args:
        num_rows: List, rows of each table.
        dim: Length of a row.
        optimizer: One of `NUM_SLOTS`.
        popular_share: Of the policy.
        has_policy: Whether there is one.
    """
    total, num_slots = sum(num_rows), NUM_SLOTS[optimizer]
    capacity = sum(min(n, max(4096, math.ceil(popular_share * n))) for n in num_rows)
    return {
        "tables": 4 * total * dim,
        "slots": total * (4 * dim * num_slots + 4 * (optimizer in _WITH_CLOCK)),
        "policy": 4 * total + capacity * (8 * dim + 68) if has_policy else 0,
    }


def seconds_per_step(num_bytes, num_rows, compute_seconds, bandwidth):
    """Returns seconds of a step: its compute, and its bytes at so many bits a second.

    Args:
        num_bytes: Of a worker's step.
        num_rows: Distinct rows of its batch.
        compute_seconds: Of the dense part; known to the user alone.
        bandwidth: Of a worker's link, in bits a second.
    """
    network = 8 * num_bytes / bandwidth if bandwidth else 0.0
    return compute_seconds + num_rows * _SECONDS_PER_ROW + network


def choosing_inputs(base_rate):
    """Returns what leaving out inputs may save at a share of positives.

    By theory, for few positives: with `c` times as many negatives kept as positives of each
    probability, `p (1 + c)` of inputs are kept and `c / (1 + c)` of the information. A first study
    kept half with less than 0.001 of AUC lost at 3% to 6% positives, and lost 0.0016 to 0.0035
    keeping 70% at 25%.

    Args:
        base_rate: Share of positives, or None.

    Returns:
        Dict: `base_rate`, `kept`, a share of inputs worth trying, 1 where none is, and `why`.
    """
    if base_rate is None:
        return {"base_rate": None, "kept": 1.0, "why": "the log has no label"}
    rate = min(base_rate, 1 - base_rate)
    if rate <= 0:
        return {"base_rate": base_rate, "kept": 1.0, "why": "all labels are the same"}
    if rate < 0.1:
        why = "few positives: half of the inputs carry nearly all of the information"
        return {"base_rate": base_rate, "kept": 0.5, "why": why}
    if rate < 0.2:
        why = "in between: measure it"
        return {"base_rate": base_rate, "kept": 0.7, "why": why}
    why = "positives are common: leaving out inputs costs quality"
    return {"base_rate": base_rate, "kept": 1.0, "why": why}
