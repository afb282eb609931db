"""What does skipping cost? AUC against the share of lookups and of row updates saved.

    python benchmarks/quality.py --data synthetic --optimizer adam --configurations none default
    python benchmarks/quality.py --data criteo80k gowalla --data-dir FOLDER --seeds 0 1 2 3 4
    python benchmarks/quality.py --configurations none contribution=0.5 random=0.5 --click-rate 0.05
    python benchmarks/quality.py --configurations none contribution=0.5 --best-of 0.03 0.1 0.3
    python benchmarks/quality.py --summary
    python benchmarks/plot_quality.py

Every run of a data set, optimizer, configuration and seed is one line of --output, which has all
its settings; runs that are there already are not run again. A seed decides about the weights and
about the examples' order, and is the same for all configurations, so that they are compared pair by
pair with `none`. Held gradients are applied before the last evaluation. With --best-of each
configuration has a rate of its own: the one with the lowest log loss on a part of the training
data, of a seed that is not compared.
{HELP}"""

import argparse
import math
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from quality import configurations, results, runs, training
from quality.data_sets import DATA_SETS, OF_PAIRS, SYNTHETIC, for_tuning
from quality.rates import RATES

DEFAULT_CONFIGURATIONS = (
    *("none", "default", "balanced", "aggressive", "default,on_stale=skip"),
    *("fixed=8", "frozen_after=300", "random_rows=0.3", "random_rows=0.6", "random_inputs=0.3"),
)
# Chooses rates and is none of those that are compared.
TUNING_SEED = 1000


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.replace("{HELP}", configurations.HELP),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", nargs="+", default=["synthetic"], choices=DATA_SETS)
    add("--data-dir", default=os.environ.get("SLIPSTREAM_DATA"), help="folder of NAME.parquet")
    add("--optimizer", nargs="+", default=["adam"], choices=training.OPTIMIZERS)
    add("--learning-rate", nargs="+", type=float, help="in place of the data set's own")
    add("--best-of", nargs="+", type=float, help="rates to choose each configuration's from")
    add("--configurations", nargs="+", default=DEFAULT_CONFIGURATIONS, metavar="CONFIGURATION")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--batch-size", type=int, default=512)
    add("--epochs", type=int, default=1)
    add("--dim", type=int, help="length of a row, in place of the data set's")
    add("--checkpoints", type=int, default=0, help="evaluations on the way, evenly spaced")
    add("--examples", type=int, default=2_560_000, help="to train on, of the synthetic log")
    add("--test-examples", type=int, default=200_000, help="of the synthetic log")
    add("--cardinalities", nargs="+", type=int, help="of the synthetic log")
    add("--negatives", type=int, default=4, help="for each positive of gowalla and diginetica")
    add("--click-rate", type=float, help="of the synthetic log, in place of 0.25")
    add("--tune", action="store_true", help="test on a part of the training data instead")
    add("--threads", type=int, default=1, help="that compute")
    add("--output", default=os.path.join("results", "quality.jsonl"))
    add("--summary", action="store_true", help="print tables of --output and run nothing")
    return parser.parse_args()


def main():
    args = arguments()
    if args.summary:
        print(results.summary(results.load(args.output).values()))
        return
    try:
        compared = [configurations.parse(text) for text in args.configurations]
    except ValueError as error:
        sys.exit(str(error))
    runs.set_threads(args.threads)
    if args.best_of:
        train_at_best_rates(args, compared)
        return
    for data in args.data:
        lacks = [one for one in args.optimizer if one not in RATES.get(data, ())]
        if lacks and not args.learning_rate:
            sys.exit(f"{data} has no rate for {lacks[0]}: give --learning-rate or --best-of")
    planned = [
        (configuration, settings_of(args, data, optimizer, rate, seed, configuration))
        for data in args.data
        for optimizer in args.optimizer
        for rate in args.learning_rate or [RATES[data][optimizer]]
        for seed in args.seeds
        for configuration in compared
    ]

    def make(name):
        data_set = DATA_SETS[name](args)
        return for_tuning(data_set) if args.tune else data_set

    runs.work_through(planned, make, args.output)


def train_at_best_rates(args, compared):
    """Chooses the rate of each configuration alike, then trains with all seeds."""
    for data in args.data:
        data_set = DATA_SETS[data](args)
        for optimizer in args.optimizer:
            tried = {
                (configuration, rate): settings_of(
                    args, data, optimizer, rate, TUNING_SEED, configuration
                )
                | {"tuning": True}
                for configuration in compared
                for rate in args.best_of
            }
            planned = [(configuration, settings) for (configuration, _), settings in tried.items()]
            held_out = for_tuning(data_set)
            runs.work_through(planned, lambda _, found=held_out: found, args.output)
            found = results.load(args.output)
            losses = {
                key: found[results.key_of(settings)]["result"].get("log_loss", math.inf)
                for key, settings in tried.items()
            }
            planned = []
            for configuration in compared:
                _, best = min((losses[configuration, rate], rate) for rate in args.best_of)
                for seed in args.seeds:
                    settings = settings_of(args, data, optimizer, best, seed, configuration)
                    planned.append((configuration, settings | {"best_of": args.best_of}))
            runs.work_through(planned, lambda _, found=data_set: found, args.output)


def settings_of(args, data, optimizer, rate, seed, configuration):
    """Returns all that decides about a run's result."""
    is_synthetic = data in SYNTHETIC
    # Files from before there were these settings are not to be run again.
    later = {"click_rate": args.click_rate} if is_synthetic and args.click_rate else {}
    later |= {"tuning": True} if args.tune else {}
    later |= {"negatives": args.negatives} if data in OF_PAIRS else {}
    return later | {
        "data": data,
        "examples": args.examples if is_synthetic else None,
        "test_examples": args.test_examples if is_synthetic else None,
        "cardinalities": args.cardinalities if is_synthetic else None,
        "optimizer": optimizer,
        "learning_rate": rate,
        "batch_size": args.batch_size,
        "epochs": args.epochs,
        "dim": args.dim,
        "checkpoints": args.checkpoints,
        "configuration": configuration.settings(),
        "seed": seed,
    }


if __name__ == "__main__":
    main()
