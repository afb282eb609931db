"""What does a bounded vocabulary cost a model, beside an unbounded one and the hashing trick?

    python benchmarks/vocabulary_quality.py --log churn --seeds 3
    python benchmarks/vocabulary_quality.py --log diginetica --data-dir DIR --strings

Logs in the order of time. Each part is predicted before it is trained on; the AUC is the mean over
the parts of the last two thirds. `churn`: 30 days, a synthetic user and item an example, 1% of the
ids are new each day and take the places of others, popularity is Zipf's. `diginetica`: real clicks;
two towers, each with a table of its own, tell the item that a session clicks next from four that
somebody clicked shortly before, by the last three items of the session.
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

DIM, BATCH, PADDING = 16, 1024, -1


def churn(seed, num_days=30, num_active=20_000, num_examples=20_000, new_share=0.01):
    """Yields a list of ids int64 `[num_examples, 2]`, and labels `[num_examples, 1]`, of a day."""
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
        yield [np.stack([active[i][places[i]] for i in range(2)], axis=1)], labels[:, None]


def diginetica(seed, data_dir, num_parts=30, num_previous=3, num_negatives=4, window=10_000):
    """Yields ids `[num, num_previous]` and `[num, 1 + num_negatives]`, and which is the next."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(pathlib.Path(data_dir) / "diginetica.parquet")
    session, item = (table[name].to_numpy().astype(np.int64) for name in ("session", "item"))
    previous = np.full([len(item), num_previous], PADDING)
    for back in range(1, num_previous + 1):
        is_same = session[back:] == session[:-back]
        previous[back:, back - 1] = np.where(is_same, item[:-back], PADDING)
    follows = np.flatnonzero(previous[:, 0] != PADDING)
    # Clicks before, so that nothing of the future is told.
    shift = np.random.default_rng(seed).integers(1, window, size=[len(follows), num_negatives])
    others = item[np.abs(follows[:, None] - shift)]
    candidates = np.concatenate([item[follows, None], others], axis=1)
    labels = np.zeros(candidates.shape, bool)
    labels[:, 0] = True
    for part in np.array_split(np.arange(len(follows)), num_parts):
        yield [previous[follows[part]], candidates[part]], labels[part]


def rows_of(kind, ids, capacity, admit_after, name):
    """Returns rows of ids, which are hashed already where that is the kind."""
    if kind == "hashing":
        return ids
    dtype = "string" if ids.dtype in ("string", tf.string) else "int64"
    # Mixed: half of the rows are shared by the ids without one, by their hash.
    num_oov = capacity // 2 if kind == "mixed" else 1
    return slipstream.DynamicVocabulary(
        capacity, admit_after=admit_after, num_oov=num_oov, dtype=dtype, name=f"{name}_ids"
    )(ids)


def table_of(capacity, dim, seed, name, **options):
    initializer = keras.initializers.RandomUniform(-0.05, 0.05, seed=seed)
    return slipstream.SlipstreamEmbedding(capacity, dim, initializer, name=name, **options)


def model_of_churn(case, seed, dtype):
    kind, capacity, admit_after = case
    ids = keras.Input([2], dtype=dtype)
    rows = rows_of(kind, ids, capacity, admit_after, "table")
    vectors = table_of(capacity, DIM, seed, "table")(rows)
    product = keras.layers.Lambda(lambda x: x[:, 0] * x[:, 1], output_shape=(DIM,))(vectors)
    x = keras.layers.Concatenate()([keras.layers.Flatten()(vectors), product])
    x = keras.layers.Dense(32, activation="relu")(x)
    return keras.Model([ids], keras.layers.Dense(1)(x)), keras.optimizers.Adagrad(0.1)


def model_of_diginetica(case, seed, dtype):
    """Returns two towers, and their optimizer: as `benchmarks/quality` has them."""
    kind, capacity, admit_after = case
    inputs = [keras.Input([num], dtype=dtype) for num in (3, 5)]
    previous, item = (
        rows_of(kind, one, capacity, admit_after, name)
        for one, name in zip(inputs, ("previous", "item"))
    )
    options = {"combiner": "mean", "mask_zero": True}
    query = table_of(capacity, 2 * DIM, seed, "previous", **options)(previous)
    query = keras.layers.Dense(2 * DIM)(query)
    dots = keras.layers.Dot(axes=(2, 1))([table_of(capacity, 2 * DIM, seed, "item")(item), query])
    scores = keras.layers.Dense(1, kernel_initializer="ones")(keras.layers.Reshape((5, 1))(dots))
    # Keras's accumulators begin far above the squared gradients of a mean loss: it learns nothing.
    inner = keras.optimizers.Adagrad(0.3, initial_accumulator_value=1e-6)
    return keras.Model(inputs, keras.layers.Reshape((5,))(scores)), inner


MODELS = {"churn": model_of_churn, "diginetica": model_of_diginetica}


def as_given(ids, kind, capacity, strings):
    """Returns ids as a model gets them: rows of the hashing trick, strings, or as they are."""
    if kind == "hashing":
        mixed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        # Row 0 is that of padding.
        first = int((ids == PADDING).any())
        num_rows = np.uint64(capacity - first)
        rows = ((mixed >> np.uint64(32)) * num_rows >> np.uint64(32)).astype(np.int64)
        return np.where(ids == PADDING, 0, rows + first)
    if strings:
        return np.where(ids == PADDING, b"", np.char.mod(b"item-%d", ids))
    return ids


def auc_of(labels, scores):
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(1, len(scores) + 1)
    num = labels.sum()
    return (ranks[labels].sum() - num * (num + 1) / 2) / (num * (len(labels) - num))


def run(log, parts, case, seed, strings):
    """Returns the mean AUC, and the model."""
    keras.utils.set_random_seed(seed)
    kind, capacity, _ = case
    model, inner = MODELS[log](case, seed, "string" if strings and kind != "hashing" else "int64")
    model.compile(
        slipstream.SlipstreamOptimizer(inner),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
    )
    aucs = []
    for ids, labels in parts:
        ids = tuple(tf.constant(as_given(one, kind, capacity, strings)) for one in ids)
        scores = model.predict(tf.data.Dataset.from_tensor_slices((ids,)).batch(8192), verbose=0)
        aucs.append(auc_of(labels.ravel(), scores.ravel()))
        data = tf.data.Dataset.from_tensor_slices((ids, labels.astype(np.float32)))
        model.fit(data.batch(BATCH, drop_remainder=True), verbose=0)
    return np.mean(aucs[len(aucs) // 3 :]), model


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", choices=["churn", "diginetica"], default="churn")
    parser.add_argument("--data-dir")
    parser.add_argument("--strings", action="store_true", help="give ids as strings")
    parser.add_argument("--seeds", type=int, default=3)
    kinds = ["unbounded", "hashing", "bounded", "mixed"]
    parser.add_argument("--kinds", nargs="*", default=kinds, choices=kinds)
    parser.add_argument("--capacities", type=int, nargs="*", default=[2500, 5000, 10_000])
    args = parser.parse_args()
    results = {}
    for seed in range(args.seeds):
        if args.log == "churn":
            parts = list(churn(seed))
        else:
            parts = list(diginetica(seed, args.data_dir))
        num_ids = len(np.unique(np.concatenate([one.ravel() for ids, _ in parts for one in ids])))
        cases = [("unbounded", num_ids + 2, 1)]
        for capacity in args.capacities:
            cases += [] if args.strings else [("hashing", capacity, 1)]
            cases += [("bounded", capacity, admit_after) for admit_after in (1, 2)]
            cases += [("mixed", capacity, 4)]
        cases = [case for case in cases if case[0] in args.kinds]
        for case in cases:
            auc, model = run(args.log, parts, case, seed, args.strings)
            key = (case[0], case[1] if case[0] != "unbounded" else "all", case[2])
            results.setdefault(key, []).append(auc)
            print(seed, case, f"{auc:.4f}", flush=True)
            if case[0] == "bounded" and seed == 0:
                for layer in model.layers:
                    if isinstance(layer, slipstream.DynamicVocabulary):
                        print("  ", layer.stats(), flush=True)
    print("| ids | rows | `admit_after` | AUC | seeds' spread |\n|---|---|---|---|---|")
    for (kind, rows, admit_after), aucs in results.items():
        print(f"| {kind} | {rows} | {admit_after} | {np.mean(aucs):.4f} | {np.std(aucs):.4f} |")


if __name__ == "__main__":
    main()
