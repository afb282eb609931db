"""One subject of `parameter_server.py`: the coordinator, which trains and prints a JSON list."""

import argparse
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import tensorflow as tf
import tf_keras

import tf_slipstream as slipstream
from distribution.network import Links
from distribution.parameter_server import loopback_bytes

# A run of some thousand steps under the default policy, in as few steps as this benchmark has: rows
# sleep after a twentieth of the updates, at rest whatever they do. The traffic is what counts here.
STALE = {
    "min_updates": 5,
    "updates_per_sleep": 6,
    "max_sleep": 8,
    "window": 2,
    "threshold": 1e9,
    "min_drift": 0.0,
    "refresh_every": 0,
}
# The same of a run of some hundred thousand steps, in which 85% of lookups are deferred and 71% of
# row updates: rows begin with as many updates, and a fifth of them may sleep.
LONG = {**STALE, "first_sleep": 16, "max_sleep": 64, "popular_share": 0.2}
LONG_UPDATES = 10_000
SETTINGS = {"_stale": STALE, "_long": LONG}


def main():
    args = argparse.Namespace(**json.loads(sys.argv[1]))
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    partitioner = tf.distribute.experimental.partitioners.FixedShardsPartitioner(args.servers)
    # Of the model's variables only the table is divided.
    strategy = tf.distribute.ParameterServerStrategy(
        resolver,
        lambda shape, dtype: partitioner(shape, dtype) if shape[0] == args.rows else [1, 1],
    )
    with strategy.scope():
        layer, optimizer = make(args)
        head = tf.Variable(tf.random.normal([args.fields * args.dim, 1], stddev=0.01, seed=1))
        shards = list(layer.embeddings.variables)
        optimizer.build([*shards, head])
        if "_long" in args.subject:
            for state in optimizer.tables.values():
                state.row_states.assign(tf.fill(state.row_states.shape, LONG_UPDATES))
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    iterator = iter(coordinator.create_per_worker_dataset(lambda: batches(args)))

    def step(ids):
        with tf.GradientTape() as tape:
            rows = layer(ids)
            logits = tf.reshape(rows, [args.batch, -1]) @ head
            labels = tf.cast(ids[:, :1] % 2, tf.float32)
            losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        variables = [*shards, head]
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))

    function = tf.function(lambda iterator: strategy.run(step, args=(next(iterator),)))

    def run(num_steps):
        for _ in range(num_steps):
            coordinator.schedule(function, args=(iterator,))
        coordinator.join()

    run(args.warmup)
    # The coordinator shapes links itself: rows that sleep need one warm-up for all speeds.
    links = args.links and Links(**args.links)
    results = []
    for gigabits in [None, *(args.gigabits if links else ())]:
        if gigabits is not None:
            links.shape(gigabits)
        num_bytes = links.bytes_sent if links else loopback_bytes
        results.append({"gigabits": gigabits, **measured(args, run, num_bytes, optimizer)})
    if links:
        links.shape(None)
    print(json.dumps(results))


def measured(args, run, bytes_sent, optimizer):
    """Returns what some steps took and sent.

    Args:
        args: The command line's.
        run: Does so many steps.
        bytes_sent: Returns the bytes that were sent so far.
        optimizer: The subject's.
    """
    before, start_bytes, milliseconds = stats(optimizer), bytes_sent(), []
    for _ in range(args.rounds):
        start = time.perf_counter()
        run(args.steps // args.rounds)
        # Workers work at once: time of a step is that in which one of all workers' ends.
        milliseconds.append(1e3 * (time.perf_counter() - start) / (args.steps // args.rounds))
    num_steps = args.rounds * (args.steps // args.rounds)
    num_bytes = bytes_sent() - start_bytes
    milliseconds.sort()
    middle = milliseconds[len(milliseconds) // 2]
    result = {
        "subject": args.subject,
        "bytes_per_step": num_bytes / num_steps,
        "milliseconds": [milliseconds[0], middle, milliseconds[-1]],
        "distinct_rows": distinct_rows(args),
        "saved": "",
    }
    after = stats(optimizer)
    if after:
        spent = {name: (after[name] - before[name]) / num_steps for name in after}
        result["pulled_rows"] = spent["num_pulled_rows"]
        result["pushed_rows"] = spent["num_row_updates"] - spent["num_deferred_row_updates"]
        lookups = spent["num_deferred_lookups"] / spent["num_lookups"]
        rows = spent["num_deferred_row_updates"] / spent["num_row_updates"]
        hits = spent["num_cached_rows"] / spent["num_row_updates"]
        result["deferred_lookups"], result["deferred_rows"] = lookups, rows
        result["saved"] = (
            f"deferred {lookups:.0%} of lookups, {rows:.0%} of row updates; hit rate {hits:.0%}"
        )
    return result


def make(args):
    """Returns a layer with `embeddings`, and its optimizer."""
    if args.subject.startswith("slipstream"):
        settings = next((s for name, s in SETTINGS.items() if name in args.subject), None)
        policy = settings and slipstream.StalenessPolicy(**settings)
        layer = slipstream.SlipstreamEmbedding(args.rows, args.dim, name="table")
        optimizer = slipstream.SlipstreamOptimizer(tf_keras.optimizers.Adagrad(0.05), policy=policy)
        optimizer.wire_dtype = "bfloat16" if args.subject.endswith("bfloat16") else "float32"
    else:
        layer = tf_keras.layers.Embedding(args.rows, args.dim, name="table")
        module = tf_keras.optimizers
        if args.subject == "tf_keras_legacy":
            optimizer = module.legacy.Adagrad(0.05)
            optimizer.build = lambda variables: optimizer._create_all_weights(variables)
        else:
            optimizer = module.Adagrad(0.05)
    layer.build(None)
    return layer, optimizer


def batches(args):
    """Returns this worker's batches, int64 `[batch, fields]`, in its own order."""
    path = str(pathlib.Path(args.folder) / "ids")
    records = tf.data.FixedLengthRecordDataset(path, 4 * args.batch * args.fields)
    records = records.shuffle(args.warmup + args.steps).repeat()

    def decode(record):
        ids = tf.io.decode_raw(record, tf.int32)
        return tf.cast(tf.reshape(ids, [args.batch, args.fields]), tf.int64)

    return records.map(decode).prefetch(2)


def distinct_rows(args):
    """Returns how many rows a batch has, on average over some."""
    some = [tf.size(tf.unique(tf.reshape(ids, [-1]))[0]) for ids in batches(args).take(8)]
    return float(tf.reduce_mean(tf.cast(some, tf.float32)))


def stats(optimizer):
    """Returns the counts of our optimizer, and nothing for others."""
    if not isinstance(optimizer, slipstream.SlipstreamOptimizer):
        return {}
    return {**vars(optimizer.skip_stats()["table"]), **vars(optimizer.cache_stats()["table"])}


if __name__ == "__main__":
    main()
