"""Searches hyperparameters with KerasTuner.

    python examples/tuning.py --folder search           # on a synthetic log
    python examples/tuning.py --folder search --data train.txt

Tables and dense layers want different rates: `table_optimizer` gives tables a
rule and a rate of their own, and both are searched. KerasTuner needs Keras 3.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click_logs
import keras
import running

try:
    import keras_tuner
except ImportError:
    sys.exit("this needs KerasTuner: pip install 'tf-slipstream[tuner]'")

import tf_slipstream as slipstream

TABLE_OPTIMIZERS = {"adagrad": keras.optimizers.Adagrad, "adam": keras.optimizers.Adam}


def model_of(log):
    """Returns the function that KerasTuner calls with hyperparameters, for a compiled model."""

    def build(choices):
        dim = choices.Choice("dim", [8, 16, 32])
        units = choices.Choice("units", [32, 64, 128])
        rate = choices.Float("rate", 1e-4, 1e-2, sampling="log")
        table_rule = choices.Choice("table_rule", [*TABLE_OPTIMIZERS])
        table_rate = choices.Float("table_rate", 1e-3, 1e-1, sampling="log")

        dense = keras.Input((log.num_dense,), name="dense_features")
        ids = keras.Input((len(log.cardinalities),), dtype="int32", name="ids")
        rows = slipstream.SlipstreamEmbeddingCollection([*log.cardinalities], dim)(ids)
        x = keras.layers.Concatenate()([dense, keras.layers.Flatten()(rows)])
        x = keras.layers.Dense(units, activation="relu")(x)
        model = keras.Model((dense, ids), keras.layers.Dense(1, activation="sigmoid")(x))
        optimizer = slipstream.SlipstreamOptimizer(
            keras.optimizers.Adam(rate),
            table_optimizer=TABLE_OPTIMIZERS[table_rule](table_rate),
        )
        model.compile(
            optimizer, loss="binary_crossentropy", metrics=[keras.metrics.AUC(name="auc")]
        )
        return model

    return build


class Trials(keras_tuner.RandomSearch):
    """Trains each choice of hyperparameters once.

    `RandomSearch` does so by itself, with files of weights for each trial, if TensorBoard is there.
    """

    def run_trial(self, trial, train, test, verbose):
        model = self.hypermodel.build(trial.hyperparameters)
        progress = running.Progress(f"trial {trial.trial_id}", len(train))
        history = model.fit(
            train, validation_data=test, shuffle=False, verbose=verbose, callbacks=[progress]
        )
        return {"val_auc": history.history["val_auc"][-1]}


def search(log, args):
    """Returns the tuner after its search."""
    train, test = (
        click_logs.dataset(log, num, args.batch_size, start)
        for num, start in ((args.examples, 0), (args.test_examples, args.examples))
    )
    tuner = Trials(
        model_of(log),
        objective=keras_tuner.Objective("val_auc", "max"),
        max_trials=args.trials,
        seed=args.seed,
        directory=args.folder,
        project_name="clicks",
    )
    tuner.search(train, test, verbose=0)
    return tuner


def main(argv=None):
    parser = running.parser_of(__doc__)
    parser.add_argument(
        "--folder", type=running.new_folder, required=True, help="for the trials; must be new"
    )
    click_logs.add_arguments(parser)
    parser.add_argument("--trials", type=running.count, default=6)
    parser.add_argument("--examples", type=running.count, default=60_000, help="of each trial")
    parser.add_argument("--test-examples", type=running.count, default=15_000)
    parser.add_argument("--batch-size", type=running.count, default=1024)
    args = parser.parse_args(argv)

    log = click_logs.load(args, args.examples + args.test_examples)
    print(f"{args.trials} trials of {args.examples:,} examples; {sum(log.cardinalities):,} rows")
    tuner = search(log, args)
    names = ("dim", "units", "rate", "table_rule", "table_rate")
    rows = []
    for place, trial in enumerate(tuner.oracle.get_best_trials(args.trials), start=1):
        values = [trial.hyperparameters.get(name) for name in names]
        texts = [f"{one:.4f}" if isinstance(one, float) else str(one) for one in values]
        rows.append((str(place), *texts, f"{trial.score:.4f}"))
    running.print_table(("", *names, "AUC"), rows)


if __name__ == "__main__":
    main()
