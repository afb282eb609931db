"""What a staleness policy costs and gains in a step: gradient and update, without the lookup.

    python benchmarks/sleeping_step.py
    python benchmarks/sleeping_step.py --table 10000000x16 --rule Adam

Four tables of one process, alike but for their policy, take the same steps in turns, so that a busy
machine slows all of them alike:

    none      policy=None
    awake     a policy under which no row is stale: the cost of counting
    skipped   half of the lookups are skipped
    deferred  the same are deferred, but for a step in `--period`, in which they are applied

Prints the median of each and its ratio to `none`, and appends a JSON line to
results/sleeping_step.jsonl.
"""

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import machine
import numpy as np
import tensorflow as tf
import tqdm
import workload

import tf_slipstream as slipstream
from tf_slipstream.state.schema import POLICY_STATE, POOL_INTS

NEVER = 1 << 40
VARIANTS = ("none", "awake", "skipped", "deferred")


def main():
    args = arguments()
    os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(args.threads)
    print(json.dumps(machine.describe()))
    num_rows, dim = map(int, args.table.split("x"))
    rng = np.random.default_rng(0)
    ids = workload.zipf_ids(rng, num_rows, args.zipf, (workload.NUM_BATCHES, args.lookups))
    grads = tf.constant(rng.normal(size=(args.lookups, dim)).astype(np.float32) * 1e-3)
    popular = stale_rows(ids, args, rng)
    batches = [tf.constant(one) for one in ids]
    steps = {name: make_step(name, num_rows, dim, popular, grads, args) for name in args.variants}
    seconds = {name: [] for name in steps}
    for i in tqdm.tqdm(range(args.steps + args.warmup), unit="step"):
        for name, step in steps.items():
            start = time.perf_counter()
            step(batches[i % len(batches)])
            if i >= args.warmup:
                seconds[name].append(time.perf_counter() - start)
    for name in steps:
        low, median, high = 1e3 * np.percentile(seconds[name], [10, 50, 90])
        pairs = np.array(seconds["none"]) / np.array(seconds[name])
        stats = steps[name].optimizer.skip_stats()[name]
        print(
            f"{name:>9} {median:7.2f} ({low:.2f}-{high:.2f}) ms; none / {name}: "
            f"{np.median(seconds['none']) / np.median(seconds[name]):.2f}, median of pairs "
            f"{np.median(pairs):.2f}; saved {saved(stats)}"
        )
    with open(args.output, "a") as file:
        file.write(json.dumps(vars(args) | {"seconds": seconds, "time": time.time()}) + "\n")


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", default="1000000x32", metavar="ROWSxDIM")
    parser.add_argument("--rule", default="Adagrad", help="a Keras optimizer with a sparse rule")
    parser.add_argument("--lookups", type=int, default=53_248)
    parser.add_argument("--zipf", type=float, default=1.1)
    parser.add_argument("--stale-share", type=float, default=0.5, help="of the lookups")
    parser.add_argument(
        "--stale-rows",
        default="popular",
        choices=["popular", "random"],
        help="which rows make up that share: as few as can be, or the same share of all rows",
    )
    parser.add_argument("--period", type=int, default=8, help="of deferred rows, in steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--output", default=os.path.join("results", "sleeping_step.jsonl"))
    return parser.parse_args()


def stale_rows(ids, args, rng):
    """Returns the rows that are stale, as many as make up `args.stale_share` of the lookups."""
    rows, counts = np.unique(ids, return_counts=True)
    order = np.argsort(-counts) if args.stale_rows == "popular" else rng.permutation(len(rows))
    num = np.searchsorted(np.cumsum(counts[order]), args.stale_share * ids.size) + 1
    return rows[order[:num]]


def make_step(name, num_rows, dim, popular, grads, args):
    """Returns a step of a table with a policy's variant, with its `optimizer` as attribute."""
    layer = slipstream.SlipstreamEmbedding(num_rows, dim, name=name)
    layer.build()
    optimizer = slipstream.SlipstreamOptimizer(
        getattr(keras.optimizers, args.rule, None)(0.01)
        if hasattr(keras.optimizers, args.rule)
        else getattr(slipstream, args.rule)(0.01),
        policy=policy_of(name, args),
    )
    optimizer.build([layer.embeddings])
    if name in ("skipped", "deferred"):
        plant(optimizer.tables[name], popular, name, args)
    dense_shape = tf.constant([num_rows, dim])

    @tf.function
    def update(ids):
        slices = tf.IndexedSlices(grads, ids, dense_shape)
        optimizer.apply_gradients([(slices, layer.embeddings)])
        return optimizer.iterations + 0

    def step(ids):
        update(ids).numpy()

    step.optimizer = optimizer
    return step


def policy_of(name, args):
    if name == "none":
        return None
    longest = {"updates_per_sleep": 1, "refresh_every": 0, "popular_share": 1.0, "min_drift": 0.0}
    if name == "deferred":
        # Judged to be at rest always, and so asleep for a period after each update.
        period = {"first_sleep": args.period, "max_sleep": args.period, "threshold": 1e30}
        return slipstream.StalenessPolicy(min_updates=NEVER, window=2, **period, **longest)
    on_stale = "skip" if name == "skipped" else "defer"
    return slipstream.StalenessPolicy(on_stale=on_stale, min_updates=NEVER, **longest)


def plant(state, popular, name, args):
    """Makes rows popular, and puts them to sleep: skipped ones for ever."""
    ints = state.pool_ints.numpy()
    num = len(popular)
    values = {
        "row": popular,
        "wake_step": NEVER if name == "skipped" else 1 + np.arange(num) % args.period,
        "num_updates": NEVER,
        "period": args.period,
        "is_skipped": int(name == "skipped"),
    }
    for column, value in values.items():
        ints[:num, POOL_INTS.index(column)] = value
    state.pool_ints.assign(ints)
    row_states = state.row_states.numpy()
    row_states[popular] = -1 - np.arange(num)
    state.row_states.assign(row_states)
    policy = state.policy_state.numpy()
    policy[POLICY_STATE.index("num_entries")] = num
    policy[POLICY_STATE.index("num_sleeping")] = num
    state.policy_state.assign(policy)


def saved(stats):
    lookups = (stats.num_skipped_lookups + stats.num_deferred_lookups) / stats.num_lookups
    updates = stats.num_skipped_row_updates + stats.num_deferred_row_updates
    return f"{lookups:.0%} of lookups, {updates / stats.num_row_updates:.0%} of row updates"


if __name__ == "__main__":
    main()
