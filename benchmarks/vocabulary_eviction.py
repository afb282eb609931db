"""Which rows should a full vocabulary take back? A simulation of the map alone.

    python benchmarks/vocabulary_eviction.py --log churn
    python benchmarks/vocabulary_eviction.py --log diginetica --data-dir DIR

Steps of 1,024 examples of the logs of vocabulary_quality.py (of diginetica the candidates alone).
A row counts the steps that look it up, up to a bound; admission counts anew after a row is lost.
Prints, over the last two thirds of the steps, the share of lookups that find a row, the same where
a row counts by the steps that it has learned in, up to 8, and how many ids got a row.
"""

import argparse

import numpy as np
import vocabulary_quality

# By what a row's age is divided; of the greatest quotient it is the coldest. The product has the
# third.
RULES = {
    "age": lambda count: 1,
    "age / count, up to 7": lambda count: np.minimum(count, 7),
    "age / count, up to 31": lambda count: np.minimum(count, 31),
    "age / count": lambda count: count,
    "age / count^2, up to 15": lambda count: np.minimum(count, 15) ** 2,
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


def simulate(steps, num_ids, capacity, admit_after, divisor_of):
    last, learned, waiting = np.zeros([3, num_ids], np.int64)
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
        waiting[unknown] += times[~is_known]
        new = unknown[waiting[unknown] >= admit_after]
        num_free = capacity - has_row.sum()
        rows = np.flatnonzero(has_row & (last < step))
        coldness = (step - last[rows]) / divisor_of(learned[rows])
        gone = rows[np.argsort(-coldness, kind="stable")][: max(0, len(new) - num_free)]
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
    print("| rows | the coldest by | `admit_after` | found | learned | rows given |")
    print("|---|---|---|---|---|---|")
    for capacity in args.capacities:
        for name, divisor_of in RULES.items():
            for admit_after in (1, 2):
                result = simulate(steps, num_ids, capacity, admit_after, divisor_of)
                found, learned, num = result
                shown = f"{found:.3f} | {learned:.3f} | {num}"
                print(f"| {capacity} | {name} | {admit_after} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
