"""Runs every example as a user would."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from tf_slipstream import _compat

# Of the demo's table: subject, milliseconds, examples a second, AUC, memory; then the ratio.
ROW = r"^ +(\w+) +([\d.]+) +([\d,]+) +(0\.\d{4}) +([\d.]+) GB +[\d.]+x$"
EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
of_the_demo = pytest.mark.skipif(
    not _compat.IS_KERAS_3, reason="the demo's subjects choose their Keras themselves"
)


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3"),
    )


@of_the_demo
def test_the_demo_compares_all_ways_of_training_on_a_synthetic_log(tmp_path):
    options = ["--scale", 0.001, "--examples", 4096, "--test-examples", 2048, "--batch-size", 512]
    done = run("dlrm.py", *options, "--report", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80  # the last names a folder
    # TensorFlow's start says nothing: progress bars, and that is all.
    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert all("step/s" in line or "s/step" in line for line in said), done.stderr
    rows = re.findall(ROW, done.stdout, re.M)
    assert [row[0] for row in rows] == ["keras", "tf_keras", "slipstream", "sleeping"]
    # All start from the same weights and see the same examples.
    aucs = [float(row[3]) for row in rows]
    assert max(aucs) - min(aucs) < 0.02, aucs
    assert re.search(r"deferred \d+% of lookups, \d+% of row\supdates", done.stdout)
    assert "(teacher)" in done.stdout and "How to read it" in done.stdout
    report = tmp_path / "demo" / "report.html"
    assert f"A report that a manager can read: {report}" in done.stdout
    for name, row in zip(("keras", "tf_keras", "slipstream", "sleeping"), rows, strict=True):
        assert f"<td>{name}</td><td>1</td><td>{row[3]}</td>" in report.read_text()


@of_the_demo
def test_the_demo_shows_a_model_that_trains_on_chosen_inputs():
    options = ["--scale", 0.001, "--examples", 8192, "--test-examples", 2048, "--batch-size", 256]
    done = run("dlrm.py", *options, "--keep", 0.5, "--subjects", "slipstream")
    assert done.returncode == 0, done.stderr
    assert [row[0] for row in re.findall(ROW, done.stdout, re.M)] == ["slipstream", "chosen"]
    assert re.search(r"trained on (4[5-9]|5[0-5])% of the inputs", done.stdout)


@of_the_demo
def test_the_demo_reads_criteo_text(tmp_path):
    random = np.random.default_rng(0)
    lines = []
    for _ in range(600):
        counts = [str(n) for n in random.integers(0, 50, 13)]
        categories = [f"{n:08x}" for n in random.integers(0, 99, 26)]
        lines.append("\t".join([str(random.integers(2)), *counts, *categories]))
    path = tmp_path / "train.txt"
    path.write_text("\n".join(lines) + "\n")
    options = ["--data", path, "--hash-size", 100, "--batch-size", 64, "--train", "slipstream"]
    done = run("dlrm.py", *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert 0 < result["auc"] < 1 and "best_possible_auc" not in result


@of_the_demo
def test_the_demo_says_what_is_wrong_with_its_data(tmp_path):
    done = run("dlrm.py", "--data", tmp_path / "missing.tsv")
    assert done.returncode != 0
    assert "missing.tsv" in done.stderr.splitlines()[-1]


def test_serving_publishes_a_version_and_what_changed_after_it(tmp_path):
    options = ["--folder", tmp_path / "published", "--rows", 20_000, "--examples", 40_000]
    done = run("serving.py", *options)
    assert done.returncode == 0, done.stderr
    assert "2 answers as the model does, to within 0e+00" in done.stdout
    versions = tmp_path / "published" / "clicks"
    assert sorted(path.name for path in versions.iterdir()) == ["1", "2"]


def test_replicas_of_the_mirrored_example_are_alike():
    done = run("mirrored.py", "--examples", 100_000, "--rows", 2_000, "--batch-size", 256)
    assert done.returncode == 0, done.stderr
    assert "the tables of 2 replicas are equal to the bit: True" in done.stdout
    deferred = re.search(r"100,\d+ lookups, (\d+)% of them deferred", done.stdout)
    assert deferred, done.stdout
    assert int(deferred[1]) > 0
