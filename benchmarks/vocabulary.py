"""How long is a lookup of a raw id, beside TensorFlow's hash tables and absl's?

    python benchmarks/vocabulary.py --entries 10000000
    build/tfra/bin/python benchmarks/vocabulary.py --subjects "TFRA CuckooHashTable"

`make bench-peers` makes build/tfra. Ids are random int64, uniform over the entries; a tenth of the
lookups are of ids that nobody has seen. All subjects find the same rows, which is checked in their
first batch. One thread; what is measured is its processor time, since other programs may have the
cores.
"""

import argparse
import ctypes
import json
import os
import pathlib
import subprocess
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
import machine
import numpy as np
import tensorflow as tf

HERE = pathlib.Path(__file__).parent

FIRST_ROW = 2  # after those of padding and unknown ids


def batches_of(ids, args):
    """Yields batches, the tenth of whose ids are new in each."""
    random = np.random.default_rng(1)
    while True:
        batch = random.choice(ids, args.batch)
        is_new = random.random(args.batch) < 1 - args.hits
        batch[is_new] = random.integers(1 << 62, 1 << 63, is_new.sum())
        yield batch


def of_vocabulary(ids, training):
    """Returns a lookup by `DynamicVocabulary`, in training or as it is exported."""
    import tf_slipstream as slipstream  # which TFRA's environment does not have

    layer = slipstream.DynamicVocabulary(len(ids) + FIRST_ROW, admit_after=100)
    layer.set_ids(ids)
    return tf.function(lambda batch: layer(batch, training=training))


def of_table(ids, kind):
    """Returns a lookup by one of TensorFlow's tables."""
    if kind == "dense":
        table = tf.lookup.experimental.DenseHashTable(
            tf.int64, tf.int64, 1, -1, -2, initial_num_buckets=1 << int(2 * len(ids)).bit_length()
        )
    else:
        table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, 1)
    fill(table, ids)
    return tf.function(table.lookup)


def of_cuckoo(ids):
    """Returns a lookup by TFRA's hash table, in an environment of its own."""
    import tensorflow_recommenders_addons as tfra

    table = tfra.dynamic_embedding.CuckooHashTable(tf.int64, tf.int64, [1], init_size=2 * len(ids))
    fill(table, ids, row_shape=[1])
    return tf.function(lambda batch: table.lookup(batch)[:, 0])


def fill(table, ids, row_shape=()):
    rows = np.arange(FIRST_ROW, FIRST_ROW + len(ids)).reshape(-1, *row_shape)
    for begin in range(0, len(ids), 1 << 20):
        part = slice(begin, begin + (1 << 20))
        table.insert(tf.constant(ids[part]), tf.constant(rows[part]))


def of_absl(ids):
    """Returns a lookup by `absl::flat_hash_map`, compiled against TensorFlow's headers."""
    folder = tempfile.mkdtemp()
    library = f"{folder}/flat_hash_map.so"
    flags = [*tf.sysconfig.get_compile_flags(), *tf.sysconfig.get_link_flags()]
    source = str(HERE / "flat_hash_map.cc")
    command = ["g++", "-O3", "-march=native", "-shared", "-fPIC", source, "-o", library, *flags]
    subprocess.run([*command, "-std=c++17"], check=True)
    loaded = ctypes.CDLL(library)

    def pointer(array):
        return ctypes.c_void_p(array.ctypes.data)

    loaded.Fill(pointer(ids), ctypes.c_int64(len(ids)))

    def look_up(batch):
        rows = np.empty(len(batch), np.int64)
        loaded.LookUp(pointer(batch), ctypes.c_int64(len(batch)), pointer(rows))
        return rows

    return look_up


SUBJECTS = {
    "vocabulary, training": lambda ids: of_vocabulary(ids, True),
    "vocabulary, exported": lambda ids: of_vocabulary(ids, False),
    "DenseHashTable": lambda ids: of_table(ids, "dense"),
    "MutableHashTable": lambda ids: of_table(ids, "mutable"),
    "absl::flat_hash_map": of_absl,
    "TFRA CuckooHashTable": of_cuckoo,
}
# This one needs another environment.
DEFAULT = [name for name in SUBJECTS if not name.startswith("TFRA")]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--batch", type=int, default=65_536)
    parser.add_argument("--hits", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--subjects", nargs="*", default=DEFAULT, choices=[*SUBJECTS])
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    ids = np.random.default_rng(0).integers(0, 1 << 62, args.entries)
    ids = np.unique(ids)
    np.random.default_rng(2).shuffle(ids)
    order = np.argsort(ids)
    for name in args.subjects:
        look_up = SUBJECTS[name](ids)
        batches, seconds = batches_of(ids, args), []
        for number in range(args.rounds + 5):
            batch = next(batches)
            given = batch if name.startswith("absl") else tf.constant(batch)
            begin = time.process_time()
            rows = np.asarray(look_up(given))
            seconds.append(time.process_time() - begin)
            if number == 0:
                places = np.minimum(np.searchsorted(ids, batch, sorter=order), len(ids) - 1)
                is_known = ids[order[places]] == batch
                expected = np.where(is_known, order[places] + FIRST_ROW, 1)
                np.testing.assert_array_equal(rows, expected)
        ns = np.array(seconds[5:]) / args.batch * 1e9
        low, median, high = np.percentile(ns, [10, 50, 90])
        print(f"| {name} | {median:.1f} | {low:.1f}-{high:.1f} |", flush=True)
        del look_up
    print(json.dumps(machine.describe()))


if __name__ == "__main__":
    main()
