"""What travels between devices in a training step, and how long the step is, beside stock Keras.

    python benchmarks/distribution.py
    python benchmarks/distribution.py --parts mirrored --replicas 2 --steps 48

Each subject runs in a process of its own, one after the other. Prints a line per subject, appends
its JSON to results/distribution.jsonl, and at last prints one JSON object of all ratios, stock over
ours.
"""

import argparse
import json
import os

import machine
from distribution import mirrored, multi_worker, parameter_server

# Modules with `line(result)` and `measure(args)`; that yields results and at last a dict of ratios.
PARTS = {
    "mirrored": mirrored,
    "multi_worker": multi_worker,
    "parameter_server": parameter_server,
}


def main():
    args = arguments()
    os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
    print(json.dumps(machine.describe()))
    own_arguments = {
        "mirrored": args,
        "multi_worker": multi_worker.arguments([]),
        "parameter_server": parameter_server.arguments(["--per-machine", "1", "2"]),
    }
    ratios = {}
    with open(args.output, "a") as file:
        for name in args.parts:
            *_, last = _printed(PARTS[name], own_arguments[name], file)
            ratios |= last
    print(json.dumps(ratios))


def _printed(part, args, file):
    for result in part.measure(args):
        file.write(json.dumps(result) + "\n")
        if "subject" in result:
            print(part.line(result), flush=True)
        yield result


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rows", type=int, default=300_000, help="and what follows: of `mirrored`")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--lookups", type=int, default=26 * 2048, help="of a replica: 26 fields")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=8, help="a period of the sleeping rows")
    parser.add_argument("--output", default=os.path.join("results", "distribution.jsonl"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
