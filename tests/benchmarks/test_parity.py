"""Is a model as good as stock Keras's? In short: `python benchmarks/parity.py` has all of it."""

import json

import numpy as np
import pytest

from tests.benchmarks.programs import run

CARDINALITIES = (20_000, 10_000, 2_000, 100)
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The lines of a short run under two rules with moments."""
    folder = tmp_path_factory.mktemp("parity")
    output = folder / "parity.jsonl"
    options = ["--data", "long_tail", "--examples", 65_536, "--test-examples", 65_536]
    options += ["--cardinalities", *CARDINALITIES, "--optimizer", "adam", "momentum"]
    options += ["--configurations", "stock", "dense", "none", "default", "--seeds", *SEEDS]
    options += ["--epochs", 1, "--output", output]
    run("parity.py", folder, *options)
    # All of it is there: nothing is run again.
    before = output.read_text()
    run("parity.py", folder, *options)
    assert output.read_text() == before
    return output


def changes(output, optimizer, name, reference, measure):
    """Returns by how much a configuration is worse than a reference, by seed."""
    values = {}
    for line in map(json.loads, output.read_text().splitlines()):
        if line["settings"]["optimizer"] == optimizer:
            place = (line["name"], line["settings"]["seed"])
            values[place] = line["result"][measure]
    assert len(values) == 4 * len(SEEDS)
    sign = -1 if measure == "auc" else 1
    return np.array([sign * (values[name, s] - values[reference, s]) for s in SEEDS])


@pytest.mark.parametrize("measure", ["auc", "log_loss"])
@pytest.mark.parametrize("name", ["none", "default"])
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_a_model_is_as_good_as_that_of_stock_keras(output, optimizer, name, measure):
    # Rules that let moments decay without moving the row lose more than 0.02 here. Pairs differ by
    # 0.003, since Keras 3 moves a row that repeats in a batch once for each of its gradients.
    assert np.mean(changes(output, optimizer, name, "stock", measure)) < 0.006
    assert np.mean(changes(output, optimizer, name, "dense", measure)) < 0.004


def test_the_table_has_a_line_for_each_optimizer(output, tmp_path):
    table = run("parity.py", tmp_path, "--summary", "--output", output).splitlines()
    assert [line.split(" | ")[2] for line in table[2:]] == ["adam", "momentum"]
    assert all(" | 3 | 0." in line and "±" in line for line in table[2:])
