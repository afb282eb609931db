"""Checks `tf-slipstream compare --train`: what is trained, in which order, and what fails."""

import json

import numpy as np
import pytest

from tf_slipstream.cli import main
from tf_slipstream.comparison.compare import load_runs

# Scores that tell of the name and the seed, and a note of what was called.
JOB = """
import os
import numpy as np
import beside

def train(name, seed):
    with open(beside.NOTES, "a") as notes:
        notes.write(f"{name} {seed} {os.getpid()}\\n")
    print("this is no part of the report")
    return name, seed

def test(trained):
    name, seed = trained
    labels = np.arange(400) % 2
    scores = 0.4 + 0.2 * np.random.default_rng(seed).random(400)
    scores += 0.1 * labels * (name == "good")
    return labels, scores
"""


@pytest.fixture
def job(tmp_path):
    (tmp_path / "beside.py").write_text(f"NOTES = {str(tmp_path / 'notes')!r}\n")
    path = tmp_path / "job.py"
    path.write_text(JOB)
    return path


def compare(job, *more, seeds=2):
    arguments = ["compare", str(job.parent / "runs"), "--baseline", "none", "--train", str(job)]
    return main([*arguments, "--configurations", "none", "good", "--seeds", str(seeds), *more])


def notes(job):
    return [line.split() for line in (job.parent / "notes").read_text().splitlines()]


def test_it_trains_in_turn_what_is_not_there_and_reports(job, capfd):
    assert compare(job, "--json") == 0
    told = capfd.readouterr()
    found = json.loads(told.out)
    assert found["comparisons"]["good"]["verdict"] == "better"
    assert "[4/4] good, seed 1: training" in told.err
    runs = [["none", "0"], ["good", "0"], ["none", "1"], ["good", "1"]]
    assert [line[:2] for line in notes(job)] == runs
    assert len({line[2] for line in notes(job)}) == 4  # processes
    assert compare(job, "--json", seeds=3) == 0
    assert [line[:2] for line in notes(job)] == [*runs, ["none", "2"], ["good", "2"]]
    assert json.loads(capfd.readouterr().out)["comparisons"]["good"]["auc"]["num_seeds"] == 3
    scores = load_runs(job.parent / "runs")["none"][1]["scores"]
    np.testing.assert_array_equal(scores, 0.4 + 0.2 * np.random.default_rng(1).random(400))


@pytest.mark.parametrize(
    "text, message",
    [
        ("def train(name, seed): pass", "has no function test"),
        (JOB.replace("return labels, scores", "return scores"), "must return labels and scores"),
        (JOB.replace("return labels, scores", "return labels, 9 * scores"), "probabilities"),
        (JOB.replace("return name, seed", "1 / 0"), "ZeroDivisionError"),
    ],
)
def test_a_run_that_fails_says_why_and_those_before_stay(text, message, job, capfd):
    assert compare(job, seeds=1) == 0
    job.write_text(text)
    assert compare(job, seeds=2) == 1
    told = capfd.readouterr().err
    assert message in told and "'none' with seed 1 was not trained" in told
    assert sorted(load_runs(job.parent / "runs")) == ["good", "none"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seeds", "2"], "are for --train"),
        (["--train", "job.py"], "got none"),
        (["--train", "job.py", "--configurations", "good", "other"], "the baseline"),
        (["--train", "job.py", "--configurations", "none", "it", "--seeds", "0"], "at least 1"),
        (["--train", "missing.py", "--configurations", "none", "it"], "no file missing.py"),
        (["--train", __file__, "--configurations", "none", "a b"], "`name` must be letters"),
        (["--html", "missing/a.html"], "no folder missing"),
    ],
)
def test_wrong_wishes_get_a_sentence_before_anything_is_trained(
    arguments, message, tmp_path, capsys
):
    folder = tmp_path / "runs"
    assert main(["compare", str(folder), "--baseline", "none", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not folder.exists()
