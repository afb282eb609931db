"""What a step of each update rule leaves in a table, in NumPy and float64, row by row.

Libraries agree on the rules but not on where epsilon stands or where Adagrad begins: `Convention`.
"""

import dataclasses

import numpy as np

LEARNING_RATE = 0.01
BETA_1, BETA_2 = 0.9, 0.999
RULES = ("sgd", "adagrad", "row_wise_adagrad", "adam")


@dataclasses.dataclass(frozen=True)
class Convention:
    """A library's own definition of the rules.

    Attributes:
        initial_accumulator: What Adagrad's accumulators begin with.
        epsilon: Small float against division by zero.
        epsilon_under_root: Whether Adagrad divides by `sqrt(accumulator + epsilon)`, rather than by
            `sqrt(accumulator) + epsilon`.
        sums_repeats: Whether gradients of an id that repeats in a batch are summed before the rule.
    """

    initial_accumulator: float = 0.1
    epsilon: float = 1e-7
    epsilon_under_root: bool = False
    sums_repeats: bool = True


def train(rule, convention, table, ids, upstream, num_steps):
    """Returns the table after some steps with one batch.

    Args:
        rule: One of `RULES`.
        convention: `Convention`.
        table: Float64 `[num_rows, dim]`, left as it is.
        ids: Int `[num_bags, bag]`.
        upstream: Float `[num_bags, dim]`, the gradient of each bag's sum.
        num_steps: Integer.
    """
    table = table.copy()
    grads = np.zeros_like(table)
    np.add.at(grads, ids, upstream[:, None, :].astype(np.float64))
    for row in np.unique(ids):
        table[row] += sum(_changes(rule, convention, grads[row], num_steps))
    return table


def _changes(rule, convention, grad, num_steps):
    """Yields what each step adds to a row whose summed gradient is the same every time."""
    accumulator = np.full_like(grad, convention.initial_accumulator)
    mean, square = np.zeros_like(grad), np.zeros_like(grad)
    for step in range(1, num_steps + 1):
        if rule == "sgd":
            yield -LEARNING_RATE * grad
        elif rule == "adam":
            mean = BETA_1 * mean + (1 - BETA_1) * grad
            square = BETA_2 * square + (1 - BETA_2) * grad**2
            rate = LEARNING_RATE * np.sqrt(1 - BETA_2**step) / (1 - BETA_1**step)
            yield -rate * mean / (np.sqrt(square) + convention.epsilon)
        else:
            accumulator += grad**2 if rule == "adagrad" else np.mean(grad**2)
            inside = convention.epsilon if convention.epsilon_under_root else 0.0
            outside = convention.epsilon - inside
            yield -LEARNING_RATE * grad / (np.sqrt(accumulator + inside) + outside)
