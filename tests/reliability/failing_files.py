"""Every operation on a file fails once: a full disk, a bad one, one that may not be written.

Run as a program, under the library of `failing_files.c`:
`python -m tests.reliability.failing_files FOLDER ERROR EVERY WHAT...` tries one of every EVERY
operations on files of each thing that is done.
"""

import ctypes
import errno
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
# A short write is no failure: what is written then must be whole.
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EACCES": errno.EACCES, "short": 0}
# That of what reads; the others are of what writes.
ERRORS["EIO-read"] = errno.EIO


def compile_library(folder):
    """Returns the path of the library, made by the system's compiler."""
    path = pathlib.Path(folder, "failing_files.so")
    source = pathlib.Path(__file__).with_suffix(".c")
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-o", path, source, "-ldl"]
    subprocess.run(command, check=True)
    return path


def run(library, folder, error, every, *what):
    """Runs this module as a program with the library preloaded; returns `CompletedProcess`."""
    command = [sys.executable, "-m", "tests.reliability.failing_files"]
    environ = os.environ | {"LD_PRELOAD": str(library), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, str(folder), error, str(every), *what],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=900,
    )


def contents(folder):
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


class Files:
    """What is done, and what there is before: a version, its marks, a delta, a log.

    Each method yields what it makes in the folder `out`, does it when asked for the next, and then
    checks it, when nothing fails any more.
    """

    def __init__(self, folder):
        from tests.export.click_models import click_model, train
        from tf_slipstream import export

        self.export, self.folder, self.out = export, folder, folder / "out"
        self.kept = folder / "kept"
        self.kept.mkdir()
        self.model = click_model(num_rows=1000)
        train(self.model, 0)
        self.tracker = export.DeltaTracker(self.model, self.kept / "marks")
        export.save_version(self.model, self.kept / "1")
        train(self.model, 1)
        export.save_delta(self.model, 1, self.kept / "d2")
        (self.kept / "log.csv").write_text("label,user,item\n" + "1,3,4\n0,3,5\n" * 50)
        self.changed = {k: v.tolist() for k, v in self.tracker.changed_rows(1).items()}

    def apply(self):
        from tf_slipstream.delta import apply, published_version

        yield self.out / "2"
        apply.apply_delta(self.kept / "1", self.kept / "d2", self.out / "2")
        yield
        published_version.PublishedVersion(self.out / "2").verify()

    def delta(self):
        from tf_slipstream.delta import inspection

        yield self.out / "d9"
        self.export.save_delta(self.model, 1, self.out / "d9", version=9)
        yield
        inspection.inspect(self.out / "d9")

    def version(self):
        from tf_slipstream.delta import published_version

        yield self.out / "9"
        self.export.save_version(self.model, self.out / "9")
        yield
        published_version.PublishedVersion(self.out / "9").verify()

    def page(self):
        from tf_slipstream.cli.analyze import write_text

        yield self.out / "page.html"
        write_text(self.out / "page.html", "text " * 5000)
        yield
        assert (self.out / "page.html").read_text() == "text " * 5000

    def log(self):
        from tf_slipstream.analysis.open_log import open_log

        yield self.out / "none"
        chunks = [*open_log(self.kept / "log.csv").chunks()]
        yield
        assert sum(len(chunk.keys) for chunk in chunks) == 100

    def inspect(self):
        from tf_slipstream.delta import inspection, published_version

        yield self.out / "none"
        inspection.inspect(self.kept / "d2")
        published_version.PublishedVersion(self.kept / "1").verify()

    def checkpoint(self):
        from tf_slipstream._compat import tf_variable
        from tf_slipstream.distribute.checkpoints import StepCheckpoints

        yield None  # TensorFlow leaves parts of its own, which its file `checkpoint` does not name
        variables = [tf_variable(variable) for variable in self.model.optimizer.variables]
        checkpoints = StepCheckpoints(self.kept / "checkpoints", variables)
        before = checkpoints.restore()
        try:
            checkpoints.save(before + 1)
        finally:
            lib().failing_disarm()
            step = StepCheckpoints(self.kept / "checkpoints", variables).restore()
            assert step in (before, before + 1), (step, before)


def lib():
    return ctypes.CDLL(None)


def try_one(files, what, error, number):
    """Has an operation fail; returns whether there was one, and what became of it."""
    shutil.rmtree(files.out, ignore_errors=True)
    files.out.mkdir()
    before = contents(files.kept)
    doing = getattr(files, what)()
    made = next(doing)
    failure = None
    of_reads = error.endswith("-read")
    lib().failing_arm(str(files.folder).encode(), number, ERRORS[error], of_reads)
    try:
        next(doing, None)
    except Exception as raised:
        failure = raised
    lib().failing_disarm()
    if not lib().failing_fired():
        assert failure is None, repr(failure)
        next(doing, None)
        return False, None
    names = {path.name for path in files.out.iterdir()}
    if failure is None:
        next(doing, None)
        return True, "done all the same"
    # TensorFlow names a path in its errors of files, or the operation that failed.
    assert str(files.folder) in str(failure), f"no path in {failure!r}"
    assert made is None or made.name not in names, f"{made} is there, and {failure!r}"
    if made is not None:
        assert not names, (names, failure)
        after = contents(files.kept)
        assert after == before, before.keys() ^ after.keys()
        changed = {k: v.tolist() for k, v in files.tracker.changed_rows(1).items()}
        assert changed == files.changed
    return True, type(failure).__name__


def main(folder, error, every, *kinds):
    files, every, is_broken = Files(pathlib.Path(folder)), int(every), False
    for what in kinds:
        number, outcomes = 1, {}
        while True:
            try:
                fired, outcome = try_one(files, what, error, number)
            except AssertionError as broken:
                print(f"{what} {error}, operation {number}: {broken}", flush=True)
                fired, outcome, is_broken = True, "broken", True
            if not fired:
                break
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            number += every
        print("done", what, error, sum(outcomes.values()), outcomes, flush=True)
    return int(is_broken)


WHATS = ("apply", "delta", "page", "checkpoint", "log", "inspect", "version")


def trial(seed, folder):
    """Tries all operations with one error; of each sixth trial a version's, which take long."""
    folder, error = pathlib.Path(folder), list(ERRORS)[seed % len(ERRORS)]
    files = folder / "files"
    files.mkdir()
    is_of_version = seed % 6 == 5
    whats = ("version",) if is_of_version else WHATS[:-1]
    done = run(compile_library(folder), files, error, 7 if is_of_version else 1, *whats)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-500:]
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("done ")]
    return {"operations": sum(int(words[3]) for words in lines)}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
