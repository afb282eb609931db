"""One subject of `mirrored.py`: lookup, gradient, exchange and update of a table on each replica.

Prints a JSON line. First replicas use TensorFlow's default collectives, and steps are timed. Then
all begins anew, and they exchange through an object that counts the bytes of all tensors, values
and indices, that a replica hands over to be reduced or gathered; the table is all that there is.
"""

import argparse
import itertools
import json
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import workload

from distribution.mirrored import SUBJECTS, spread

PERIOD = 8
# Rows that sleep: 70% of lookups and half of the row updates are deferred at this period.
STALE_LOOKUPS, STALE_ROWS = 0.70, 0.50


class CountingOps(tf.distribute.ReductionToOneDevice):
    """Counts the bytes that replicas hand over, all replicas together."""

    def __init__(self):
        super().__init__()
        self.num_bytes = tf.Variable(0, dtype=tf.int64, trainable=False)

    def _count(self, per_replica):
        for value in per_replica.values:
            is_sparse = isinstance(value, tf.IndexedSlices)
            for tensor in (value.values, value.indices) if is_sparse else (value,):
                self.num_bytes.assign_add(tf.size(tensor, tf.int64) * tensor.dtype.size)

    def reduce_implementation(self, reduce_op, per_replica_value, destinations, options):
        self._count(per_replica_value)
        return super().reduce_implementation(reduce_op, per_replica_value, destinations, options)

    def _gather_implementation(self, per_replica_value, destinations, axis, options):
        self._count(per_replica_value)
        return super()._gather_implementation(per_replica_value, destinations, axis, options)


def main():
    args = arguments()
    cpu = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration()] * args.replicas
    tf.config.set_logical_device_configuration(cpu, devices)
    shape = (workload.NUM_BATCHES, args.replicas, args.lookups)
    ids = workload.zipf_ids(np.random.default_rng(0), args.rows, args.zipf, shape)
    seconds, _ = train(args, ids, args.steps)
    # Counting goes another way between devices; the time is that of the usual one.
    counting = CountingOps()
    _, (lookups, rows) = train(args, ids, args.counted_steps, counting)
    result = vars(args) | {
        "mean_distinct": np.mean([len(np.unique(one)) for step in ids for one in step]),
        "milliseconds": spread(seconds),
        "bytes_per_step": int(counting.num_bytes) / args.counted_steps / args.replicas,
        "lookups_deferred": lookups,
        "rows_deferred": rows,
        "saved": saved(lookups, rows),
    }
    print(json.dumps(result))


def train(args, ids, num_steps, counting=None):
    """Returns seconds of each step, and the shares of lookups and row updates deferred in them."""
    names = [f"CPU:{i}" for i in range(args.replicas)]
    strategy = tf.distribute.MirroredStrategy(names, counting)
    step, optimizer = prepared(args, strategy, ids)
    timed(step, args.warmup)
    stats = counts_of(optimizer)
    if counting:
        counting.num_bytes.assign(0)
    seconds = timed(step, num_steps)
    return seconds, shares(stats, counts_of(optimizer))


def prepared(args, strategy, ids):
    """Returns a step, of the next batch each time, and the optimizer; rows sleep already.

    Args:
        args: The subject, and `replicas`, `rows`, `dim` and `lookups`.
        strategy: Of as many replicas.
        ids: `[num_batches, replicas, lookups]`, the same in all processes.
    """
    rng = np.random.default_rng(1)
    run, optimizer = make_step(args, strategy, rng)
    if args.subject == "slipstream_stale":
        plant(optimizer.tables["table"], stale_rows(ids, rng), rng)
    batches = itertools.cycle([tf.constant(one) for one in ids])
    return lambda: run(next(batches)), optimizer


def timed(step, num_steps):
    """Returns the seconds of each of so many steps."""
    seconds = []
    for _ in range(num_steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--subject", required=True, choices=SUBJECTS)
    parser.add_argument("--replicas", type=int, required=True)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--lookups", type=int, default=26 * 2048, help="of a replica")
    parser.add_argument("--zipf", type=float, default=1.1)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--warmup", type=int, default=16)
    parser.add_argument("--counted-steps", type=int, default=24)
    return parser.parse_args()


def make_step(args, strategy, rng):
    """Returns a step given ids `[replicas, lookups]`, and the optimizer."""
    upstream = tf.constant(rng.normal(size=(args.lookups, args.dim)).astype(np.float32) * 1e-3)
    with strategy.scope():
        layer, optimizer = build(args)

    @tf.function(input_signature=[tf.TensorSpec([args.replicas, args.lookups], tf.int64)])
    def run(ids):
        def replica_step():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            with tf.GradientTape() as tape:
                rows = layer(ids[replica])
            variables = layer.trainable_variables
            grads = tape.gradient(rows, variables, output_gradients=upstream)
            optimizer.apply_gradients(zip(grads, variables))

        strategy.run(replica_step)
        return tf.convert_to_tensor(optimizer.iterations) + 0

    return lambda ids: run(ids).numpy(), optimizer


def build(args):
    if not args.subject.startswith("slipstream"):
        if args.subject == "tf_keras":
            import tf_keras as keras
        else:
            import keras
        layer = keras.layers.Embedding(args.rows, args.dim)
        optimizer = keras.optimizers.Adagrad(0.01)
    else:
        import keras

        import tf_slipstream as slipstream

        # Judged to be at rest always, and so asleep for a period after each update.
        policy = slipstream.StalenessPolicy(
            min_updates=1 << 30,
            window=2,
            threshold=1e30,
            min_drift=0.0,
            first_sleep=PERIOD,
            max_sleep=PERIOD,
            updates_per_sleep=1,
            refresh_every=0,
            popular_share=1.0,
        )
        is_stale = args.subject == "slipstream_stale"
        layer = slipstream.SlipstreamEmbedding(args.rows, args.dim, name="table")
        optimizer = slipstream.SlipstreamOptimizer(
            keras.optimizers.Adagrad(0.01), policy=policy if is_stale else None
        )
    layer.build(None)
    optimizer.build(layer.trainable_variables)
    return layer, optimizer


def stale_rows(ids, rng):
    """Returns a random part of the most popular rows: so many lookups, so many row updates."""
    rows, counts = np.unique(ids, return_counts=True)
    updates = np.zeros(len(rows))
    for batch in ids:
        updates[np.searchsorted(rows, np.unique(batch))] += 1
    order = np.argsort(-counts)
    lookups = np.cumsum(counts[order]) / counts.sum()
    updates = np.cumsum(updates[order]) / updates.sum()
    # The longest prefix that need not be thinned out by more than the lookups wanted.
    asleep = (PERIOD - 1) / PERIOD
    num = np.argmax(updates / lookups >= STALE_ROWS / STALE_LOOKUPS) + 1
    share = min(1.0, STALE_LOOKUPS / asleep / lookups[num - 1])
    popular = rows[order[:num]]
    return popular[rng.random(num) < share]


def plant(state, rows, rng):
    """Makes rows popular, and puts them to sleep: they wake in turns."""
    from tf_slipstream.state.schema import POLICY_STATE, POOL_INTS

    num = len(rows)
    ints = state.pool_ints.numpy()
    values = {
        "row": rows,
        "wake_step": 1 + rng.integers(PERIOD, size=num),
        "num_updates": 1 << 30,
        "period": PERIOD,
    }
    for column, value in values.items():
        ints[:num, POOL_INTS.index(column)] = value
    row_states = state.row_states.numpy()
    row_states[rows] = -1 - np.arange(num)
    policy = state.policy_state.numpy()
    for name in ("num_entries", "num_sleeping"):
        policy[POLICY_STATE.index(name)] = num
    for variable, value in (
        (state.pool_ints, ints),
        (state.row_states, row_states),
        (state.policy_state, policy),
    ):
        variable.assign(value)


def counts_of(optimizer):
    """Returns lookups, deferred lookups, row updates and deferred row updates so far."""
    if not hasattr(optimizer, "skip_stats"):
        return np.zeros(4)
    stats = optimizer.skip_stats()["table"]
    return np.array(
        [
            stats.num_lookups,
            stats.num_deferred_lookups,
            stats.num_row_updates,
            stats.num_deferred_row_updates,
        ]
    )


def shares(before, after):
    lookups, deferred, rows, deferred_rows = after - before
    return (deferred / lookups, deferred_rows / rows) if lookups else (0.0, 0.0)


def saved(lookups, rows):
    return f"{lookups:.0%} of lookups and {rows:.0%} of row updates deferred"


if __name__ == "__main__":
    main()
