"""Trains the runs of a comparison by a file of the user's, each in a process of its own.

As a program it does one run: `python -m tf_slipstream.comparison.training FOLDER FILE NAME SEED`.
"""

import importlib.util
import pathlib
import subprocess
import sys

from tf_slipstream.comparison.compare import RunsError
from tf_slipstream.comparison.experiment import Experiment, Run


def train_runs(folder, file, names, seeds):
    """Does the runs that a folder lacks, all configurations of a seed in turn; says so on stderr.

    Each has a process of its own, so that none finds memory, threads or names of Keras's that one
    before it has left.

    Args:
        folder: That of an `Experiment`.
        file: Path of a Python file with `train(name, seed)` and `test(trained)`.
        names: Configurations.
        seeds: Integers.

    Raises:
        RunsError: If there is no such file, or a run fails.
        ValueError: If a name is none for a run.
    """
    if not pathlib.Path(file).is_file():
        raise RunsError(
            f"There is no file {file}; expected one with functions `train` and `test`. Check "
            "--train."
        )
    runs = [Run(folder, name, seed) for seed in seeds for name in names]
    for number, run in enumerate(runs, 1):
        label = f"[{number}/{len(runs)}] {run.name}, seed {run.seed}"
        if run.is_saved():
            print(f"{label}: is there already", file=sys.stderr)
            continue
        print(f"{label}: training", file=sys.stderr, flush=True)
        program = [sys.executable, "-m", "tf_slipstream.comparison.training"]
        arguments = [str(folder), str(file), run.name, str(run.seed)]
        # What it prints is no part of the report.
        code = subprocess.run([*program, *arguments], stdout=2).returncode
        if code:
            raise RunsError(
                f"{run.name!r} with seed {run.seed} was not trained: exit code {code}, and the "
                f"reason is above. Mend {file} and call this again: runs that are done stay."
            )


def do_run(folder, file, name, seed):
    """Trains, tests and saves one run.

    Raises:
        RunsError: If the file lacks a function, or `test` does not return what it should.
    """
    module = _loaded(file)
    with Experiment(folder).run(name, seed) as run:
        trained = module.train(name, seed)
    tested = module.test(trained)
    if not isinstance(tested, dict):
        if not isinstance(tested, (tuple, list)) or len(tested) != 2:
            raise RunsError(
                f"`test` of {file} must return labels and scores, or a dict of what `Run.save` "
                f"takes; got {type(tested).__name__}."
            )
        tested = dict(zip(("labels", "scores"), tested))
    try:
        run.save(**tested)
    except (TypeError, ValueError) as error:
        raise RunsError(f"What `test` of {file} returned cannot be saved: {error}") from error


def _loaded(file):
    """Returns a file as a module; it may import what lies beside it, as a program may."""
    path = pathlib.Path(file).resolve()
    sys.path.insert(0, str(path.parent))
    # No module that somebody imports has this name.
    spec = importlib.util.spec_from_file_location("slipstream_comparison_job", path)
    if spec is None:
        raise RunsError(f"{file} is no Python file: its name must end with .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    missing = [name for name in ("train", "test") if not callable(getattr(module, name, None))]
    if missing:
        raise RunsError(
            f"{file} has no function {' and no '.join(missing)}: expected `train(name, seed)` and "
            "`test(trained)`."
        )
    return module


if __name__ == "__main__":
    folder, file, name, seed = sys.argv[1:]
    try:
        do_run(folder, file, name, int(seed))
    except RunsError as error:
        sys.exit(str(error))
