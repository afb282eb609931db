"""Is a step slower than it was? Two builds of the package take turns, a few steps each.

    git worktree add ../before COMMIT       # and `make setup` there
    python benchmarks/two_builds.py --before ../before/.venv/bin/python --rule Adam

Each build trains the same table with the same ids (Zipf 1.1) and gradients in a process of its own.
With `--bag`, of that many ids, the lookup of bags and its gradient are part of the step. They take
turns, so that a busy machine slows both alike. Prints the median of each build's turns, and the
median of the ratios of turns that follow each other, with the 10th and 90th percentile.
"""

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

STEPS_A_TURN, WARM_UP, NUM_BATCHES = 10, 60, 20


def main():
    args = arguments()
    if args.serve:
        serve(args)
        return
    print(f"{'table':>14} {'lookups':>8} {'before':>9} {'now':>9}  now / before (10% to 90%)")
    for table in args.tables:
        before, now = turns(args, table)
        low, ratio, high = np.percentile(np.divide(now, before), [10, 50, 90])
        medians = f"{np.median(before):6.2f} ms {np.median(now):6.2f} ms"
        print(f"{table:>14} {args.lookups:>8} {medians}  {ratio:.2f} ({low:.2f} to {high:.2f})")


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--before", metavar="PYTHON", help="the Python that has the other build")
    add("--now", metavar="PYTHON", default=sys.executable, help="by default this one")
    add("--tables", nargs="+", default=["1000000x32", "4000000x16"], metavar="ROWSxDIM")
    add("--rule", default="Adam", help="a Keras optimizer with a sparse rule")
    add("--lookups", type=int, default=53_248)
    add("--bag", type=int, default=0, help="lookups summed to one vector; 0: the update alone")
    add("--threads", type=int, default=2)
    add("--turns", type=int, default=150)
    add("--serve", metavar="ROWSxDIM", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.serve and not args.before:
        parser.error("--before PYTHON is needed: the Python of the build to compare with")
    return args


def turns(args, table):
    """Returns the milliseconds of a step in each turn of both builds."""
    options = ["--rule", args.rule, "--lookups", args.lookups, "--threads", args.threads]
    options += ["--bag", args.bag]
    command = [os.path.abspath(__file__), "--serve", table, *map(str, options)]
    # Not in the checkout, whose package would be found before the one that is installed.
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            subprocess.Popen(
                [os.path.abspath(python), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=folder,
                env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
            )
            for python in (args.before, args.now)
        ]
        times = ([], [])
        try:
            for turn in range(args.turns + 1):
                # Who went last goes first.
                for i in (0, 1) if turn % 2 else (1, 0):
                    processes[i].stdin.write("\n")
                    processes[i].stdin.flush()
                    answer = processes[i].stdout.readline()
                    if not answer:
                        sys.exit(f"{(args.before, args.now)[i]} ended; see its error above.")
                    if turn:
                        times[i].append(json.loads(answer))
        finally:
            for process in processes:
                process.kill()
                process.wait()
    return times


def serve(args):
    """Trains a few steps for each line that comes, and answers with the milliseconds of one."""
    import keras
    import tensorflow as tf

    import tf_slipstream as slipstream

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    num_rows, dim = map(int, args.serve.split("x"))
    random = np.random.default_rng(0)
    shares = np.cumsum(1 / np.arange(1, num_rows + 1) ** 1.1)
    rows = random.permutation(num_rows)
    batches = [
        tf.constant(rows[np.searchsorted(shares, random.random(args.lookups) * shares[-1])])
        for _ in range(NUM_BATCHES)
    ]
    num_grads = args.lookups // max(args.bag, 1)
    grads = tf.constant(random.normal(scale=1e-3, size=(num_grads, dim)), tf.float32)
    combiner = "sum" if args.bag else None
    # The layer of builds before bags were summed in training had no such argument.
    parameters = inspect.signature(slipstream.SlipstreamEmbedding.call).parameters
    as_in_fit = {"training": True} if "training" in parameters else {}
    layer = slipstream.SlipstreamEmbedding(num_rows, dim, combiner=combiner, name="table")
    layer.build(None)
    optimizer = slipstream.SlipstreamOptimizer(getattr(keras.optimizers, args.rule)(1e-3))
    optimizer.build([layer.embeddings])
    shape = tf.constant([num_rows, dim])

    @tf.function
    def train(ids):
        gradient = tf.IndexedSlices(grads, ids, shape)
        if args.bag:
            with tf.GradientTape() as tape:
                bags = tf.reshape(ids[: num_grads * args.bag], [-1, args.bag])
                sums = layer(bags, **as_in_fit)
            gradient = tape.gradient(sums, layer.embeddings, grads)
        optimizer.apply_gradients([(gradient, layer.embeddings)])

    def step(number):
        begin = time.perf_counter()
        train(batches[number % NUM_BATCHES])
        optimizer.iterations.numpy()
        return (time.perf_counter() - begin) * 1e3

    for number in range(WARM_UP):
        step(number)
    for turn, _ in enumerate(sys.stdin):
        first = turn * STEPS_A_TURN
        print(np.median([step(first + i) for i in range(STEPS_A_TURN)]), flush=True)


if __name__ == "__main__":
    main()
