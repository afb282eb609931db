"""How unevenly ids are looked up, from the number of lookups of each."""

import numpy as np

HOT_SHARES = (0.001, 0.01, 0.1)


def skew(counts):
    """Returns figures of a field's skew.

    Args:
        counts: Integers, the lookups of each distinct id; at least 1 each.

    Returns:
        Dict: `zipf_exponent` (see `zipf_exponent`), `gini`, and `hot_shares`, a dict from each of
        `HOT_SHARES` to the share of lookups that go to the hottest such share of ids (at least
        one).
    """
    counts = np.sort(np.asarray(counts, np.float64))[::-1]
    total = counts.sum()
    cumulative = np.cumsum(counts) / total
    places = np.arange(1, len(counts) + 1)
    # Of the ascending order, by the cumulative shares of the descending one.
    gini = float((2 * cumulative.sum() - 1) / len(counts) - 1)
    return {
        "zipf_exponent": zipf_exponent(counts),
        "gini": gini,
        "hot_shares": {
            str(share): float(cumulative[max(1, round(share * len(places))) - 1])
            for share in HOT_SHARES
        },
    }


def zipf_exponent(counts):
    """Returns the exponent `s` of `P(rank r) ~ r^-s` that fits best, by maximum likelihood.

    Over the ranks with 10 lookups or more: the order of rarer ids is chance.

    Args:
        counts: Float `[num_ids]`, descending.
    """
    num = int((counts >= 10).sum())
    if num < 3:
        return None
    counts, logs = counts[:num], np.log(np.arange(1, num + 1))
    wanted = float(counts @ logs / counts.sum())
    low, high = 0.0, 10.0
    for _ in range(50):
        middle = (low + high) / 2
        weights = np.exp(-middle * logs)
        if float(weights @ logs / weights.sum()) > wanted:
            low = middle
        else:
            high = middle
    return low
