"""The embedding step's input, the same for every subject, and how a subject runs and reports.

Needs NumPy alone, so that a peer in another environment can import it.
"""

import argparse
import gc
import importlib.metadata
import json
import resource
import sys
import time

import equations
import numpy as np

NUM_BATCHES = 8
MIN_STEPS = 3


def arguments(argv=None):
    """Returns a subject's parsed command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--subject", required=True)
    parser.add_argument("--rule", required=True, choices=equations.RULES)
    parser.add_argument("--cardinalities", type=int, nargs="+", required=True, help="rows a table")
    parser.add_argument("--dim", type=int, required=True)
    parser.add_argument("--lookups", type=int, default=53_248, help="of all tables together")
    parser.add_argument("--bag", type=int, default=1, help="lookups summed to one vector")
    parser.add_argument("--zipf", type=float, default=1.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=4 * NUM_BATCHES)
    parser.add_argument("--max-seconds", type=float, default=20.0, help="then no more steps")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def num_bags(args):
    """Returns how many bags each table gets in a step."""
    return max(1, args.lookups // (len(args.cardinalities) * args.bag))


def id_batches(args):
    """Returns int64 `[NUM_BATCHES, num_tables, num_bags, bag]`: a bounded Zipf per table."""
    rng = np.random.default_rng(args.seed)
    shape = (NUM_BATCHES, num_bags(args), args.bag)
    tables = [zipf_ids(rng, num_rows, args.zipf, shape) for num_rows in args.cardinalities]
    return np.ascontiguousarray(np.stack(tables, axis=1))


def zipf_ids(rng, num_rows, exponent, shape):
    """Returns int64 ids with `P(id of rank r) ~ r^-exponent`; which id has which rank is random."""
    cumulative = np.cumsum(np.arange(1, num_rows + 1, dtype=np.float64) ** -exponent)
    ranks = np.searchsorted(cumulative / cumulative[-1], rng.random(shape))
    return rng.permutation(num_rows)[np.minimum(ranks, num_rows - 1)]


def upstream_gradient(args):
    """Returns float32 `[num_tables, num_bags, dim]`, small enough that no rule runs away."""
    rng = np.random.default_rng(args.seed + 1)
    shape = (len(args.cardinalities), num_bags(args), args.dim)
    return rng.standard_normal(shape, dtype=np.float32) * 1e-3


def loop_seconds():
    """Returns how long a fixed loop of Python takes: the speed of the processor at this moment.

    A virtual core whose physical core works for others too runs at half its speed, and nothing that
    the system counts shows it.
    """
    taken = []
    for _ in range(9):
        start, total = time.perf_counter(), 0
        for i in range(20_000):
            total += i
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]


def peak_memory():
    """Returns the process's largest resident size so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(args, step, batches):
    """Times `step(batch)`, which must return when it is done.

    It stops after `args.max_seconds`, warm-up counted apart, but not before `MIN_STEPS` steps. The
    warm-up may take half as long, without the first step, which traces and arranges memory.

    Returns:
        List of seconds, one per step.
    """
    step(batches[0])
    start = time.perf_counter()
    for i in range(args.warmup):
        step(batches[i % len(batches)])
        if time.perf_counter() - start > args.max_seconds / 2:
            break
    # Python's collector would go through all objects of a framework every few hundred steps.
    gc.collect()
    gc.freeze()
    seconds = []
    while len(seconds) < args.steps:
        start = time.perf_counter()
        step(batches[len(seconds) % len(batches)])
        seconds.append(time.perf_counter() - start)
        if len(seconds) >= MIN_STEPS and sum(seconds) > args.max_seconds:
            break
    return seconds


def report(args, seconds, **more):
    """Prints the subject's result as one JSON line."""
    print(json.dumps(vars(args) | {"seconds": seconds, "peak_memory": peak_memory()} | more))
    sys.stdout.flush()


def check(make_step, args):
    """Fails unless two steps on small tables leave what the subject's equation says."""
    small = argparse.Namespace(**vars(args))
    small.cardinalities = [50, 30, 4][: len(args.cardinalities)]
    small.dim, small.bag = 8, min(args.bag, 3)
    small.lookups = 24 * len(small.cardinalities) * small.bag
    subject = make_step(small)
    convention = subject.convention
    rng = np.random.default_rng(3)
    shape = (24, small.bag)
    ids = [rng.integers(num_rows, size=shape) for num_rows in small.cardinalities]
    if not convention.sums_repeats:
        # Its update of an id that repeats is not that of the equation: it gets distinct ones.
        small.lookups = 4 * len(small.cardinalities)
        small.bag = 1
        ids = [rng.permutation(num_rows)[:4, None] for num_rows in small.cardinalities]
        subject = make_step(small)
    upstream = [rng.standard_normal((len(i), small.dim)).astype(np.float32) for i in ids]
    subject.set_upstream(np.stack(upstream))
    batch = subject.prepare(np.stack(ids))
    before = [table.astype(np.float64) for table in subject.tables()]
    for _ in range(2):
        subject.step(batch)
    for table, old, table_ids, gradient in zip(subject.tables(), before, ids, upstream):
        expected = equations.train(args.rule, convention, old, table_ids, gradient, num_steps=2)
        np.testing.assert_allclose(table, expected, rtol=1e-4, atol=2e-6)
        assert not np.array_equal(table, old), "the step changed nothing"


def main(subjects, packages):
    """Checks, times and reports the subject that the command line names.

    Args:
        subjects: Dict from names to classes, made from `args`, with `convention`,
            `set_upstream(array)`, `prepare(ids)`, `step(batch)` and `tables()`.
        packages: Names of the distributions whose versions belong in the result.
    """
    args = arguments()
    make_step = subjects[args.subject]
    check(make_step, args)
    ids = id_batches(args)
    memory_before = peak_memory()
    subject = make_step(args)
    subject.set_upstream(upstream_gradient(args))
    batches = [subject.prepare(batch) for batch in ids]
    loops = [loop_seconds()]
    seconds = measure(args, subject.step, batches)
    loops.append(loop_seconds())
    first = ids[0]
    report(
        args,
        seconds,
        memory_before=memory_before,
        loop_seconds=loops,
        distinct=sum(len(np.unique(table)) for table in first) / first.size,
        versions={package: version(package) for package in packages},
        convention=vars(subject.convention),
    )


def version(package):
    """Returns the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
