"""What the coordinators of the tests do: `programs.py NAME JSON`, which prints a JSON object."""

import itertools
import json
import os
import sys
import time
import urllib.request
import warnings

import numpy as np
import tensorflow as tf

import tf_slipstream as slipstream
from tf_slipstream import _compat

keras = _compat.keras
NUM_ROWS = 1000
# Many rows sleep soon.
SLEEPY = {"min_updates": 2, "window": 2, "updates_per_sleep": 1, "threshold": 1e9, "max_sleep": 8}


def connect(partitioned=False):
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    partitioner = None
    if partitioned:
        partitioner = tf.distribute.experimental.partitioners.FixedShardsPartitioner(2)
    return tf.distribute.ParameterServerStrategy(resolver, variable_partitioner=partitioner)


def policy_of(settings):
    policy = settings.get("policy")
    return slipstream.StalenessPolicy(**policy) if isinstance(policy, dict) else policy


def optimizer_of(inner, settings):
    optimizer = slipstream.SlipstreamOptimizer(inner, policy=policy_of(settings))
    if "cache" in settings:
        optimizer.worker_cache = slipstream.distribute.WorkerCache(**settings["cache"])
    optimizer.wire_dtype = settings.get("wire_dtype", "float32")
    return optimizer


def layer_of(settings, num_rows=NUM_ROWS, dim=4, **more):
    more = {"dtype": settings.get("dtype", "float32"), "name": "item", **more}
    return slipstream.SlipstreamEmbedding(num_rows, settings.get("dim", dim), **more)


def table_of(layer):
    return np.concatenate([shard.numpy() for shard in layer._shards])


def stats_of(optimizer):
    stats = {name: vars(one) for name, one in optimizer.skip_stats().items()}
    caches = optimizer.cache_stats()
    return {
        name: {**one, **vars(caches[name]), "hit_rate": caches[name].hit_rate}
        for name, one in stats.items()
    }


def worker_counts(optimizer):
    """Returns int64 `[num_workers, 5]`, as `TableState.worker_counters` has them."""
    return sum(state.worker_counters.numpy() for state in optimizer.tables.values())


def gradient_step(strategy, layer, optimizer, ids_shape=(None,)):
    """Returns what adds 1 to an element of a row, under SGD with rate 1, for each lookup of it."""

    def step(ids):
        with tf.GradientTape() as tape:
            loss = -tf.reduce_sum(layer(ids))
        tables = [*layer._shards]
        optimizer.apply_gradients(zip(tape.gradient(loss, tables), layer.trainable_variables))

    return tf.function(
        lambda ids: strategy.run(step, args=(ids,)),
        input_signature=[tf.TensorSpec(ids_shape, tf.int64)],
    )


def padding(settings):
    """Steps with bags of ids, most of which are padding."""
    strategy = connect(settings.get("partitioned"))
    with strategy.scope():
        options = {"combiner": "sum", "mask_zero": True, "embeddings_initializer": "zeros"}
        layer = layer_of(settings, **options)
        layer.build()
        optimizer = optimizer_of(keras.optimizers.SGD(1.0), settings)
        optimizer.build(layer.trainable_variables)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    step = gradient_step(strategy, layer, optimizer, (None, None))
    rng = np.random.default_rng(0)
    counts = np.zeros(NUM_ROWS, np.int64)
    for _ in range(40):
        ids = rng.integers(1, NUM_ROWS, size=[8, 10]) % 50
        ids[:, 2:] = 0
        np.add.at(counts, ids, 1)
        coordinator.schedule(step, args=(tf.constant(ids, tf.int64),))
    coordinator.join()
    optimizer.wake_all()
    counts[0] = 0
    return {
        "num_wrong": int(np.sum(table_of(layer) != counts[:, None])),
        "num_ids": int(counts.sum()),
        "stats": stats_of(optimizer)["item"],
    }


def sums(settings):
    """Steps with whole gradients of rows that all workers look up, for some seconds."""
    strategy = connect(settings.get("partitioned"))
    with strategy.scope():
        layer = layer_of(settings, embeddings_initializer="zeros")
        layer.build()
        optimizer = optimizer_of(keras.optimizers.SGD(1.0), settings)
        optimizer.build(layer.trainable_variables)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    step = gradient_step(strategy, layer, optimizer)
    rng = np.random.default_rng(0)
    counts, num_steps = np.zeros(NUM_ROWS, np.int64), 0
    end = time.monotonic() + settings["seconds"]

    def train(num):
        nonlocal num_steps
        for _ in range(num):
            ids = rng.zipf(1.2, 200) % NUM_ROWS
            np.add.at(counts, ids, 1)
            coordinator.schedule(step, args=(tf.constant(ids, tf.int64),))
        num_steps += num

    train(100)
    while time.monotonic() < end:
        # What is scheduled must not run ahead of what is done: its queue takes 262,144 steps.
        train(100)
        coordinator.join()
    if settings.get("loses_a_worker"):
        # Until there is something to lose; then until it is known to be lost.
        while min(worker_counts(optimizer)[:, 2]) < 20:
            train(20)
        print("all hold something", flush=True)
        while not sum(worker_counts(optimizer)[:, 3]):
            train(20)
    coordinator.join()
    before = stats_of(optimizer)["item"]
    optimizer.wake_all()
    table = table_of(layer)
    return {
        "steps": num_steps,
        "iterations": int(optimizer.iterations.numpy()),
        "num_wrong": int(np.sum(table != counts[:, None])),
        "missing": float(counts.sum() - table.sum() / table.shape[1]),
        "lookups": int(counts.sum()),
        "before": before,
        "after": stats_of(optimizer)["item"],
        "devices": [shard.device for shard in layer._shards],
    }


def steady(settings):
    """Adds up whole gradients until a file is there, and says how far each worker has come."""
    strategy = connect()
    with strategy.scope():
        layer = layer_of(settings, embeddings_initializer="zeros")
        layer.build()
        optimizer = optimizer_of(keras.optimizers.SGD(1.0), settings)
        optimizer.build(layer.trainable_variables)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    step = gradient_step(strategy, layer, optimizer)
    ids = np.random.default_rng(0).zipf(1.2, 200) % NUM_ROWS
    # Each worker has the batch: what a step is sent, its worker is told to forget afterwards, and
    # until it answers to that TensorFlow lets no other worker begin a step.
    batches = tf.data.Dataset.from_tensors(tf.constant(ids, tf.int64)).repeat()
    iterator = iter(coordinator.create_per_worker_dataset(batches))
    step_of_worker = tf.function(lambda iterator: step(next(iterator)))
    num_steps = 0
    while not os.path.exists(settings["until"]):
        # Read once: workers may do steps as fast as this loop gives them, and it would never end.
        num_wanted = int(optimizer.iterations.numpy()) + 20
        for _ in range(num_wanted - num_steps):
            coordinator.schedule(step_of_worker, args=(iterator,))
        num_steps = max(num_steps, num_wanted)
        pulled, cached = worker_counts(optimizer)[:, :2].T
        print(f"done {json.dumps((pulled + cached).tolist())}", flush=True)
        time.sleep(0.05)
    coordinator.join()
    optimizer.wake_all()
    counts = num_steps * np.bincount(ids, minlength=NUM_ROWS)
    return {
        "steps": num_steps,
        "iterations": int(optimizer.iterations.numpy()),
        "num_wrong": int(np.sum(table_of(layer) != counts[:, None])),
        "stats": stats_of(optimizer)["item"],
    }


def saving(settings):
    """Trains on a checkpoint folder, unless it is refused; saves or loads weights."""
    strategy = connect()
    with strategy.scope():
        layer = layer_of(settings, 120_000, dim=8)
        model = Lookup(layer)
        model(tf.zeros([1], tf.int64))
        optimizer = optimizer_of(keras.optimizers.Adam(0.5), settings)
        model.compile(optimizer, loss=lambda labels, rows: -tf.reduce_sum(rows))
    batches = tf.data.Dataset.from_tensors((tf.range(0, 120_000, 7), tf.zeros([17143])))
    trainer = slipstream.distribute.ParameterServerTrainer(model, strategy, settings["folder"])
    said = ""
    try:
        trainer.fit(batches, steps_per_epoch=3, verbose=0)
    except ValueError as error:
        said = str(error)
    path = settings["folder"] + "/model.weights.h5"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        getattr(model, settings["way"])(path)
    rows = table_of(layer)
    return {
        "said": said,
        "warned": [str(one.message) for one in warned],
        "num_shards": len(layer._shards),
        "rows": [rows[::1000].tolist(), float(rows.astype(np.float64).sum())],
        "iterations": int(optimizer.iterations.numpy()),
    }


def refusal(settings):
    """What is said when the optimizer of a table is built."""
    strategy = connect(settings.get("partitioned"))
    with strategy.scope():
        layer = layer_of(settings)
        layer.build()
        optimizer = optimizer_of(keras.optimizers.SGD(1.0), settings)
        try:
            optimizer.build(layer.trainable_variables)
        except ValueError as error:
            return {"said": str(error)}
    return {"said": ""}


class Lookup(keras.Model):
    """Has a layer built by its own first call."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, ids):
        return self.layer(ids)


def large_table(settings):
    """A table that Keras 3 divides."""
    strategy = connect()
    num_rows = 120_000
    with strategy.scope():
        layer = slipstream.SlipstreamEmbedding(
            num_rows,
            8,
            name="item",
            embeddings_initializer=keras.initializers.RandomUniform(-1.0, 1.0, seed=3),
        )
        Lookup(layer)(tf.zeros([1], tf.int64))
        initializers = [*["uniform"] * 2, keras.initializers.RandomUniform(-1.0, 1.0, seed=4)]
        others = [slipstream.SlipstreamEmbedding(num_rows, 8, one) for one in initializers]
        for one in others:
            one.build()
        optimizer = optimizer_of(keras.optimizers.SGD(1.0), settings)
        optimizer.build(layer.trainable_variables)
    before = table_of(layer)
    halves = [half for one in [layer, *others] for half in np.split(table_of(one), 2)]
    pairs = itertools.combinations(halves, 2)
    num_equal = sum(int(np.sum(np.all(one == other, axis=1))) for one, other in pairs)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    step = gradient_step(strategy, layer, optimizer)
    ids = np.array([0, 59_999, 60_000, num_rows - 1, 60_000])
    coordinator.schedule(step, args=(tf.constant(ids, tf.int64),))
    coordinator.join()
    np.add.at(before, ids, np.float32(1))
    looked_up = layer(tf.constant(ids)).numpy()  # on the coordinator, with stock ops
    return {
        "shapes": [list(shard.shape) for shard in layer._shards],
        "devices": [shard.device for shard in layer._shards],
        "num_equal_rows": num_equal,
        "num_wrong": int(np.sum(before != table_of(layer))) + int(np.sum(looked_up != before[ids])),
        "saves_whole_table": saves_whole_table(layer, before),
    }


def wire(settings):
    """One step of SGD with rate 1: what the lookup returned, and what the update changed."""
    strategy = connect(settings.get("partitioned"))
    rng = np.random.default_rng(0)
    initial, grads = rng.normal(size=(2, NUM_ROWS, 4)).astype(np.float32)
    with strategy.scope():
        layer = layer_of(settings, embeddings_initializer="zeros")
        layer.build()
        optimizer = optimizer_of(keras.optimizers.SGD(1.0), settings)
        optimizer.build(layer.trainable_variables)
        start = 0
        for shard in layer._shards:
            shard.assign(initial[start : start + shard.shape[0]])
            start += shard.shape[0]

    def step():
        with tf.GradientTape() as tape:
            rows = layer(tf.range(NUM_ROWS))
            loss = tf.reduce_sum(rows * grads)
        tables = [*layer._shards]
        optimizer.apply_gradients(zip(tape.gradient(loss, tables), layer.trainable_variables))
        return rows

    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    rows = coordinator.schedule(tf.function(lambda: strategy.run(step))).fetch()

    def num_wrong(found, dtype):
        expected = [tf.cast(tf.cast(part, dtype), tf.float32) for part in (initial, grads)]
        return int(np.sum(found != (expected[0] if found is rows else initial - expected[1])))

    return {
        "num_wrong_rows": num_wrong(rows, settings["wire_dtype"]),
        "num_wrong_updates": num_wrong(table_of(layer), settings["wire_dtype"]),
        "num_rounded": num_wrong(rows, "float32"),
    }


def collection(settings):
    """Steps of SGD with rate 1 on fields in one table; and what is said of a bad id."""
    strategy = connect(settings.get("partitioned"))
    dims = {"user": 60_000, "item": 40_000, "friend": "user", "shop": 20_000}

    def layer_of_fields():
        layer = slipstream.SlipstreamEmbeddingCollection(
            dims, 8, embeddings_initializer=keras.initializers.RandomUniform(seed=3), name="fields"
        )
        layer.build()
        return layer

    alone = layer_of_fields()
    rows = {name: alone.rows(name) for name in dims}
    with strategy.scope():
        layer = layer_of_fields()
        optimizer = optimizer_of(keras.optimizers.SGD(1.0), settings)
        optimizer.build(layer.trainable_variables)
    num_wrong = sum(int(np.sum(layer.rows(name) != rows[name])) for name in dims)
    rng = np.random.default_rng(0)
    batches = [rng.integers([60_000, 40_000, 60_000, 20_000], size=(64, 4)) for _ in range(4)]
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)

    def step(ids):
        with tf.GradientTape() as tape:
            by_name = layer({"shop": ids[:, 3], "item": ids[:, 1]})
            loss = -tf.reduce_sum(layer(ids)) - sum(map(tf.reduce_sum, by_name.values()))
        tables = [*layer._shards]
        optimizer.apply_gradients(zip(tape.gradient(loss, tables), layer.trainable_variables))

    run = tf.function(lambda ids: strategy.run(step, args=(ids,)))
    for ids in batches:
        coordinator.schedule(run, args=(tf.constant(ids),))
        for place, name, times in ((0, "user", 1), (1, "item", 2), (2, "user", 1), (3, "shop", 2)):
            np.add.at(rows[name], ids[:, place], np.float32(times))
    coordinator.join()
    rows["friend"] = rows["user"]
    num_wrong += sum(int(np.sum(np.abs(layer.rows(n) - rows[n]) > 1e-5)) for n in dims)
    stats = vars(optimizer.skip_stats()["fields"])
    said, before = [], [shard.numpy().tobytes() for shard in layer._shards]
    # Whichever worker takes it.
    for _ in range(6):
        try:
            coordinator.schedule(run, args=(tf.constant([[0, 40_000, 0, 0]]),))
            coordinator.join()
        except tf.errors.InvalidArgumentError as error:
            said.append(str(error))
    num_changed = sum(
        shard.numpy().tobytes() != old for shard, old in zip(layer._shards, before, strict=True)
    )
    return {
        "num_changed_by_bad_ids": num_changed,
        "num_shards": len(layer._shards),
        "num_wrong": num_wrong,
        "said": said,
        "num_lookups": stats["num_lookups"],
        "saves_whole_table": saves_whole_table(layer, table_of(layer)),
    }


def changed_gradients(settings):
    """What is said of steps whose gradients change between the tape and the optimizer."""
    strategy = connect(settings.get("partitioned"))
    with strategy.scope():
        layer = layer_of(settings, embeddings_initializer="zeros")
        layer.build()
        optimizer = optimizer_of(keras.optimizers.SGD(1.0), settings)
        optimizer.build(layer.trainable_variables)

    def step(change, around):
        with tf.GradientTape() as tape:
            lookups = tf.constant([1, 2]), tf.constant([2, 3])
            loss = -sum(tf.reduce_sum(layer(ids)) for ids in lookups)
        grads = tape.gradient(loss, [*layer._shards])
        grads = [change(grad) for grad in grads]
        if around is not optimizer:  # which makes a branch itself
            around.apply_gradients(zip(grads, layer.trainable_variables))
        elif tf.constant(True):
            around.apply_gradients(zip(grads, layer.trainable_variables))

    def error_of(*args):
        try:
            tf.function(lambda: strategy.run(step, args=args)).get_concrete_function()
        except ValueError as error:
            return str(error)
        return ""

    said = [
        error_of(lambda grad: tf.IndexedSlices(grad.values + 0, grad.indices), optimizer),
        error_of(lambda grad: grad, optimizer),
    ]
    if _compat.IS_KERAS_3:
        scaling = keras.optimizers.LossScaleOptimizer(optimizer)
        with strategy.scope():
            scaling.build(layer.trainable_variables)
        said.append(error_of(lambda grad: grad, scaling))
    return {"said": said, "table": float(table_of(layer).sum())}


def saves_whole_table(layer, table):
    store = {}
    layer.save_own_variables(store)
    for shard in layer._shards:
        shard.assign(tf.zeros_like(shard))
    layer.load_own_variables(store)
    return np.array_equal(store["0"], table) and np.array_equal(table_of(layer), table)


def click_model(settings, rows=NUM_ROWS):
    inputs = keras.Input((3,), dtype="int64")
    layer = layer_of(settings, rows)
    x = keras.layers.Flatten()(layer(inputs))
    x = keras.layers.Dense(8, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(x)), layer


def clicks(num=4096, rows=NUM_ROWS, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.zipf(1.2, (num, 3)) % rows
    return ids, (np.sin(ids).sum(axis=1) > 0).astype(np.float32)


def dataset(context=None):
    return tf.data.Dataset.from_tensor_slices(clicks()).shuffle(4096).batch(64, True).repeat()


def fit(settings):
    """`fit`: tf_keras's own or the trainer's, with metrics, callbacks, epochs and validation."""
    strategy = connect(settings.get("partitioned"))
    num_batches = []

    class Telling(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            print(f"epoch {epoch} done {int(self.model.optimizer.iterations.numpy())}", flush=True)

    class UntilReplaced(keras.callbacks.Callback):
        """Ends training once another process has taken a worker's place."""

        def on_epoch_end(self, epoch, logs=None):
            worker_id = int(worker_counts(self.model.optimizer)[settings["until_replaced"], -1])
            self.first_id = worker_id if epoch == 0 else self.first_id
            self.model.stop_training = worker_id != self.first_id

    class Counting(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            num_batches.append(batch)

    with strategy.scope():
        model, layer = click_model(settings)
        rule = getattr(keras.optimizers, settings["rule"])(settings.get("rate", 0.05))
        optimizer = optimizer_of(rule, settings)
        model.compile(
            optimizer, "binary_crossentropy", metrics=["accuracy", keras.metrics.AUC(name="auc")]
        )
        if settings.get("build", True):
            optimizer.build(model.trainable_variables)
    arguments = {
        "epochs": settings.get("epochs", 2),
        "steps_per_epoch": settings.get("steps", 50),
        # tf_keras takes no callbacks of batches on parameter servers.
        "callbacks": [Telling(), *([Counting()] if _compat.IS_KERAS_3 else backups(settings))],
        "validation_data": dataset(),
        "validation_steps": 10,
        "verbose": settings.get("verbose", 2),
    }
    watching = []
    if settings.get("watched"):
        watching = [slipstream.SkipGuard("val_auc", loss_interval=10), slipstream.SkipHistory(20)]
        watching.append(slipstream.SlipstreamMonitor(settings["log_dir"], 20, prometheus_port=0))
        arguments["callbacks"] += watching
    if "until_replaced" in settings:
        arguments["callbacks"] += [UntilReplaced()]
    if settings.get("no_validation"):
        del arguments["validation_data"], arguments["validation_steps"]
    if _compat.IS_KERAS_3:
        trainer = slipstream.distribute.ParameterServerTrainer(
            model,
            strategy,
            settings.get("folder"),
            settings.get("every"),
            settings.get("max_delay"),
        )
        history = trainer.fit(dataset, **arguments)
    else:
        history = model.fit(tf.keras.utils.experimental.DatasetCreator(dataset), **arguments)
    if "export" in settings:
        model.export(settings["export"])
        ids = clicks(50)[0]
        np.savez(settings["export"] + ".npz", ids=ids, clicks=np.asarray(model(tf.constant(ids))))
    if watching:
        address = f"http://localhost:{watching[2].port}/metrics"
        page = urllib.request.urlopen(address, timeout=10).read().decode()
        watching[2].close()
    return {
        "history": {name: list(map(float, values)) for name, values in history.history.items()},
        "monitored": [watching[2].latest["item"], page] if watching else None,
        "decisions": watching[0].history if watching else [],
        "records": [record["step"] for record in watching[1].history["item"]] if watching else [],
        "iterations": int(optimizer.iterations.numpy()),
        "num_batches": len(num_batches),
        "num_epochs": len(history.epoch),
        "stats": stats_of(optimizer)["item"],
        "pulled_by": [int(n) for n in worker_counts(optimizer)[:, 0]],
        "devices": [shard.device for shard in layer._shards],
        "shapes": [list(shard.shape) for shard in layer._shards],
    }


def validation(settings):
    """What the last validation of `fit` says, and `evaluate` after it, under several policies."""
    strategy = connect()
    # One batch: its sums are the same in whatever order workers add them.
    held_out = tf.data.Dataset.from_tensor_slices(clicks(50, seed=1)).batch(50).repeat()
    found = []
    for policy in settings["policies"]:
        with strategy.scope():
            model, _ = click_model(settings)
            rule = getattr(keras.optimizers, settings["rule"])(0.05)
            optimizer = optimizer_of(rule, {"policy": policy})
            model.compile(optimizer, "binary_crossentropy", metrics=[keras.metrics.AUC(name="auc")])
            optimizer.build(model.trainable_variables)
        arguments = {"validation_data": held_out, "validation_steps": 4, "verbose": 0}
        arguments |= {"epochs": 2, "steps_per_epoch": settings["steps"]}
        if _compat.IS_KERAS_3:
            trainer = slipstream.distribute.ParameterServerTrainer(model, strategy)
            history = trainer.fit(dataset, **arguments).history
            evaluated = trainer.evaluate(held_out, 4)
        else:
            creator = tf.keras.utils.experimental.DatasetCreator(dataset)
            history = model.fit(creator, **arguments).history
            evaluated = model.evaluate(held_out, steps=4, verbose=0, return_dict=True)
        stats = optimizer.skip_stats()["item"]
        validated = {name: history[f"val_{name}"][-1] for name in evaluated}
        num_stale = stats.num_deferred_lookups + stats.num_skipped_lookups
        found.append({"validated": validated, "evaluated": evaluated, "num_stale": num_stale})
    return {"found": found}


def predicting(settings):
    """What `predict` returns while workers hold gradients, and after `fit`."""
    strategy = connect()
    with strategy.scope():
        model, _ = click_model(settings)
        optimizer = optimizer_of(keras.optimizers.Adam(0.05), settings)
        model.compile(optimizer, "binary_crossentropy")
        optimizer.build(model.trainable_variables)
    trainer = slipstream.distribute.ParameterServerTrainer(model, strategy)
    ids = clicks(1000, seed=1)[0]
    batches = tf.data.Dataset.from_tensor_slices(ids).batch(30)  # 34, the last of 10
    found = []

    def look():
        before = stats_of(optimizer)["item"]
        outputs = trainer.predict(batches)
        after = stats_of(optimizer)["item"]
        some = trainer.predict(lambda context: batches.repeat(), steps=2)
        found.append(
            {
                "shape": list(outputs.shape),
                "largest_difference": float(np.abs(outputs - model(tf.constant(ids))).max()),
                "num_unlike": int(np.sum(outputs[:60] != some)),
                "num_held": [one["num_held_batches"] for one in (before, after)],
                "num_asleep": [one["num_stale_rows"] for one in (before, after)],
            }
        )

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            look()

    trainer.fit(dataset, steps_per_epoch=60, callbacks=[Look()], verbose=0)
    look()
    try:
        trainer.predict(batches.take(0))
    except ValueError as error:
        return {"found": found, "said": str(error)}


def fit_shared(settings):
    """Steps on data that workers share: SGD with rate 1 counts how often each id comes."""
    strategy = connect()
    with strategy.scope():
        layer = layer_of(settings, embeddings_initializer="zeros")
        model = Lookup(layer)
        model(tf.zeros([1], tf.int64))
        optimizer = optimizer_of(keras.optimizers.SGD(1.0), settings)
        model.compile(optimizer, loss=lambda labels, rows: -tf.reduce_sum(rows))
        optimizer.build(model.trainable_variables)
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    address = dispatcher.target.split("://")[1]
    data_server = service.WorkerServer(service.WorkerConfig(dispatcher_address=address))
    batches = tf.data.Dataset.range(NUM_ROWS).map(lambda i: ([i], [i]))
    shared = batches.apply(
        service.distribute(service.ShardingPolicy.OFF, dispatcher.target, job_name="training")
    )
    trainer = slipstream.distribute.ParameterServerTrainer(model, strategy)
    trainer.fit(shared, epochs=2, steps_per_epoch=settings["steps"] // 2, verbose=0)
    del data_server
    return {"counts": table_of(layer)[:, 0].astype(int).tolist()}


def vocabulary(settings):
    """Counts lookups of raw ids in their rows, of which many are forgotten half-way."""
    strategy = connect(settings.get("partitioned"))
    num_rows, dtype = 40_000, settings["ids"]

    def given(ids):
        return tf.constant(np.char.mod("item-%d", ids) if dtype == "string" else np.asarray(ids))

    def model_of(name):
        inputs = keras.Input((2,), dtype=dtype)
        ids = slipstream.DynamicVocabulary(num_rows, forget_after=8, dtype=dtype, name=name)
        layer = layer_of(settings, num_rows, embeddings_initializer="zeros")
        return ids, layer, keras.Model(inputs, layer(ids(inputs)))

    with strategy.scope():
        ids, layer, model = model_of("ids")
        optimizer = optimizer_of(keras.optimizers.SGD(1.0), settings)
        optimizer.build(model.trainable_variables)

    def train(batch):
        with tf.GradientTape() as tape:
            loss = -tf.reduce_sum(model(batch, training=True))
        tables = [*layer._shards]
        optimizer.apply_gradients(zip(tape.gradient(loss, tables), layer.trainable_variables))

    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    spec = [tf.TensorSpec([None, 2], dtype)]
    step = tf.function(lambda x: strategy.run(train, args=(x,)), input_signature=spec)

    def find(batch):
        return ids(batch, training=False)

    look_up = tf.function(lambda x: strategy.run(find, args=(x,)), input_signature=spec)
    rng = np.random.default_rng(0)

    def do(all_ids, num_steps):
        for _ in range(num_steps):
            batch = given(rng.permutation(all_ids).reshape(-1, 2))
            coordinator.schedule(step, args=(batch,))
        coordinator.join()
        optimizer.wake_all()

    do(np.arange(800), 6)
    _, first_rows = ids.ids()
    do(np.arange(50), 12)  # all others are forgotten
    do(np.concatenate([np.arange(50), np.arange(800, 1500)]), 6)
    num_of = np.where(np.arange(2000) < 50, 24, 6)
    known, rows = ids.ids()
    known = [int(one[5:]) if dtype == "string" else int(one) for one in known]
    asked = given(np.arange(2000).reshape(-1, 2))
    on_worker = coordinator.schedule(look_up, args=(asked,)).fetch().reshape(-1)
    expected = np.ones(2000, np.int64)
    expected[known] = rows
    store = {}
    ids.save_own_variables(store)
    alone = slipstream.DynamicVocabulary.from_config(ids.get_config())
    alone.build()
    alone.load_own_variables(store)
    before = vars(ids.stats())
    ids.set_ids(known[:0])
    num_after = ids.stats().num_ids
    ids.load_own_variables(store)
    wrong_rows = ""
    try:
        ids.set_ids(given([1]).numpy().tolist(), [2 if rows[known.index(1)] > 20_000 else 39_999])
    except ValueError as error:
        wrong_rows = str(error)
    if "export" in settings:
        model.export(settings["export"])
        np.savez(settings["export"] + ".npz", ids=asked, vectors=model(asked))
    table = table_of(layer)
    return {
        "num_wrong": int(np.sum(table[rows] != num_of[known][:, None])),
        "known": [len(known), min(known), max(known)],
        "num_shards": [ids._num_shards, len(layer._shards)],
        "servers": [len({v.device for v in shard.values()}) for shard in ids._shards()],
        "num_reused": len(np.intersect1d(first_rows, rows)),
        "num_of_free_rows": int(np.abs(np.delete(table, [1, *rows], axis=0)).sum()),
        "on_worker": int(np.sum(on_worker != expected)),
        "here": int(np.sum(ids(asked).numpy().reshape(-1) != expected)),
        "alone": int(np.sum(alone(asked).numpy().reshape(-1) != expected)),
        "stats": before,
        "num_after": num_after,
        "wrong_rows": wrong_rows,
        "both": [int((rows < 20_000).sum()), int((rows >= 20_000).sum())],
    }


def fit_vocabulary(settings):
    """`fit` of lookups of raw ids, counted in their rows; goes on from a checkpoint, publishes."""
    strategy = connect()
    with strategy.scope():
        ids = slipstream.DynamicVocabulary(4000, forget_after=8, name="ids")
        layer = layer_of(settings, 4000, embeddings_initializer="zeros")
        inputs = keras.Input((2,), dtype="int64")
        model = keras.Model(inputs, layer(ids(inputs)))
        optimizer = optimizer_of(keras.optimizers.SGD(1.0), settings)
        model.compile(optimizer, loss=lambda labels, rows: -tf.reduce_sum(rows))
        optimizer.build(model.trainable_variables)
    folder = settings["folder"]
    batch = np.arange(*settings["ids"]).reshape(-1, 2)

    def data(context=None):
        labels = np.zeros([len(batch), 2, 4], np.float32)
        return tf.data.Dataset.from_tensors((batch, labels)).repeat()

    found = {}

    class Publishing(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == settings["epochs"] - 2:
                slipstream.export.save_version(model, folder + "/1")
            elif epoch == settings["epochs"] - 1:
                delta = slipstream.export.save_delta(model, 1, folder + "/delta", version=2)
                slipstream.export.apply_delta(folder + "/1", folder + "/delta", folder + "/2")
                found["num_rows"] = delta.num_rows
                np.savez(folder + "/asked.npz", ids=batch, vectors=model(tf.constant(batch)))

    callbacks = []
    if "publish" in settings:
        tracker = slipstream.export.DeltaTracker(model, folder + "/marks")
        callbacks.append(Publishing())
    arguments = {"epochs": settings["epochs"], "steps_per_epoch": 10, "verbose": 0}
    trainer = slipstream.distribute.ParameterServerTrainer(
        model, strategy, folder + "/checkpoints", 5
    )
    history = trainer.fit(data, callbacks=callbacks, **arguments)
    if "publish" in settings:
        found["versions"] = [*map(int, tracker.versions)]
    found["num_epochs"] = len(history.epoch)
    known, rows = ids.ids()
    optimizer.wake_all()
    return found | {
        "known": [len(known), int(known.min()), int(known.max())],
        "counts": np.unique(table_of(layer)[rows]).tolist(),
        "stats": vars(ids.stats()),
        "iterations": int(optimizer.iterations.numpy()),
        "num_shards": [ids._num_shards, len(layer._shards)],
    }


def kept_rows(settings):
    """What is said where workers would keep rows that a vocabulary takes back."""
    strategy = connect()
    with strategy.scope():
        layer = layer_of(settings, policy=policy_of(settings))
        ids = slipstream.DynamicVocabulary(NUM_ROWS, name="ids")
        layer.build()
        ids.build()
        optimizer = optimizer_of(keras.optimizers.SGD(1.0), settings)
        optimizer.build(layer.trainable_variables)
    try:
        layer(ids(tf.constant([1, 2]), training=True))
    except ValueError as error:
        return {"said": str(error)}
    return {"said": ""}


def backups(settings):
    """Returns the callbacks with which tf_keras's `fit` goes on where an earlier one ended."""
    folder = settings.get("folder")
    return [] if folder is None else [keras.callbacks.BackupAndRestore(folder)]


def train_alone(settings):
    """Trains the same on this machine and on a cluster, which a test gives one worker."""
    batches = [clicks(64, seed=seed) for seed in range(settings["steps"])]
    initial = np.random.default_rng(1).normal(size=(NUM_ROWS, 4)).astype(np.float32)

    def build():
        layer = layer_of(settings, embeddings_initializer="zeros")
        layer.build()
        optimizer = optimizer_of(getattr(keras.optimizers, settings["rule"])(0.05), settings)
        optimizer.build(layer.trainable_variables)
        return layer, optimizer

    def step(layer, optimizer, ids, labels):
        with tf.GradientTape() as tape:
            logits = tf.reduce_sum(layer(ids), axis=[1, 2])
            losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        tables = [_compat.tf_variable(v) for v in layer.trainable_variables]
        optimizer.apply_gradients(zip(tape.gradient(loss, tables), layer.trainable_variables))

    alone, optimizer_alone = build()
    _compat.tf_variable(alone.trainable_variables[0]).assign(initial)
    on_machine = tf.function(lambda ids, labels: step(alone, optimizer_alone, ids, labels))
    for ids, labels in batches:
        on_machine(tf.constant(ids), tf.constant(labels))
    # To connect to a cluster is to lose what was here before.
    stats_alone = vars(optimizer_alone.skip_stats()["item"])
    optimizer_alone.wake_all()
    table_alone = _compat.tf_variable(alone.trainable_variables[0]).numpy()

    strategy = connect(settings.get("partitioned"))
    with strategy.scope():
        layer, optimizer = build()
        start = 0
        for shard in layer._shards:
            shard.assign(initial[start : start + shard.shape[0]])
            start += shard.shape[0]
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    on_worker = tf.function(
        lambda ids, labels: strategy.run(
            lambda ids, labels: step(layer, optimizer, ids, labels), args=(ids, labels)
        )
    )
    for ids, labels in batches:
        coordinator.schedule(on_worker, args=(tf.constant(ids), tf.constant(labels)))
        coordinator.join()
    before = stats_of(optimizer)["item"]
    optimizer.wake_all()
    difference = np.abs(table_of(layer) - table_alone)
    return {
        "stats": before,
        "stats_alone": stats_alone,
        "largest_difference": float(difference.max()),
    }


if __name__ == "__main__":
    result = globals()[sys.argv[1]](json.loads(sys.argv[2]))
    print(json.dumps(result))
