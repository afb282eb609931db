"""How the hottest ids of a field change from one period of a log to the next."""

import numpy as np

# Below, chance decides which ids are the hottest.
_MIN_HOT = 10
_MOST_HOT = 20_000
_FALL, _RETURN = 0.1, 0.1


def hottest(counts):
    """Returns places of the hottest 1% of what has lookups, sorted; None where these are too few.

    Args:
        counts: Integers, of each row.
    """
    places = np.flatnonzero(counts)
    num_hot = min(_MOST_HOT, len(places) // 100)
    if num_hot < _MIN_HOT:
        return None
    hot = np.argpartition(counts[places], len(places) - num_hot)[len(places) - num_hot :]
    return np.sort(places[hot])


def overlap_of_halves(counts, of_half):
    """Returns the overlap of the hottest of two halves of a period, as much as chance leaves.

    Args:
        counts: Integers, of each row in the period.
        of_half: The same in a half of its batches, spread over all of it.

    Returns:
        A share, or None where too few rows tell.
    """
    halves = hottest(of_half), hottest(counts - of_half)
    return None if any(one is None for one in halves) else _overlap(*halves)


def movement(hot_sets, within=()):
    """Says how the hot set moves over time.

    Args:
        hot_sets: List with what `hottest` gave for each period, in order.
        within: What `overlap_of_halves` gave for periods.

    Returns:
        Dict: `overlap_next` and `overlap_last`, the share of a period's hottest 1% that are among
        those of the next period, on average, and of the last period for the first; `by_lag`, the
        mean overlap of periods that are 1, 2, ... apart; and `kind`: "steady", "trending" (what was
        hot does not come back), "seasonal" (it comes back after some periods, `season`), or None
        where too little is known.
    """
    sets = [one for one in hot_sets if one is not None]
    if len(sets) < 3 or len(sets) < len(hot_sets) / 2:
        return {"overlap_next": None, "overlap_last": None, "by_lag": [], "kind": None}
    by_lag = [
        float(np.mean([_overlap(sets[i], sets[i + lag]) for i in range(len(sets) - lag)]))
        for lag in range(1, len(sets))
    ]
    kind, season = "steady", None
    # Small sets change by chance.
    chance = 1 / np.sqrt(min(map(len, sets)))
    # The longest lags have one or two pairs each.
    for lag in range(2, len(by_lag) - 1):
        dip = min(by_lag[: lag - 1])
        if by_lag[lag - 1] - dip > _RETURN + chance and by_lag[lag - 1] >= by_lag[lag]:
            kind, season = "seasonal", lag
            break
    # It may have changed wholly by the next period.
    near = [by_lag[0], *(share for share in within if share is not None)]
    near = max(by_lag[0], float(np.mean(near)))
    if kind == "steady" and near - float(np.mean(by_lag[-3:])) > _FALL + chance:
        kind = "trending"
    found = {"overlap_next": by_lag[0], "overlap_last": by_lag[-1], "by_lag": by_lag, "kind": kind}
    return found | ({"season": season} if season else {})


def _overlap(one, other):
    return len(np.intersect1d(one, other, assume_unique=True)) / min(len(one), len(other))
