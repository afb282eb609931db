"""Trains a click model (DLRM) with stock Keras and with tf_slipstream, and compares them.

    make demo                                    # a synthetic click log
    make demo DATA=train.txt.gz                  # Criteo's own format, or a .parquet file
    make demo ARGS="--scale 0.2 --optimizer Adam"
    make demo ARGS="--keep 0.5"                  # and a model that trains on half of the inputs

Each way of training runs in a process of its own, on the same examples in the same order:

    keras        keras.layers.Embedding, a Keras 3 optimizer
    tf_keras     tf_keras.layers.Embedding, a legacy tf_keras optimizer with its sparse update
    slipstream   one SlipstreamEmbeddingCollection for all fields, SlipstreamOptimizer around the
                 same Keras 3 optimizer
    sleeping     the same with a StalenessPolicy (--policy): popular rows at rest are updated once
                 in several batches
    chosen       with --keep: slipstream on the share of the inputs that teach the model something
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import running
import tensorflow as tf
import tqdm

import tf_slipstream as slipstream
from tf_slipstream import cli

keras = tf.keras
SUBJECTS = ("keras", "tf_keras", "slipstream", "sleeping")
CHOSEN = "chosen"


def dlrm(cardinalities, num_dense, dim, bottom, top, look_up):
    """A deep learning recommendation model (Naumov et al. 2019).

    Args:
        cardinalities: Number of ids of each categorical feature.
        num_dense: Number of dense features.
        dim: Length of an embedding row.
        bottom: Units of the hidden layers on the dense features.
        top: Units of the hidden layers on the interactions.
        look_up: Returns the rows `[batch, num_fields * dim]` of `ids`, from `(cardinalities, dim,
            ids)`.

    Returns:
        Keras model from `(dense [batch, num_dense], ids [batch, num_fields])` to `[batch, 1]`, the
        probability of a click.
    """
    dense = keras.Input((num_dense,), name="dense_features")
    ids = keras.Input((len(cardinalities),), dtype="int32", name="ids")
    x = dense
    for units in (*bottom, dim):
        x = keras.layers.Dense(units, activation="relu")(x)
    rows = look_up(cardinalities, dim, ids)
    interactions = DotInteraction(dim)(keras.layers.Concatenate()([x, rows]))
    y = keras.layers.Concatenate()([x, interactions])
    for units in top:
        y = keras.layers.Dense(units, activation="relu")(y)
    return keras.Model((dense, ids), keras.layers.Dense(1, activation="sigmoid")(y))


def stock_rows(cardinalities, dim, ids):
    """Looks each field up with a layer of its own."""
    rows = [
        keras.layers.Embedding(cardinality, dim, first_values(field))(ids[:, field])
        for field, cardinality in enumerate(cardinalities)
    ]
    return keras.layers.Concatenate()(rows)


def slipstream_rows(cardinalities, dim, ids):
    """Looks all fields up at once."""
    fields = {f"C{field + 1}": cardinality for field, cardinality in enumerate(cardinalities)}
    collection = slipstream.SlipstreamEmbeddingCollection(
        fields,
        dim,
        embeddings_initializer={name: first_values(i) for i, name in enumerate(fields)},
    )
    return keras.layers.Flatten()(collection(ids))


def first_values(field):
    """Returns a field's initializer: all ways of training start from the same rows."""
    return keras.initializers.RandomUniform(-0.05, 0.05, seed=field)


class DotInteraction(keras.layers.Layer):
    """Dot products of all pairs of vectors: `[batch, num * dim]` to `[batch, num * num]`.

    Each pair comes twice, because picking one half takes longer than multiplying by it.
    """

    def __init__(self, dim, **kwargs):
        super().__init__(**kwargs)
        self.dim = dim

    def call(self, vectors):
        num = vectors.shape[-1] // self.dim
        vectors = tf.reshape(vectors, [-1, num, self.dim])
        return tf.reshape(tf.matmul(vectors, vectors, transpose_b=True), [-1, num * num])

    def compute_output_shape(self, input_shape):
        return (input_shape[0], (input_shape[-1] // self.dim) ** 2)


def make_model(subject, log, args):
    """Returns the compiled model of one way of training."""
    optimizers = keras.optimizers.legacy if subject == "tf_keras" else keras.optimizers
    # Keras starts Adagrad's accumulators at 0.1, far above the squared gradients of a mean loss.
    options = {"initial_accumulator_value": 1e-6} if args.optimizer == "Adagrad" else {}
    optimizer = getattr(optimizers, args.optimizer)(args.learning_rate, **options)
    is_ours = subject in ("slipstream", "sleeping", CHOSEN)
    if is_ours:
        policy = args.policy if subject == "sleeping" else None
        optimizer = slipstream.SlipstreamOptimizer(optimizer, policy=policy)
    look_up = slipstream_rows if is_ours else stock_rows
    keras.utils.set_random_seed(args.seed)
    model = dlrm(log.cardinalities, log.num_dense, args.dim, args.bottom, args.top, look_up)
    if subject == CHOSEN:
        pilot = slipstream.Pilot(
            list(log.cardinalities),
            ids=lambda inputs: inputs[1],
            dense=lambda inputs: inputs[0],
            num_dense=log.num_dense,
        )
        model = slipstream.SelectiveModel(model, pilot, keep=args.keep)
    model.compile(optimizer=optimizer, loss="binary_crossentropy")
    return model


class Progress(keras.callbacks.Callback):
    """Shows a progress bar and keeps the time of every step."""

    def __init__(self, name, num_steps):
        super().__init__()
        self.seconds = []
        self.bar = tqdm.tqdm(total=num_steps, desc=f"{name:>10}", unit="step")

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.perf_counter() - self.start)
        self.bar.set_postfix(loss=f"{float(logs['loss']):.4f}", refresh=False)
        self.bar.update()

    def on_train_end(self, logs=None):
        self.bar.close()


def train(subject, args):
    """Trains one way and prints what came of it as a JSON line."""
    log = open_log(args)
    num_train, num_test = split(log, args)
    model = make_model(subject, log, args)
    num_steps = -(-num_train // args.batch_size)
    progress = Progress(subject, args.epochs * num_steps)
    with contextlib.ExitStack() as stack:
        if args.report:
            run = stack.enter_context(slipstream.Experiment(args.report).run(subject, args.seed))
        start = time.perf_counter()
        for _ in range(args.epochs):
            dataset = log.dataset(num_train, args.batch_size)
            dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_steps))
            with one_line_errors(args.data):
                model.fit(dataset, shuffle=False, verbose=0, callbacks=[progress])
        total = time.perf_counter() - start
    with one_line_errors(args.data):
        test = list(log.batches(num_test, 8192, start=num_train))
    scores = np.concatenate([model.predict_on_batch(inputs)[:, 0] for inputs, _ in test])
    labels = np.concatenate([label for _, label in test])
    if args.report:
        run.save(labels, scores)
    result = {
        "subject": subject,
        # The first steps trace and compile.
        "ms_per_step": 1e3 * float(np.median(progress.seconds[5:] or progress.seconds)),
        "examples_per_second": args.epochs * num_train / total,
        "auc": float(running.area_under_curve(labels, scores)),
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    if subject == CHOSEN:
        # Some batches that are read are no step, and some are.
        result["ms_per_step"] = 1e3 * float(np.mean(progress.seconds[5:] or progress.seconds))
        result["share_kept"] = model.selection_stats().share_kept
    if subject == "sleeping":
        result |= saved_shares(model.optimizer.skip_stats().values())
    if args.data is None:
        ceiling = [log.bayes_probability(ids, dense) for (dense, ids), _ in test]
        result["best_possible_auc"] = float(
            running.area_under_curve(labels, np.concatenate(ceiling))
        )
    print(json.dumps(result))


def saved_shares(stats):
    """Returns the shares of lookups and of row updates that were deferred, over all tables."""
    return {
        "saved_lookups": sum(s.num_deferred_lookups for s in stats)
        / sum(s.num_lookups for s in stats),
        "saved_row_updates": sum(s.num_deferred_row_updates for s in stats)
        / sum(s.num_row_updates for s in stats),
    }


@contextlib.contextmanager
def one_line_errors(data):
    """Ends the program with the line in which the reader of the file `data` says what is wrong."""
    try:
        yield
    except (ValueError, tf.errors.OpError) as error:
        # TensorFlow puts that line between tracebacks.
        lines = str(error).splitlines()
        reasons = [line for line in lines if data and os.path.basename(data) in line]
        if not reasons:
            raise
        sys.exit(f"Cannot read {data}: {reasons[-1].removeprefix('ValueError: ')}")


def open_log(args):
    if args.data is not None:
        try:
            log = slipstream.data.open_click_log(args.data, hash_size=args.hash_size)
            split(log, args)  # Reads text to its end, to count its lines.
        except (OSError, ValueError, ImportError) as error:
            sys.exit(f"Cannot read {args.data}: {error}")
        return log
    cardinalities = slipstream.data.criteo_cardinalities(scale=args.scale)
    return slipstream.data.SyntheticClickLog(cardinalities=cardinalities, seed=args.seed)


def split(log, args):
    """Returns the numbers of examples to train on and, after them in the log, to test on."""
    if log.num_examples is None:
        return args.examples, args.test_examples
    num_test = min(args.test_examples, log.num_examples // 5)
    return min(args.examples, log.num_examples - num_test), num_test


def compare(args):
    """Trains every way in turn, each in its own process, and prints them side by side."""
    log = open_log(args)
    num_train, num_test = split(log, args)
    subjects = [*args.subjects, *([CHOSEN] if args.keep else [])]
    print(
        f"Trains one click model in {len(subjects)} ways, one after the other, on "
        f"{os.cpu_count()} cores.\n"
        "Four ways with the options as they are take 2 minutes or less on two cores.\n\n"
        f"{num_train:,} examples to train on, {num_test:,} to test, batches of "
        f"{args.batch_size:,}\n{len(log.cardinalities)} tables with "
        f"{sum(log.cardinalities):,} rows of {args.dim} floats, {args.optimizer}\n",
        flush=True,
    )
    results = []
    # Runs of an earlier demo may be of another log.
    for subject in (*SUBJECTS, CHOSEN) if args.report else ():
        for path in pathlib.Path(args.report).glob(f"{subject}-*.run.npz"):
            path.unlink()
    for subject in subjects:
        environment = dict(os.environ, TF_USE_LEGACY_KERAS="1" if subject == "tf_keras" else "0")
        command = [sys.executable, __file__, *sys.argv[1:], "--train", subject]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"Training with {subject} failed; its error is above.")
        results.append(json.loads(done.stdout.splitlines()[-1]))
    print_table(results)
    if args.report and len(results) > 1:
        write_report(args)


def write_report(args):
    """Compares the runs that were saved, in a page, and says where it is."""
    page = os.path.join(args.report, "report.html")
    command = ["compare", args.report, "--baseline", args.subjects[0], "--html", page]
    with contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(command)
    if code == 0:
        print(f"\nA report that a manager can read: {page}")


def print_table(results):
    ours = next((r for r in results if r["subject"] == "slipstream"), results[-1])
    heads = f"{'ms a step':>10} {'examples/s':>11} {'test AUC':>9} {'peak memory':>12} {'time':>7}"
    print(f"\n{'':>12} {heads}")
    for r in results:
        ratio = r["ms_per_step"] / ours["ms_per_step"]
        print(
            f"{r['subject']:>12} {r['ms_per_step']:10.1f} {r['examples_per_second']:11,.0f} "
            f"{r['auc']:9.4f} {r['peak_memory_gb']:9.2f} GB {ratio:6.1f}x"
        )
    if "best_possible_auc" in results[-1]:
        print(f"{'(teacher)':>12} {'':22} {results[-1]['best_possible_auc']:9.4f}")
    print(
        "\nHow to read it: `ms a step` is the median, reading the data included. The AUCs\n"
        "agree but for noise of 0.001; that of Keras 3, which does not sum the gradients\n"
        "of an id that repeats in a batch, differs a little more."
    )
    for r in results:
        if "saved_lookups" in r:
            print(
                f"`sleeping` deferred {r['saved_lookups']:.0%} of lookups, "
                f"{r['saved_row_updates']:.0%} of row\nupdates: bytes saved between machines."
            )
        if "share_kept" in r:
            print(
                f"`chosen` read all inputs and trained on {r['share_kept']:.0%} of the inputs; "
                "its ms are the mean."
            )
    if "best_possible_auc" in results[-1]:
        print("`(teacher)` are the probabilities that the synthetic clicks were drawn from.")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="Criteo .tsv, .tsv.gz or .parquet; default: synthetic")
    parser.add_argument("--hash-size", type=int, help="ids per categorical feature of --data")
    parser.add_argument(
        "--scale", type=float, default=0.05, help="of Criteo Kaggle's cardinalities"
    )
    parser.add_argument("--examples", type=int, default=300_000, help="to train on, at most")
    parser.add_argument("--test-examples", type=int, default=80_000, help="at most")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--dim", type=int, default=16, help="length of an embedding row")
    parser.add_argument("--bottom", type=int, nargs="*", default=[64], help="hidden units")
    parser.add_argument("--top", type=int, nargs="*", default=[128, 64], help="hidden units")
    parser.add_argument("--optimizer", default="Adagrad", choices=["SGD", "Adagrad", "Adam"])
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument(
        "--policy",
        default="aggressive",
        choices=["conservative", "balanced", "aggressive"],
        help="of `sleeping`; in a run as short as this the others let few rows sleep",
    )
    parser.add_argument("--keep", type=float, help="share of the inputs that `chosen` trains on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS, choices=SUBJECTS)
    parser.add_argument("--report", help="folder for saved runs and a page that compares them")
    parser.add_argument("--train", choices=[*SUBJECTS, CHOSEN], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        train(args.train, args)
    else:
        compare(args)


if __name__ == "__main__":
    main()
