"""Is the model as good as stock Keras's? AUC and log loss, paired by seed.

    python benchmarks/parity.py --data-dir FOLDER               # the whole table; hours
    python benchmarks/parity.py --data long_tail --optimizer adam --seeds 0 1
    python benchmarks/parity.py --tune --configurations stock   # how the rates were chosen
    python benchmarks/parity.py --rates 0.03 0.06 --optimizer adagrad    # at other rates
    python benchmarks/parity.py --summary

`stock` is keras.layers.Embedding with Keras's own optimizer. Keras 3 does not sum the gradients of
an id that repeats in a batch. So `dense`, which does, is beside it. `none` is ours without a
policy; then come the presets. All have the same model, initial weights, examples, order, rate and
batches.

Every run is one line of --output and is not run again. Several processes may share the work: each
takes runs that are in no other's --part.
"""

import argparse
import itertools
import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from quality import configurations, results, runs, training
from quality.data_sets import DATA_SETS, for_tuning
from quality.rates import CANDIDATES, MEASURES, RATES

DATA = ("long_tail", "criteo80k", "gowalla", "diginetica")
CONFIGURATIONS = ("stock", "dense", "none", "default", "balanced", "aggressive")
BATCH_SIZES = {"criteo80k": 64}
TUNING_SEED = 100


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", nargs="+", default=DATA, choices=DATA)
    add("--data-dir", default=os.environ.get("SLIPSTREAM_DATA"), help="folder of NAME.parquet")
    add("--optimizer", nargs="+", default=[*training.OPTIMIZERS], choices=training.OPTIMIZERS)
    add("--configurations", nargs="+", default=CONFIGURATIONS, metavar="CONFIGURATION")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--epochs", nargs="+", type=int, default=[1, 3])
    add("--examples", type=int, default=512_000, help="to train on, of the synthetic log")
    add("--test-examples", type=int, default=100_000, help="of the synthetic log")
    add("--cardinalities", nargs="+", type=int, help="of the synthetic log")
    add("--threads", type=int, default=1, help="that compute")
    add("--part", default="0/1", help="I/N: every N-th run from the I-th on")
    add("--rates", nargs="+", type=float, help="in place of those of quality/rates.py")
    add("--tune", action="store_true", help="try rates on a part of the training data")
    add("--output", default=os.path.join("results", "parity.jsonl"))
    add("--summary", action="store_true", help="print the table of --output and run nothing")
    return parser.parse_args()


def main():
    args = arguments()
    if args.summary:
        print(summary(results.load(args.output).values()))
        return
    runs.set_threads(args.threads)

    def make_data_set(name):
        data_set = DATA_SETS[name](args)
        return for_tuning(data_set) if args.tune else data_set

    runs.work_through(plan(args), make_data_set, args.output, args.part)
    if args.tune:
        print(best_rates(results.load(args.output).values()))


def plan(args):
    """Yields configurations and settings, those of one data set after the other."""
    all_epochs = [1] if args.tune else args.epochs
    for data, epochs, optimizer in itertools.product(args.data, all_epochs, args.optimizer):
        rates = CANDIDATES[data][optimizer] if args.tune else [RATES[data][optimizer]]
        rates = args.rates or rates
        seeds = [TUNING_SEED] if args.tune else args.seeds
        is_synthetic = data == "long_tail"
        for seed, name, rate in itertools.product(seeds, args.configurations, rates):
            configuration = configurations.parse(name)
            yield (
                configuration,
                {
                    "data": data,
                    "examples": args.examples if is_synthetic else None,
                    "test_examples": args.test_examples if is_synthetic else None,
                    "cardinalities": args.cardinalities if is_synthetic else None,
                    "optimizer": optimizer,
                    "learning_rate": rate,
                    "batch_size": BATCH_SIZES.get(data, 512),
                    "epochs": epochs,
                    "checkpoints": 0,
                    "tuning": args.tune,
                    "configuration": configuration.settings(),
                    "seed": seed,
                },
            )


def best_rates(lines):
    """Returns each configuration's best rates, as `quality/rates.py` has those of `stock`."""
    tried = {}
    for line in lines:
        settings, result = line["settings"], line["result"]
        if settings["tuning"] and "failed" not in result:
            measure = MEASURES[settings["data"]]
            loss = -result[measure] if measure == "auc" else result[measure]
            place = (line["name"], settings["data"], settings["optimizer"])
            tried.setdefault(place, []).append((loss, settings["learning_rate"]))
    rates = {}
    for (name, data, optimizer), losses in tried.items():
        rates.setdefault(name, {}).setdefault(data, {})[optimizer] = min(losses)[1]
    return json.dumps(rates, indent=2)


def summary(lines):
    """Returns the table of changes against `stock`, in Markdown."""
    lines = [line for line in lines if not line["settings"]["tuning"]]
    heads = ["data", "epochs", "optimizer, rate", "seeds", "stock AUC", "log loss"]
    heads += [f"`{name}`" for name in CONFIGURATIONS[1:]]
    rows = [heads, ["---"] * len(heads)]
    for configured in results.jobs(lines).values():
        compared = {
            one.name: one for one in results.compare(configured, ("auc", "log_loss"), "stock")
        }
        if "stock" not in compared:
            continue
        stock = compared["stock"]
        settings = next(iter(next(iter(configured.values())).values()))["settings"]
        row = [settings["data"], str(settings["epochs"])]
        row.append(f"{settings['optimizer']}, {settings['learning_rate']:g}")
        row += [str(stock.num_seeds), f"{stock.values['auc']:.4f}"]
        row.append(f"{stock.values['log_loss']:.4f}")
        rows.append([*row, *(_cell(compared.get(name)) for name in CONFIGURATIONS[1:])])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(one):
    if one is None:
        return ""
    parts = []
    for measure in ("auc", "log_loss"):
        error = "" if one.errors[measure] is None else f" ± {one.errors[measure]:.4f}"
        parts.append(f"{one.changes[measure]:+.4f}{error}")
    saved = f" ({one.lookups_saved:.0%} / {one.row_updates_saved:.0%})" if one.lookups_saved else ""
    return ", ".join(parts) + saved


if __name__ == "__main__":
    main()
