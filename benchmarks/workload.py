"""The embedding step's input, the same for every subject, and how a subject runs and reports.

Needs NumPy alone, so that a peer in another environment can import it.
"""

import argparse
import json
import resource
import sys
import time

import numpy as np

NUM_BATCHES = 8


def arguments():
    """Returns a subject's parsed command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rule", required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--dim", type=int, required=True)
    parser.add_argument("--lookups", type=int, default=53_248)
    parser.add_argument("--zipf", type=float, default=1.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def id_batches(args):
    """Returns int64 `[NUM_BATCHES, lookups]`: a bounded Zipf over rows in random order."""
    rng = np.random.default_rng(args.seed)
    weights = np.arange(1, args.rows + 1, dtype=np.float64) ** -args.zipf
    cumulative = np.cumsum(weights)
    ranks = np.searchsorted(cumulative / cumulative[-1], rng.random((NUM_BATCHES, args.lookups)))
    row_of_rank = rng.permutation(args.rows)
    return row_of_rank[np.minimum(ranks, args.rows - 1)]


def upstream_gradient(args):
    """Returns float32 `[lookups, dim]`, small enough that no rule runs away."""
    rng = np.random.default_rng(args.seed + 1)
    return rng.standard_normal((args.lookups, args.dim), dtype=np.float32) * 1e-3


def peak_memory():
    """Returns the process's largest resident size so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(args, step, batches):
    """Times `step(batch)`, which must return when it is done.

    Returns:
        List of seconds, one per step.
    """
    for i in range(args.warmup):
        step(batches[i % len(batches)])
    seconds = []
    for i in range(args.steps):
        start = time.perf_counter()
        step(batches[i % len(batches)])
        seconds.append(time.perf_counter() - start)
    return seconds


def report(args, seconds, **more):
    """Prints the subject's result as one JSON line."""
    line = vars(args) | {"seconds": seconds, "peak_memory": peak_memory()} | more
    print(json.dumps(line))
    sys.stdout.flush()
