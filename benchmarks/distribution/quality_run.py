"""One run of `distribution/quality.py`: trains, and prints a JSON object."""

import argparse
import contextlib
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import keras
import numpy as np
import tensorflow as tf
from quality import configurations, metrics
from quality.data_sets import DATA_SETS
from quality.rates import RATES
from quality.training import OPTIMIZERS

import tf_slipstream as slipstream

BATCH_SIZES = {"criteo80k": 64, "synthetic": 512}
EVALUATION_BATCH = 8192


class ClickModel(keras.Model):
    """From `(ids, dense)` to logits `[batch, 1]`."""

    def __init__(self, data_set):
        super().__init__()
        # One lookup of each table, as the fields of a click log are.
        self.tables = [
            slipstream.SlipstreamEmbedding(table.num_rows, data_set.dim, name=table.name)
            for table in data_set.tables
        ]
        self.dense_part = data_set.make_model(data_set.dim)
        self.dense_layers = self.dense_part.layers

    def call(self, inputs):
        ids, dense = inputs
        rows = [table(ids[:, i : i + 1]) for i, table in enumerate(self.tables)]
        return self.dense_part(tf.concat(rows, axis=1), dense)[:, tf.newaxis]


def main():
    args = argparse.Namespace(**json.loads(sys.argv[1]))
    strategy = make_strategy(args.way)
    data_set = DATA_SETS[args.data](args)
    batch_size = BATCH_SIZES[args.data]
    examples, order = data_set.epoch(args.seed, 0)
    num_steps = len(order) // batch_size

    keras.utils.set_random_seed(args.seed)
    with strategy.scope():
        model = ClickModel(data_set)
        model([part[:batch_size] for part in data_set.test[:2]])
        rate = args.learning_rate or RATES[args.data][args.optimizer]
        optimizer = slipstream.SlipstreamOptimizer(
            OPTIMIZERS[args.optimizer](rate), policy=configurations.parse(args.configuration).policy
        )
        optimizer.wire_dtype = args.wire_dtype
        model.compile(optimizer, keras.losses.BinaryCrossentropy(from_logits=True))
        optimizer.build(model.trainable_variables)

    path = str(pathlib.Path(args.folder) / "batches")
    write_batches(path, examples, order[: num_steps * batch_size], batch_size)

    batches = read_batches(path, examples, batch_size)
    start = time.perf_counter()
    if args.way == "parameter_server":
        trainer = slipstream.distribute.ParameterServerTrainer(
            model, strategy, max_delay=args.max_delay
        )
        with shared(batches) as dataset:
            trainer.fit(dataset, steps_per_epoch=num_steps, verbose=0)
    elif args.way == "delayed":
        fit_delayed(model, batches)
    else:
        model.fit(batches.prefetch(4), epochs=1, verbose=0)

    seconds = time.perf_counter() - start
    ids, dense, labels = data_set.test
    logits = []
    for begin in range(0, len(ids), EVALUATION_BATCH):
        part = slice(begin, begin + EVALUATION_BATCH)
        logits.append(np.asarray(model((ids[part], dense[part])))[:, 0])
    stats = optimizer.skip_stats().values()
    stale = sum(one.num_deferred_lookups + one.num_skipped_lookups for one in stats)
    result = {
        **{name: getattr(args, name) for name in ("data", "configuration", "seed", "way")},
        "optimizer": args.optimizer,
        "learning_rate": rate,
        "wire_dtype": args.wire_dtype,
        "max_delay": args.max_delay,
        "seconds": seconds,  # of `fit`, its tracing and start included
        "auc": metrics.area_under_curve(labels.reshape(-1), np.concatenate(logits)),
        "steps": int(optimizer.iterations.numpy()),
        "lookups_saved": stale / sum(one.num_lookups for one in stats),
    }
    print(json.dumps(result))


def make_strategy(way):
    if way in ("single", "delayed"):
        return tf.distribute.get_strategy()
    if way == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration() for _ in range(2)]
        )
        return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    return tf.distribute.ParameterServerStrategy(resolver)


@contextlib.contextmanager
def shared(dataset):
    """Yields a dataset of which each element goes to one worker, whichever asks first."""
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    server = service.WorkerServer(
        service.WorkerConfig(dispatcher_address=dispatcher.target.split("://")[1])
    )
    yield dataset.apply(
        service.distribute(service.ShardingPolicy.OFF, dispatcher.target, job_name="training")
    )
    del server, dispatcher


def fit_delayed(model, batches):
    """Trains as two workers in step do: both read the weights, then both apply their gradients."""
    variables = model.trainable_variables

    def gradients(inputs, labels):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(inputs, labels, model(inputs, training=True))
        return tape.gradient(loss, [variable.value for variable in variables])

    @tf.function
    def step(first, second):
        for grads in [gradients(*first), gradients(*second)]:
            model.optimizer.apply_gradients(zip(grads, variables))

    for first, second in tf.data.Dataset.zip(batches.shard(2, 0), batches.shard(2, 1)):
        step(first, second)


def write_batches(path, examples, order, batch_size):
    """Writes examples in an order: of each batch the ids, dense features and labels."""
    with open(path, "wb") as file:
        for begin in range(0, len(order), batch_size):
            for part in examples:
                file.write(part[order[begin : begin + batch_size]].tobytes())


def read_batches(path, examples, batch_size):
    """Returns a `tf.data.Dataset` of what `write_batches` wrote."""
    shapes = [(batch_size, *part.shape[1:]) for part in examples]
    sizes = [part.dtype.itemsize * int(np.prod(shape)) for part, shape in zip(examples, shapes)]

    def decode(record):
        ends = np.cumsum(sizes)
        ids, dense, labels = (
            tf.reshape(tf.io.decode_raw(tf.strings.substr(record, end - size, size), kind), shape)
            for end, size, shape, kind in zip(ends, sizes, shapes, (p.dtype for p in examples))
        )
        return (ids, dense), labels[:, tf.newaxis]

    return tf.data.FixedLengthRecordDataset(path, sum(sizes)).map(decode)


if __name__ == "__main__":
    main()
