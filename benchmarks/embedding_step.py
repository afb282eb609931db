"""How long does an embedding step take: lookup, gradient and update?

    make bench                                   # against both Kerases and the limit
    make bench-peers                             # against PyTorch, FBGEMM and TFRA too
    make bench ARGS="--grid lookups skew --subjects slipstream limit"
    make bench ARGS="--tables 10000000x64 --rules adam --rounds 3"

Each subject runs in a process of its own, in turn with the others, `--rounds` times. All get the
same ids (a bounded Zipf) and the same upstream gradient, and are checked against the equation
first. A result is the median over all steps of all rounds; the spread is from the 10th to the 90th
percentile. Every round of every subject is appended to results/embedding_step.jsonl.

`limit` is no peer: a C++ program that moves the bytes that the step must move, its index work done
beforehand.
"""

import argparse
import json
import os

import cases
import machine
import runner
from runner import Subject

SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("slipstream", "tensorflow_step.py"),
        Subject("collection", "tensorflow_step.py"),
        Subject("limit", "limit_step.py"),
        Subject("keras3", "tensorflow_step.py"),
        Subject("tf_keras", "tensorflow_step.py"),
        Subject("tf_keras_legacy", "tensorflow_step.py"),
        Subject("torch", "torch_step.py", environment="peers"),
        Subject("fbgemm", "fbgemm_step.py", environment="peers"),
        Subject("torchrec", "torchrec_step.py", environment="peers"),
        Subject("tfra", "tfra_step.py", environment="tfra"),
    )
}
OWN_ENVIRONMENT = [name for name, subject in SUBJECTS.items() if subject.environment is None]
WITHOUT_RULE = {
    "keras3": {"row_wise_adagrad"},
    "tf_keras": {"row_wise_adagrad"},
    "tf_keras_legacy": {"row_wise_adagrad"},
    "torch": {"row_wise_adagrad"},
    "tfra": {"row_wise_adagrad"},
    "fbgemm": {"adam"},
    "torchrec": {"adam"},
}
SLOTS = {"sgd": 0, "adagrad": 1, "row_wise_adagrad": 0.1, "adam": 2}
# Memory at the peak over that of table and slots.
OVERHEAD = {
    "collection": 1.5,
    "keras3": 2.2,
    "tf_keras": 2.2,
    "tf_keras_legacy": 2.2,
    "torch": 1.2,
    "tfra": 3.0,
}
# Stock Keras's time grows with the table; these grids ask about other things.
SLOW = ("keras3", "tf_keras")
GRIDS_FOR_ALL = ("targets", "small")


def main():
    args = arguments()
    results = runner.Results("embedding_step", args.output)
    print(json.dumps(machine.describe()))
    runner.print_header()
    for grid, case in chosen_cases(args):
        names = [
            name
            for name in args.subjects or OWN_ENVIRONMENT
            if args.subjects or grid in GRIDS_FOR_ALL or name not in SLOW
        ]
        subjects = [(SUBJECTS[name], reason_to_skip(name, case)) for name in names]
        options = [*case.options(), "--steps", args.steps, "--max-seconds", args.max_seconds]
        found = runner.run_case(
            results, case.name, subjects, options, args.rounds, args.wait_until_idle
        )
        runner.print_case(case.name, found)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grid", nargs="+", choices=cases.GRIDS, default=["targets"])
    parser.add_argument("--full", action="store_true", help="every grid; takes hours")
    parser.add_argument("--tables", nargs="+", metavar="TABLE", help=cases.Case.__doc__)
    parser.add_argument("--rules", nargs="+", choices=cases.RULES, help="only these")
    parser.add_argument("--lookups", type=int, nargs="+", help="with --tables")
    parser.add_argument("--zipf", type=float, nargs="+", help="with --tables")
    parser.add_argument("--bags", type=int, nargs="+", help="with --tables")
    parser.add_argument("--threads", type=int, nargs="+", help="with --tables")
    parser.add_argument(
        "--subjects", nargs="+", choices=SUBJECTS, help="default: what needs no other environment"
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--max-seconds", type=float, default=10.0, help="of a subject's steps")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--wait-until-idle", type=float, default=0.0, metavar="SECONDS", help="before each subject"
    )
    parser.add_argument("--output", default=os.path.join("results", "embedding_step.jsonl"))
    return parser.parse_args()


def chosen_cases(args):
    """Yields pairs of a grid's name and a case."""
    if not args.tables:
        seen = set()
        for grid in cases.GRIDS if args.full else args.grid:
            for case in cases.GRIDS[grid]():
                if case not in seen and (not args.rules or case.rule in args.rules):
                    seen.add(case)
                    yield grid, case
        return
    for table in args.tables:
        for rule in args.rules or cases.RULES:
            for lookups in args.lookups or [53_248]:
                for zipf in args.zipf or [1.1]:
                    for bag in args.bags or [1]:
                        for threads in args.threads or [2]:
                            case = cases.Case(table, rule, lookups, zipf, bag, threads)
                            yield "targets", case


def reason_to_skip(name, case):
    if case.rule in WITHOUT_RULE.get(name, ()):
        return f"has no sparse {case.rule}"
    table = sum(case.cardinalities) * case.dim * 4
    needed = table * (1 + SLOTS[case.rule]) * OVERHEAD.get(name, 1.05)
    available = machine.available_memory()
    if needed > available:
        return f"needs about {needed / 1e9:.0f} GB of memory, {available / 1e9:.0f} GB are free"
    return None


if __name__ == "__main__":
    main()
