"""Is a model as good when several devices train it?

    python benchmarks/distribution/quality.py --data-dir FOLDER
    python benchmarks/distribution/quality.py --data synthetic --seeds 0 --configurations none

A DLRM of `benchmarks/quality` trains as many steps as there are batches, by

    single            `model.fit` on one device, each batch once, in an order that a seed decides
    mirrored          `model.fit` under MirroredStrategy, each of two replicas half of a batch
    delayed           on one device, the gradients of two batches computed before either is applied,
                      as two workers would that are always equally fast
    parameter_server  `ParameterServerTrainer.fit`, two workers that take the same batches in the
                      same order, each batch by whichever asks first (tf.data's service)

Each run is a process of its own. Prints a line per run, appends it as JSON to
results/distribution_quality.jsonl, and at last prints the AUC of each way less that of `single`,
paired by seed: the mean and its standard error.
"""

import argparse
import collections
import json
import os
import pathlib
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import machine

from distribution import parameter_server

PROGRAM = pathlib.Path(__file__).with_name("quality_run.py")
WAYS = ("single", "mirrored", "delayed", "parameter_server")


def arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=["criteo80k", "synthetic"])
    parser.add_argument("--data-dir", default=os.environ.get("SLIPSTREAM_DATA", ""))
    parser.add_argument("--examples", type=int, default=640_000, help="of the synthetic log")
    parser.add_argument("--test-examples", type=int, default=200_000, help="the same")
    parser.add_argument("--cardinalities", type=int, nargs="+", help="the same")
    parser.add_argument("--optimizer", choices=["adam", "adagrad"], default="adagrad")
    parser.add_argument("--learning-rate", type=float, help="not that of benchmarks/quality")
    parser.add_argument("--wire-dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--max-delay", type=int, help="of parameter_server; None: no bound")
    parser.add_argument("--configurations", nargs="+", default=["none", "default"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    path = os.path.join("results", "distribution_quality.jsonl")
    parser.add_argument("--output", default=path)
    args = parser.parse_args(argv)
    args.data = args.data or ["synthetic", *(["criteo80k"] if args.data_dir else [])]
    return args


def measure(args):
    """Yields a result per run."""
    for data in args.data:
        for seed in args.seeds:
            for configuration in args.configurations:
                for way in args.ways:
                    options = {**vars(args), "data": data, "seed": seed, "way": way}
                    options["configuration"] = configuration
                    yield _run(options)


def _run(options):
    num = 2 if options["way"] == "parameter_server" else 0
    with tempfile.TemporaryDirectory() as folder:
        options = {**options, "folder": folder}
        # Keras 3, in the servers too.
        with parameter_server.cluster(num, num, folder, TF_USE_LEGACY_KERAS="0") as environment:
            return parameter_server.run_program(PROGRAM, options, environment)


def differences(results):
    """Returns, by data, configuration and way, AUC less that of `single`: mean, error, number."""
    single = {
        (one["data"], one["configuration"], one["seed"]): one["auc"]
        for one in results
        if one["way"] == "single"
    }
    found = collections.defaultdict(list)
    for one in results:
        key = (one["data"], one["configuration"], one["seed"])
        if one["way"] != "single" and key in single:
            found[(*key[:2], one["way"])].append(one["auc"] - single[key])
    return {key: (*_mean(values), len(values)) for key, values in found.items()}


def _mean(values):
    """Returns the mean and its standard error, None for one value."""
    error = None
    if len(values) > 1:
        error = statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), error


def main():
    args = arguments()
    os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
    print(json.dumps(machine.describe()))
    results = []
    with open(args.output, "a") as file:
        for result in measure(args):
            results.append(result)
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(
                f"{result['data']} {result['configuration']} seed {result['seed']} "
                f"{result['way']}: AUC {result['auc']:.4f} in {result['steps']} steps and "
                f"{result['seconds']:.0f} s, "
                f"{result['lookups_saved']:.0%} of lookups saved",
                flush=True,
            )
    for (data, configuration, way), (mean, error, num) in differences(results).items():
        spread = "" if error is None else f" ± {error:.4f}"
        print(f"{data} {configuration} {way}: {mean:+.4f}{spread} ({num} seeds)")


if __name__ == "__main__":
    main()
