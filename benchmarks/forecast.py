"""Is the forecast of `tf-slipstream analyze` what training then does? Shares deferred, both.

    python benchmarks/forecast.py --data criteo80k gowalla diginetica --data-dir FOLDER
    python benchmarks/forecast.py --data long_tail --optimizer adagrad --no-train

The forecast runs over the same batches as training, negatives that are sampled among them: each
table is a field. `most` is with every row at rest. Runs of training are one epoch with seed 0, as
in parity.py, and lines of --output, which are not run again.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from parity import BATCH_SIZES
from quality import configurations, results, runs
from quality.data_sets import DATA_SETS, SYNTHETIC
from quality.rates import RATES

from tf_slipstream.analysis.popularity import Popularity
from tf_slipstream.analysis.survey import WALK_DIMS


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", nargs="+", default=["long_tail"], choices=DATA_SETS)
    add("--data-dir", default=os.environ.get("SLIPSTREAM_DATA"), help="folder of NAME.parquet")
    add("--optimizer", nargs="+", default=["adagrad", "adam"], choices=WALK_DIMS)
    add("--configurations", nargs="+", default=["default", "balanced", "aggressive"])
    add("--examples", type=int, default=512_000, help="to train on, of the synthetic logs")
    add("--test-examples", type=int, default=100_000, help="of the synthetic logs")
    add("--cardinalities", nargs="+", type=int, help="of the synthetic logs")
    add("--train", action=argparse.BooleanOptionalAction, default=True)
    add("--output", default=os.path.join("results", "forecast.jsonl"))
    return parser.parse_args()


def main():
    args = arguments()
    print("| data | optimizer | policy | expected | trained | at most |\n|---|---|---|---|---|---|")
    for name in args.data:
        data_set = DATA_SETS[name](args)
        for optimizer in args.optimizer:
            found = forecast(data_set, name, optimizer, args.configurations)
            for text in args.configurations:
                trained = "-"
                if args.train:
                    trained = _percent(train(args, data_set, name, optimizer, text))
                expected, most = map(_percent, found[text])
                print(f"| {name} | {optimizer} | `{text}` | {expected} | {trained} | {most} |")


def forecast(data_set, name, optimizer, texts):
    """Returns pairs of expected and most shares, each of lookups and of row updates, by policy."""
    examples, order = data_set.epoch(0, 0)
    size, begins = (
        BATCH_SIZES.get(name, 512),
        np.cumsum([0, *(t.num_rows for t in data_set.tables)]),
    )
    offsets = np.repeat(begins[:-1], [table.num_columns for table in data_set.tables])
    policies = {text: configurations.parse(text).policy for text in texts}
    walk_dim, num_tables = WALK_DIMS[optimizer], len(data_set.tables)
    machines = {
        text: (Popularity(policy, num_tables, walk_dim), Popularity(policy, num_tables))
        for text, policy in policies.items()
    }
    num_batches = np.zeros(begins[-1], np.int64)
    num_rows, num_lookups, num_updates = np.diff(begins), 0, 0
    for step, begin in enumerate(range(0, len(order) - size + 1, size), 1):
        flat = (examples.ids[order[begin : begin + size]].astype(np.int64) + offsets).ravel()
        rows, first, counts = np.unique(flat, return_index=True, return_counts=True)
        num_batches[rows] += 1
        num_lookups, num_updates = num_lookups + len(flat), num_updates + len(rows)
        fields = np.searchsorted(begins, rows, "right") - 1
        for pair in machines.values():
            for machine in pair:
                # Every row has a slot, its own number: memory is no matter here.
                machine.step(step, rows, fields, num_batches[rows], counts, first, num_rows)
    return {
        text: [
            (
                machine.num_deferred_lookups.sum() / num_lookups,
                machine.num_deferred_row_updates.sum() / num_updates,
            )
            for machine in pair
        ]
        for text, pair in machines.items()
    }


def train(args, data_set, name, optimizer, text):
    """Returns shares of lookups and of row updates that a run of training deferred."""
    configuration = configurations.parse(text)
    is_synthetic = name in SYNTHETIC
    settings = {
        "data": name,
        "examples": args.examples if is_synthetic else None,
        "test_examples": args.test_examples if is_synthetic else None,
        "cardinalities": args.cardinalities if is_synthetic else None,
        "optimizer": optimizer,
        "learning_rate": RATES[name][optimizer],
        "batch_size": BATCH_SIZES.get(name, 512),
        "epochs": 1,
        "checkpoints": 0,
        "configuration": configuration.settings(),
        "seed": 0,
    }
    runs.work_through([(configuration, settings)], lambda _: data_set, args.output)
    result = results.load(args.output)[results.key_of(settings)]["result"]
    return result["lookups_saved"], result["row_updates_saved"]


def _percent(shares):
    return " / ".join(f"{share:.1%}" for share in shares)


if __name__ == "__main__":
    main()
