"""Trains day by day, and brings what changed to a served model.

    python examples/continuous.py --folder published    # a synthetic log
    python examples/continuous.py --folder published --data train.txt

Every day a job loads model and optimizer as they were, trains on the new
clicks, publishes the rows that changed and saves. The serving host makes its
next version of its last one and this delta. The table at the end compares, on
the clicks of the next day, the model that is brought up to date daily with that
of the first day.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click_logs
import numpy as np
import running
import tensorflow as tf

import tf_slipstream as slipstream
from tf_slipstream import export

keras = tf.keras
BATCH_SIZE = 1024


def click_model(log, args):
    """Returns the compiled model of the first day."""
    keras.utils.set_random_seed(args.seed)
    dense = keras.Input((log.num_dense,), name="dense_features")
    ids = keras.Input((len(log.cardinalities),), dtype="int32", name="ids")
    fields = {f"C{field + 1}": size for field, size in enumerate(log.cardinalities)}
    rows = slipstream.SlipstreamEmbeddingCollection(fields, args.dim, name="fields")(ids)
    x = keras.layers.Concatenate()([dense, keras.layers.Flatten()(rows)])
    for units in (64, 32):
        x = keras.layers.Dense(units, activation="relu")(x)
    model = keras.Model((dense, ids), keras.layers.Dense(1, activation="sigmoid")(x))
    # Adagrad's steps become shorter for ever; Adam goes on following what changes.
    optimizer = slipstream.SlipstreamOptimizer(
        keras.optimizers.Adam(args.learning_rate), policy=args.policy
    )
    model.compile(optimizer, loss="binary_crossentropy")
    return model


def train_a_day(folder, day, log, args):
    """The job of one day, which may be a process of its own: nothing stays but files.

    Returns:
        The model, and what was published: a `SavedVersion` or `SavedDelta`.
    """
    state = folder / "state.keras"
    model = keras.models.load_model(state) if state.exists() else click_model(log, args)
    export.DeltaTracker(model, folder / "marks")
    data = click_logs.dataset(log, args.examples, BATCH_SIZE, start=(day - 1) * args.examples)
    progress = running.Progress(f"day {day}", len(data))
    model.fit(data, shuffle=False, verbose=0, callbacks=[progress])
    if day == 1:
        published = export.save_version(model, folder / "models" / "1")
    else:
        published = export.save_delta(model, day - 1, folder / "deltas" / str(day))
    # After publishing, which marks the optimizer's state: the next delta counts from that mark.
    partial = folder / "partial.keras"
    model.save(partial)
    os.replace(partial, state)
    return model, published


def bring_up_to_date(folder, day):
    """What a serving host does; TensorFlow Serving finds the new version by its number."""
    models = folder / "models"
    export.apply_delta(models / str(day - 1), folder / "deltas" / str(day), models / str(day))


def served(folder, day, inputs):
    """Returns the probabilities that a published version answers with."""
    serve = tf.saved_model.load(str(folder / "models" / str(day))).signatures["serving_default"]
    dense, ids = inputs
    answer = serve(dense_features=tf.constant(dense), ids=tf.constant(ids, tf.int32))
    return answer["output_0"].numpy()[:, 0]


def clicks_of(day, log, args):
    """Returns inputs and clicks of a day, at most 20,000."""
    num = min(args.examples, 20_000)
    parts = list(log.batches(num, 4096, start=(day - 1) * args.examples))
    dense = np.concatenate([inputs[0] for inputs, _ in parts])
    ids = np.concatenate([inputs[1] for inputs, _ in parts])
    return (dense, ids), np.concatenate([clicks for _, clicks in parts])


def main(argv=None):
    parser = running.parser_of(__doc__)
    parser.add_argument(
        "--folder", type=running.new_folder, required=True, help="to publish in; must be new"
    )
    click_logs.add_arguments(parser)
    parser.add_argument("--days", type=running.count, default=5)
    parser.add_argument("--examples", type=running.count, default=60_000, help="of a day")
    parser.add_argument("--dim", type=running.count, default=16, help="length of a row")
    parser.add_argument("--learning-rate", type=running.rate, default=0.002)
    parser.add_argument("--policy", choices=["conservative", "balanced", "aggressive"])
    args = parser.parse_args(argv)

    # Ids come and go: in 30 days each is popular once.
    num_needed = (args.days + 1) * args.examples
    log = click_logs.load(args, num_needed, trend_period=30 * args.examples)
    folder = args.folder
    for part in ("models", "deltas"):
        (folder / part).mkdir()
    print(f"{args.days} days of {args.examples:,} examples; {sum(log.cardinalities):,} rows")

    rows = []
    for day in range(1, args.days + 1):
        model, published = train_a_day(folder, day, log, args)
        changed = "all"
        if day > 1:
            bring_up_to_date(folder, day)
            changed = f"{published.num_rows['fields/embeddings']:,}"
        inputs, clicks = clicks_of(day + 1, log, args)
        aucs = [
            running.area_under_curve(clicks, served(folder, which, inputs)) for which in (day, 1)
        ]
        megabytes = f"{published.num_bytes / 1e6:.1f}"
        rows.append((f"day {day}", changed, megabytes, *(f"{auc:.4f}" for auc in aucs)))
    running.print_table(
        ("trained until", "rows sent", "MB sent", "AUC next day", "of day 1's model"), rows
    )
    difference = np.abs(model.predict_on_batch(inputs)[:, 0] - served(folder, day, inputs)).max()
    print(f"\nThe served model answers as the trained one, to within {difference:.0e}.")


if __name__ == "__main__":
    main()
