"""A disk that is full or fails: an error that names the path, and nothing half made."""

import pytest

from tests.reliability import failing_files


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return failing_files.compile_library(tmp_path_factory.mktemp("library"))


@pytest.mark.parametrize("error", ["ENOSPC", "short", "EIO-read"])
def test_every_operation_fails_once(error, library, tmp_path):
    whats = ["apply", "delta", "page", "checkpoint"]
    if error == "EIO-read":
        whats = ["apply", "delta", "log", "inspect", "checkpoint"]
    done = failing_files.run(library, tmp_path, error, 1, *whats)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-1000:]
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("done ")]
    tried = {words[1]: int(words[3]) for words in lines}
    # TensorFlow writes by `fwrite`, which finishes short writes itself.
    least = {"apply": 4, "delta": 2, "page": 1, "checkpoint": 0}
    if error == "EIO-read":
        least = {"apply": 30, "delta": 2, "log": 10, "inspect": 20, "checkpoint": 4}
    elif error != "short":
        least = {"apply": 25, "delta": 8, "page": 3, "checkpoint": 10}
    assert tried.keys() == least.keys() and all(tried[name] >= least[name] for name in least)
