"""What does a bounded vocabulary cost a model, beside an unbounded one and the hashing trick?

    python benchmarks/vocabulary_quality.py --log churn --seeds 3
    python benchmarks/vocabulary_quality.py --log diginetica --data-dir DIR

Logs in the order of time. Each part is predicted before it is trained on; the AUC is the mean over
the parts of the last two thirds. `churn`: 30 days, a synthetic user and item an example, 1% of the
ids are new each day and take the places of others, popularity is Zipf's. `diginetica`: clicks of a
session; the item is the next one, or one that somebody clicked shortly before.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import tf_slipstream as slipstream
from tf_slipstream._compat import keras

DIM, BATCH = 16, 1024


def churn(seed, num_days=30, num_active=20_000, num_examples=20_000, new_share=0.01):
    """Yields ids int64 `[num_examples, 2]` and labels of each day."""
    random = np.random.default_rng(seed)
    shares = 1 / np.arange(1, num_active + 1) ** 1.05
    shares /= shares.sum()
    active = random.integers(1 << 62, size=[2, num_active])
    quality = random.normal(size=[2, num_active])
    for _ in range(num_days):
        is_new = random.random([2, num_active]) < new_share
        active = np.where(is_new, random.integers(1 << 62, size=active.shape), active)
        quality = np.where(is_new, random.normal(size=active.shape), quality)
        places = random.choice(num_active, [2, num_examples], p=shares)
        logits = sum(quality[i][places[i]] for i in range(2)) * 1.5
        labels = random.random(num_examples) < 1 / (1 + np.exp(-logits))
        yield np.stack([active[i][places[i]] for i in range(2)], axis=1), labels


def diginetica(seed, data_dir, num_parts=30):
    """Yields pairs of an item and the next one, or another, and which it is."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(pathlib.Path(data_dir) / "diginetica.parquet")
    session, item = (table[name].to_numpy().astype(np.int64) for name in ("session", "item"))
    follows = np.flatnonzero(session[1:] == session[:-1])
    random = np.random.default_rng(seed)
    other = item[np.maximum(0, follows - random.integers(1, 20_000, len(follows)))]
    is_next = random.random(len(follows)) < 0.5
    ids = np.stack([item[follows], np.where(is_next, item[follows + 1], other)], axis=1)
    yield from zip(np.array_split(ids, num_parts), np.array_split(is_next, num_parts))


def model_of(kind, capacity, admit_after, seed):
    keras.utils.set_random_seed(seed)
    ids = keras.Input([2], dtype="int64")
    rows = ids
    if kind != "hashing":
        rows = slipstream.DynamicVocabulary(capacity, admit_after=admit_after, name="ids")(ids)
    layer = slipstream.SlipstreamEmbedding(
        capacity, DIM, keras.initializers.RandomUniform(-0.05, 0.05, seed=seed), name="table"
    )
    vectors = layer(rows)
    product = keras.layers.Lambda(lambda x: x[:, 0] * x[:, 1], output_shape=(DIM,))(vectors)
    x = keras.layers.Concatenate()([keras.layers.Flatten()(vectors), product])
    x = keras.layers.Dense(32, activation="relu")(x)
    model = keras.Model(ids, keras.layers.Dense(1, activation="sigmoid")(x))
    optimizer = slipstream.SlipstreamOptimizer(keras.optimizers.Adagrad(0.1))
    model.compile(optimizer, loss="binary_crossentropy")
    return model


def auc_of(labels, scores):
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(1, len(scores) + 1)
    num = labels.sum()
    return (ranks[labels].sum() - num * (num + 1) / 2) / (num * (len(labels) - num))


def run(parts, kind, capacity, admit_after, seed):
    """Returns the mean AUC, and the model."""
    model, aucs = model_of(kind, capacity, admit_after, seed), []
    for ids, labels in parts:
        if kind == "hashing":
            mixed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            ids = ((mixed >> np.uint64(32)) * np.uint64(capacity) >> np.uint64(32)).astype(np.int64)
        aucs.append(auc_of(labels, model.predict(ids, batch_size=8192, verbose=0)[:, 0]))
        data = tf.data.Dataset.from_tensor_slices((ids, labels.astype(np.float32)[:, None]))
        model.fit(data.batch(BATCH, drop_remainder=True), verbose=0)
    return np.mean(aucs[len(aucs) // 3 :]), model


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", choices=["churn", "diginetica"], default="churn")
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--capacities", type=int, nargs="*", default=[2500, 5000, 10_000])
    args = parser.parse_args()
    results = {}
    for seed in range(args.seeds):
        if args.log == "churn":
            parts = list(churn(seed))
        else:
            parts = list(diginetica(seed, args.data_dir))
        num_ids = len(np.unique(np.concatenate([ids for ids, _ in parts])))
        cases = [("unbounded", num_ids + 2, 1)]
        for capacity in args.capacities:
            cases += [("hashing", capacity, 1)]
            cases += [("bounded", capacity, admit_after) for admit_after in (1, 2)]
        for case in cases:
            auc, model = run(parts, *case, seed)
            results.setdefault((case[0], case[1] if case[0] != "unbounded" else "all", case[2]), [])
            results[case[0], case[1] if case[0] != "unbounded" else "all", case[2]].append(auc)
            print(seed, case, f"{auc:.4f}", flush=True)
            if case[0] == "bounded" and seed == 0:
                print("  ", model.get_layer("ids").stats(), flush=True)
    print("| ids | rows | admit_after | AUC | seeds' spread |\n|---|---|---|---|---|")
    for (kind, rows, admit_after), aucs in results.items():
        print(f"| {kind} | {rows} | {admit_after} | {np.mean(aucs):.4f} | {np.std(aucs):.4f} |")


if __name__ == "__main__":
    main()
