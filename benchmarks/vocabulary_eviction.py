"""Which rows should a full vocabulary take back? A simulation of the map alone.

    python benchmarks/vocabulary_eviction.py --log churn
    python benchmarks/vocabulary_eviction.py --log diginetica --data-dir DIR

Steps of 1,024 examples of the logs of vocabulary_quality.py (of diginetica the candidates alone).
Lookups are counted exactly, which a product could not; admission counts anew after a row is lost.
Prints, over the last two thirds of the steps, the share of lookups that find a row, the same where
a row counts by the steps that it has learned in, up to 8, and how many ids got a row.
"""

import argparse

import numpy as np
import vocabulary_quality

HALVED_EVERY = 100  # steps
# Name: lookups until a row is given, the value of a row by its age and count; the least goes.
POLICIES = {
    "recency, at once": (1, lambda age, count: -age),
    "recency, at the 2nd": (2, lambda age, count: -age),
    "recency, at the 4th": (4, lambda age, count: -age),
    "recency by count, at once": (1, lambda age, count: -age / np.maximum(count, 1)),
    "recency by count, at the 2nd": (2, lambda age, count: -age / np.maximum(count, 1)),
    "count, at once": (1, lambda age, count: count - 1e-6 * age),
    "count, at the 2nd": (2, lambda age, count: count - 1e-6 * age),
}


def steps_of(args):
    """Returns the ids of each step, numbered from 0, and how many there are."""
    if args.log == "churn":
        parts = [ids[0] for ids, _ in vocabulary_quality.churn(0)]
    else:
        parts = [ids[1] for ids, _ in vocabulary_quality.diginetica(0, args.data_dir)]
    ids = np.concatenate(parts)
    known, ids = np.unique(ids, return_inverse=True)
    ids = ids.reshape(-1, parts[0].shape[1])
    return [ids[i : i + 1024].ravel() for i in range(0, len(ids) - 1023, 1024)], len(known)


def simulate(steps, num_ids, capacity, admit_after, value_of):
    last, learned = np.zeros([2, num_ids], np.int64)
    counts, waiting = np.zeros([2, num_ids])
    has_row = np.zeros(num_ids, bool)
    num_lookups = num_known = num_learned = num_admitted = 0
    for step, ids in enumerate(steps, 1):
        ids, times = np.unique(ids, return_counts=True)
        is_known = has_row[ids]
        known, unknown = ids[is_known], ids[~is_known]
        if step > len(steps) // 3:
            num_lookups += times.sum()
            num_known += times[is_known].sum()
            num_learned += (times[is_known] * np.minimum(learned[known], 8) / 8).sum()
        last[known] = step
        learned[known] += 1
        counts[ids] += times
        waiting[unknown] += times[~is_known]
        if step % HALVED_EVERY == 0:
            counts /= 2
        new = unknown[waiting[unknown] >= admit_after]
        num_free = capacity - has_row.sum()
        rows = np.flatnonzero(has_row & (last < step))
        values = value_of(step - last[rows], counts[rows])
        gone = rows[np.argsort(values, kind="stable")][: max(0, len(new) - num_free)]
        has_row[gone], waiting[gone] = False, 0
        new = new[: num_free + len(gone)]
        has_row[new], last[new], learned[new], waiting[new] = True, step, 1, 0
        num_admitted += len(new)
    return num_known / num_lookups, num_learned / num_lookups, num_admitted


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", choices=["churn", "diginetica"], default="churn")
    parser.add_argument("--data-dir")
    parser.add_argument("--capacities", type=int, nargs="*", default=[5000, 10_000])
    args = parser.parse_args()
    steps, num_ids = steps_of(args)
    print("| rows | taken back by | found | learned | rows given |\n|---|---|---|---|---|")
    for capacity in args.capacities:
        for name, (admit_after, value_of) in POLICIES.items():
            found, learned, num = simulate(steps, num_ids, capacity, admit_after, value_of)
            print(f"| {capacity} | {name} | {found:.3f} | {learned:.3f} | {num} |", flush=True)


if __name__ == "__main__":
    main()
