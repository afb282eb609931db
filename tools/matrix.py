"""Installs the wheel beside each TensorFlow version, and runs tests there: `make test-matrix`.

For each version it makes a fresh environment in `build/matrix` with the version's Python, from
binary packages alone, so that no compiler is needed, and runs README's first program there. Then it
runs the tests under both Kerases, from a copy of the repository whose `tf_slipstream` is the
installed one. A table of results is printed, and written to `build/matrix/results.md`.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

from tensorflow_versions import TENSORFLOW_VERSIONS

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "matrix"
# What meets Keras and TensorFlow most. `--tests tests` runs all.
CORE = (
    "tests/contract tests/conformance tests/update_rules tests/export tests/ops/test_int_types.py"
    " tests/ops/test_library.py tests/test_embedding.py tests/test_optimizer.py"
    " tests/test_collection.py tests/test_saving.py tests/test_export.py tests/test_golden.py"
    " tests/test_recommenders.py tests/test_custom_models.py tests/test_table_optimizer.py"
).split()
PACKAGES = "pytest pytest-xdist hypothesis pandas pyarrow tqdm prometheus_client matplotlib"
HEADINGS = ("TensorFlow", "Python", "Keras", "README", "Keras 3", "tf_keras")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensorflow", nargs="+", default=list(TENSORFLOW_VERSIONS))
    parser.add_argument("--tests", nargs="*", default=CORE, help="for pytest; none: README alone")
    parser.add_argument("--wheel", type=pathlib.Path, help="default: the one in dist/")
    arguments = parser.parse_args()
    wheel = arguments.wheel or the_wheel()
    rows, is_good = [], True
    for version in arguments.tensorflow:
        environment = Environment(version, wheel, has_tests=bool(arguments.tests))
        results = [environment.run_readme()]
        if arguments.tests:
            results += [environment.run_tests(arguments.tests, is_legacy) for is_legacy in (0, 1)]
        is_good = is_good and all(is_right for is_right, _ in results)
        rows.append([*environment.versions(), *(text for _, text in results)])
        print(table(rows), flush=True)
        (FOLDER / "results.md").write_text(table(rows) + "\n")
    sys.exit(not is_good)


def the_wheel():
    wheels = list((ROOT / "dist").glob("*.whl"))
    if len(wheels) != 1:
        sys.exit(f"there must be one wheel in dist/, made by `make wheel`; found {len(wheels)}")
    return wheels[0]


class Environment:
    """A fresh environment with a wheel and a TensorFlow version.

    Args:
        version: `"major.minor"`.
        wheel: Path.
        has_tests: Whether it also has what the tests need.
    """

    def __init__(self, version, wheel, has_tests):
        self._version = version
        tested = TENSORFLOW_VERSIONS[version]
        self._folder = FOLDER / version
        shutil.rmtree(self._folder, ignore_errors=True)
        command = ["-m", "venv", str(self._folder / "env")]
        # pyenv has a version only when asked for it.
        options = {"env": environment(PYENV_VERSION=tested.python)}
        try:
            subprocess.run([f"python{tested.python}", *command], check=True, **options)
        except (OSError, subprocess.CalledProcessError):
            print(f"no Python {tested.python} here; this one is used in its place")
            subprocess.run([sys.executable, *command], check=True)
        packages = [str(wheel), f"tensorflow=={version}.*", tested.keras]
        if has_tests:
            packages += [f"tf_keras=={version}.*", "tensorflow-recommenders==0.7.7"]
            packages += PACKAGES.split()
        self._run("-m", "pip", "install", "--quiet", "--only-binary", ":all:", *packages)
        if has_tests:
            self._copy_repository()

    def versions(self):
        code = "import sys, keras; print(sys.version.split()[0], keras.__version__)"
        python, keras = self._run("-c", code, stderr=subprocess.DEVNULL).stdout.split()
        return self._version, python, keras

    def run_readme(self):
        """Returns whether README's first program runs by native ops, and what to say of it."""
        program = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
        check = (
            "import tf_slipstream\ninfo = tf_slipstream.build_info()\n"
            f"assert info['tensorflow'] == {self._version!r}, info\n"
        )
        folder = self._folder / "readme"
        folder.mkdir()
        # In a folder where only the installed package is found, with no program but Python.
        options = {"cwd": folder, "env": environment(PATH=str(self._folder / "env/bin"))}
        started = time.monotonic()
        arguments = ["-W", "error::RuntimeWarning:tf_slipstream", "-c", check + program]
        done = self._run(*arguments, check=False, stderr=subprocess.STDOUT, **options)
        if done.returncode:
            print(done.stdout[-4000:])
        seconds = f"{time.monotonic() - started:.0f} s"
        return done.returncode == 0, f"{'failed' if done.returncode else 'runs'}, {seconds}"

    def run_tests(self, tests, is_legacy):
        """Returns whether tests pass under a Keras, and what pytest said last."""
        log = self._folder / f"{'tf_keras' if is_legacy else 'keras3'}.log"
        command = [self._python, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal"]
        command += ["-m", "not thorough", *tests]  # as `make test`
        with open(log, "w") as out:
            done = subprocess.run(
                command,
                cwd=self._folder / "source",
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment(TF_USE_LEGACY_KERAS=str(is_legacy)),
            )
        # What TensorFlow says at exit comes behind it.
        lines = [line for line in log.read_text().splitlines() if re.search(r" in [\d.]+s", line)]
        return done.returncode == 0, (lines or ["no result"])[-1].strip("= ")

    @property
    def _python(self):
        return str(self._folder / "env" / "bin" / "python")

    def _run(self, *arguments, check=True, **options):
        options = {"env": environment(), "stdout": subprocess.PIPE, "text": True} | options
        return subprocess.run([self._python, *arguments], check=check, **options)

    def _copy_repository(self):
        done = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
        )
        for name in done.stdout.splitlines():
            if not name.startswith("tf_slipstream/") and (ROOT / name).exists():
                path = self._folder / "source" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, path)
        find = "import tf_slipstream as t; print(t.__path__[0])"
        installed = self._run("-c", find, cwd=self._folder).stdout.strip()
        (self._folder / "source" / "tf_slipstream").symlink_to(installed)


def environment(**changes):
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    unset = ("PYTHONPATH", "TF_USE_LEGACY_KERAS")
    return {k: v for k, v in os.environ.items() if k not in unset} | quiet | changes


def table(rows):
    headings = HEADINGS[: len(rows[0])]
    rows = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    main()
