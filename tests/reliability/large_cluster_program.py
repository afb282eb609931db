"""What the coordinators of `large_cluster` do: `large_cluster_program.py PART JSON`.

Each part prints a JSON line for what it measured, and one last with what it found.
"""

import contextlib
import json
import os
import pathlib
import sys
import time

import numpy as np
import tensorflow as tf

import tf_slipstream as slipstream
from tf_slipstream import _compat

keras = _compat.keras
# A power of two: products with whole numbers are exact.
RATE = 0.125
# No row that comes in a few batches alone ever sleeps, and those of all batches do.
POLICY = {"min_updates": 8, "window": 2, "updates_per_sleep": 1, "threshold": 1e9, "max_sleep": 8}
_CHUNK_ROWS = 1 << 20


class Lookup(keras.Model):
    """A model that is one table."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, ids):
        return self.layer(ids)


def minus_sum(labels, rows):
    """A loss whose gradient is -1 for each element looked up."""
    return -tf.reduce_sum(rows)


class Parts:
    """Prints of each part how long it took, and the peak of each process's memory in it, in MB."""

    def __init__(self, settings):
        self._pids = {**settings.get("pids", {}), "coordinator": os.getpid()}
        self._name = None

    def begin(self, name):
        """Ends the part before."""
        self.end()
        self._name, self._begin = name, time.monotonic()
        print(f"{name} ...", flush=True)
        for pid in self._pids.values():
            # From now on the peak is that of what comes.
            pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")

    def end(self):
        if self._name is not None:
            seconds = round(time.monotonic() - self._begin, 1)
            peaks = {task: _peak(pid) for task, pid in self._pids.items()}
            print(json.dumps({"part": self._name, "seconds": seconds, "peaks": peaks}), flush=True)
        self._name = None


def _peak(pid):
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


def connect(settings):
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    partitioner = None
    if not _compat.IS_KERAS_3:
        partitioner = tf.distribute.experimental.partitioners.MinSizePartitioner(
            max_shards=settings["num_servers"]
        )
    return tf.distribute.ParameterServerStrategy(resolver, variable_partitioner=partitioner)


def build(settings, scope=None):
    """Returns a model of one table, compiled; its layer; and its optimizer."""
    initializer = "uniform" if settings["rule"] == "Adagrad" else "zeros"
    with scope or contextlib.nullcontext():
        layer = slipstream.SlipstreamEmbedding(
            settings["rows"], settings["dim"], initializer, name="item"
        )
        model = Lookup(layer)
        model(tf.zeros([1], tf.int64))
        rule = getattr(keras.optimizers, settings["rule"])(RATE)
        policy = slipstream.StalenessPolicy(**POLICY)
        optimizer = slipstream.SlipstreamOptimizer(rule, policy)
        model.compile(optimizer, loss=minus_sum)
        if scope is not None:
            optimizer.build(model.trainable_variables)
    return model, layer, optimizer


def tables_of(layer):
    return layer._shards or (_compat.tf_variable(_compat.table_of(layer)),)


def digest(variables):
    """Returns a sum over the bits and places of variables, each after the one before.

    Computed where they are: nothing but the sum travels.
    """
    total, start = 0, 0
    for variable in variables:
        with tf.device(variable.device):
            total += int(_digest(variable, tf.constant(start, tf.int64)))
        start += int(np.prod(variable.shape))
    return total % 2**64


def _digest(variable, start):
    size = int(np.prod(variable.shape[1:]))
    num = int(variable.shape[0]) if variable.shape.rank else 1

    def of_rows(first, total):
        last = tf.minimum(first + _CHUNK_ROWS, num)
        # A gather reads these rows alone.
        rows = tf.gather(variable, tf.range(first, last)) if variable.shape.rank else variable
        bits = tf.bitcast(rows, tf.int32 if variable.dtype.size == 4 else tf.int64)
        flat = tf.cast(tf.reshape(bits, [-1]), tf.int64)
        places = start + first * size + tf.range(tf.size(flat, tf.int64))
        weights = places * 0x1E3779B97F4A7C15 + 0x7F4A7C15
        return last, total + tf.reduce_sum(flat * weights)

    @tf.function
    def of_all():
        zero = tf.zeros([], tf.int64)
        return tf.while_loop(lambda first, _: first < num, of_rows, [zero, zero])[1]

    return of_all()


def digests(optimizer, layer):
    """Returns a digest of each variable of a table and its state, on the servers that have them."""
    found = {"table": digest(tables_of(layer))}
    for name, state in optimizer.tables.items():
        named = {f"slot{i}": slot for i, slot in enumerate(state.slots)}
        for field in ("changed_rows", "row_states", "pool_ints", "pool_floats", "policy_state"):
            named[field] = getattr(state, field)
        found |= {f"{name}/{one}": digest([variable]) for one, variable in named.items()}
    return found


def held(optimizer):
    """Returns the sum of the absolute values that the servers hold for sleeping rows."""
    total = 0.0
    for state in optimizer.tables.values():
        with tf.device(state.table.device):
            total += float(tf.reduce_sum(tf.abs(state.pool_floats[:, : state.dim])))
    return total


def batches_of(settings):
    """Returns ids `[num_steps, batch]`, distinct in a batch, and which of each are in all batches.

    Those in all batches are the table's ends and both sides of all borders of shards, and others;
    the rest come in one batch alone, and are spread over the whole table.
    """
    rows, num_steps, batch = settings["rows"], settings["steps"], settings["batch"]
    rng = np.random.default_rng(0)
    borders = [rows * i // n for n in range(1, 9) for i in range(n + 1)]
    hot = np.unique([b + d for b in borders for d in (-1, 0, 1) if 0 <= b + d < rows])
    num_cold = batch - len(hot)
    stride = rows // (num_steps * num_cold)
    cold = stride * np.arange(num_steps * num_cold) + rng.integers(0, stride, num_steps * num_cold)
    cold = rng.permutation(cold).reshape(num_steps, num_cold)
    # One that is also a border is moved off it; by one is enough for none to come twice.
    cold = np.where(np.isin(cold, hot), -1, cold)
    free = np.setdiff1d(np.arange(min(rows, 10 * cold.size)), np.union1d(cold, hot))
    cold[cold < 0] = free[: np.sum(cold < 0)]
    ids = np.concatenate([np.broadcast_to(hot, (num_steps, len(hot))), cold], axis=1)
    return ids.astype(np.int64), len(hot)


def rows_and_sums(layer, optimizer, ids):
    """Returns rows of the table, and of its slot if there is one, float32 `[*ids.shape, dim]`."""
    flat = ids.reshape(-1)
    rows = layer(tf.constant(flat)).numpy()
    states = list(optimizer.tables.values())
    sums = np.zeros_like(rows)
    if states[0].slots:
        start = 0
        for state in states:
            mine = (start <= flat) & (flat < start + state.num_rows)
            sums[mine] = tf.gather(state.slots[0], flat[mine] - start).numpy()
            start += state.num_rows
    shape = (*ids.shape, layer.output_dim)
    return rows.reshape(shape), sums.reshape(shape)


def check(settings, before, after, num_hot):
    """Holds what was trained to a plain account of it; returns how many rows were compared.

    Each worker reads the same batches in the same order, and nobody knows which worker did how
    many steps. So a batch was trained 2 times, once or not at all, its rows alike.
    """
    (old, old_sums), (new, new_sums) = before, after
    num_steps = settings["steps"]
    cold = np.s_[:, num_hot:]
    if settings["rule"] == "SGD":
        times = (new - old) / np.float32(RATE)
    else:
        times = new_sums - old_sums
    counts = np.rint(times[:, -1, 0]).astype(int)
    assert counts.sum() == num_steps, (counts, num_steps)
    assert counts.max() <= 2 and np.all(np.diff(counts) <= 0), counts
    expected, sums = old[cold].copy(), old_sums[cold].copy()
    for number in range(2):
        done = (counts > number)[:, None, None]
        sums = np.where(done, sums + np.float32(1), sums)
        if settings["rule"] == "SGD":
            moved = expected + np.float32(RATE)
        else:
            moved = expected + np.float32(RATE) / np.sqrt(sums + np.float32(1e-7))
        expected = np.where(done, moved, expected)
    if settings["rule"] == "SGD":
        np.testing.assert_array_equal(new[cold], expected)
        if not settings["restores"]:
            # Else `old` lacks what was held; with no slot a sum is as good as its parts.
            np.testing.assert_array_equal(new[0, :num_hot], old[0, :num_hot] + num_steps * RATE)
    else:
        np.testing.assert_array_equal(new_sums[cold], sums)
        np.testing.assert_allclose(new[cold], expected, rtol=0, atol=2e-7)
        # A sum `g` of several batches adds `g^2`; how they were divided nobody knows.
        added = new_sums[0, :num_hot] - old_sums[0, :num_hot]
        most = (2 * num_steps) ** 2 if settings["restores"] else num_steps**2
        assert np.all((added > num_steps - 0.01) & (added < most + 0.01)), added
        assert np.all(new[0, :num_hot] > old[0, :num_hot])
    return int(expected.shape[0] * expected.shape[1] + num_hot)


class Watch(keras.callbacks.Callback):
    """Takes digests at the end of an epoch, after its checkpoint."""

    def __init__(self, look, save=None):
        super().__init__()
        self._look, self._save = look, save

    def on_epoch_end(self, epoch, logs=None):
        if self._save is not None:
            self._save()
        self._look("saved")


class Trainer(slipstream.distribute.ParameterServerTrainer if _compat.IS_KERAS_3 else object):
    """Tells what it does."""

    def __init__(self, parts, look, *args):
        super().__init__(*args)
        self._parts, self._look = parts, look

    def _restore(self):
        self._parts.begin("restore")
        step = super()._restore()
        if step:
            self._look("restored")
        self._parts.begin("train")
        return step

    def _save(self, step):
        self.coordinator.join()
        self._parts.begin("checkpoint")
        super()._save(step)


def fit(settings, parts, strategy, model, optimizer, look, data):
    """Trains with a checkpoint at the end; calls `look` for what was restored and was saved."""
    folder, num_steps = pathlib.Path(settings["folder"], "checkpoints"), settings["steps"]
    if _compat.IS_KERAS_3:
        trainer = Trainer(parts, look, model, strategy, folder)
        epochs = 2 if settings["restores"] else 1
        trainer.fit(data, epochs, steps_per_epoch=num_steps, callbacks=[Watch(look)], verbose=0)
        return
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    manager = tf.train.CheckpointManager(checkpoint, folder, 1)
    if settings["restores"]:
        parts.begin("restore")
        checkpoint.restore(manager.latest_checkpoint).assert_consumed()
        look("restored")

    def save():
        parts.begin("checkpoint")
        manager.save()

    parts.begin("train")
    creator = tf.keras.utils.experimental.DatasetCreator(data)
    callbacks = [Watch(look, save)]
    model.fit(creator, epochs=1, steps_per_epoch=num_steps, callbacks=callbacks, verbose=0)


def train(settings):
    """Trains, after restoring a checkpoint if there is one; writes a checkpoint, then weights."""
    parts = Parts(settings)
    parts.begin("build")
    strategy = connect(settings)
    model, layer, optimizer = build(settings, strategy.scope())
    ids, num_hot = batches_of(settings)
    found, before = {"num_shards": len(layer._shards)}, []

    def data(context=None):
        labels = tf.zeros([len(ids), settings["batch"]])
        return tf.data.Dataset.from_tensor_slices((ids, labels)).repeat()

    def look(name):
        parts.begin(f"digests of what was {name}")
        found[name] = digests(optimizer, layer)
        found[f"held {name}"] = held(optimizer)
        if name == "restored":
            before[:] = rows_and_sums(layer, optimizer, ids)

    before[:] = rows_and_sums(layer, optimizer, ids)
    fit(settings, parts, strategy, model, optimizer, look, data)
    parts.begin("check")
    optimizer.wake_all()
    after = rows_and_sums(layer, optimizer, ids)
    found["num_checked"] = check(settings, before, after, num_hot)
    stats = optimizer.skip_stats()["item"]
    found["num_lookups"], found["num_deferred"] = stats.num_lookups, stats.num_deferred_lookups
    if settings["saves"]:
        save(settings, parts, model, layer, ids)
        found["table"] = digest(tables_of(layer))
    parts.end()
    return found


def save(settings, parts, model, layer, ids):
    """Writes weights in each way there is, and rows that a worker looks up."""
    folder = pathlib.Path(settings["folder"])
    parts.begin("save_weights")
    model.save_weights(folder / "model.weights.h5")
    if not _compat.IS_KERAS_3:
        parts.begin("tf.train.Checkpoint of the layer")
        tf.train.Checkpoint(layer=layer).write(folder / "layer")
    parts.begin("lookups")
    np.savez(folder / "rows.npz", ids=ids, rows=layer(tf.constant(ids)).numpy())


def load(settings):
    """Loads weights into a cluster of another size, or where there is none into this process."""
    parts = Parts(settings)
    parts.begin("build")
    folder, is_alone = pathlib.Path(settings["folder"]), "pids" not in settings
    if is_alone:
        model, layer, _ = build(settings)
    else:
        strategy = connect(settings)
        model, layer, _ = build(settings, strategy.scope())
    found = {"num_shards": len(layer._shards)}
    if not _compat.IS_KERAS_3:
        parts.begin("tf.train.Checkpoint of the layer, read")
        checkpoint = tf.train.Checkpoint(layer=layer)
        checkpoint.read(folder / "layer").expect_partial().assert_existing_objects_matched()
        found["read table"] = digest(tables_of(layer))
        for table in tables_of(layer):
            table.scatter_nd_update([[0, 0]], [7.0])  # so that what is loaded next is seen
    parts.begin("load_weights")
    model.load_weights(folder / "model.weights.h5")
    parts.begin("lookups")
    found["table"] = digest(tables_of(layer))
    found["num_wrong"] = num_wrong(folder, layer)
    if is_alone:
        parts.begin("save_version")
        (folder / "models").mkdir()
        slipstream.export.save_version(
            model, folder / "models" / "1", inputs=tf.TensorSpec([None], tf.int64)
        )
    parts.end()
    return found


def num_wrong(folder, look_up):
    """Returns how many numbers are not those that the cluster looked up, to the bit."""
    with np.load(folder / "rows.npz") as file:
        rows = np.concatenate([np.asarray(look_up(tf.constant(ids))) for ids in file["ids"]])
        expected = file["rows"].reshape(rows.shape)
    return int(np.sum(rows.view(np.int32) != expected.view(np.int32)))


def serve(settings):
    """Looks rows up in what was exported, as a server does."""
    parts = Parts(settings)
    parts.begin("serve")
    folder = pathlib.Path(settings["folder"])
    served = tf.saved_model.load(str(folder / "models" / "1")).signatures["serving_default"]
    name = next(iter(served.structured_input_signature[1]))
    found = {"num_wrong": num_wrong(folder, lambda ids: served(**{name: ids})["output_0"])}
    parts.end()
    return found


if __name__ == "__main__":
    result = globals()[sys.argv[1]](json.loads(sys.argv[2]))
    print(json.dumps({"found": result}), flush=True)
