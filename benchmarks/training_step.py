"""How long does a whole training step of a click model take?

    make bench-training
    make bench-training ARGS="--models small_mlp --batch-sizes 2048 --subjects slipstream torch"

Models: `dlrm`, as published for Criteo Kaggle (33.8 M rows of 16); `small_mlp`, the same tables
under one small layer, where the tables decide; `many_fields`, the same with 100 of 10,000 rows;
`two_tower`. TensorFlow's subjects run `model.fit` on batches that are in memory, PyTorch's a plain
loop. Each runs in a process of its own, in turn with the others, and its loss is checked against
the model's in NumPy first. A result is the median over all steps of all rounds. Every round is
appended to results/training_step.jsonl.
"""

import argparse
import json
import os

import cases
import machine
import runner
import training_workload
from runner import Subject

SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("slipstream", "tensorflow_training.py"),
        Subject("collection", "tensorflow_training.py"),
        Subject("keep0.5", "tensorflow_training.py"),
        Subject("keep0.3", "tensorflow_training.py"),
        Subject("keras3", "tensorflow_training.py"),
        Subject("tf_keras", "tensorflow_training.py"),
        Subject("torch", "torch_training.py", environment="peers"),
    )
}


def main():
    args = arguments()
    results = runner.Results("training_step", args.output)
    print(json.dumps(machine.describe()))
    runner.print_header()
    for model in args.models:
        for batch_size in args.batch_sizes:
            case = f"{model} {args.rule} b{batch_size}"
            options = ["--model", model, "--rule", args.rule, "--batch-size", batch_size]
            options += ["--zipf", args.zipf, "--threads", args.threads, "--steps", args.steps]
            options += ["--max-seconds", args.max_seconds]
            options += ["--cardinalities", *cardinalities(model, args.scale)]
            subjects = [(SUBJECTS[name], None) for name in args.subjects]
            found = runner.run_case(
                results, case, subjects, options, args.rounds, args.wait_until_idle
            )
            runner.print_case(case, found)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = training_workload.MODELS
    parser.add_argument("--models", nargs="+", choices=models, default=list(models))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[512, 2048, 8192])
    parser.add_argument("--rule", choices=training_workload.RULES, default="adagrad")
    parser.add_argument("--scale", type=float, default=1.0, help="of the tables' rows")
    everybody = ["slipstream", "keras3", "tf_keras", "torch"]
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=everybody)
    parser.add_argument("--zipf", type=float, default=1.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--max-seconds", type=float, default=10.0, help="of a subject's steps")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--wait-until-idle", type=float, default=0.0, metavar="SECONDS", help="before each subject"
    )
    parser.add_argument("--output", default=os.path.join("results", "training_step.jsonl"))
    return parser.parse_args()


def cardinalities(model, scale):
    if model in training_workload.CARDINALITIES:
        return [max(3, round(n * scale)) for n in training_workload.CARDINALITIES[model]]
    return cases.Case(f"criteo_kaggle@{scale}x16").cardinalities


if __name__ == "__main__":
    main()
