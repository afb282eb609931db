"""Is a model as good as stock Keras's? In short: `python benchmarks/parity.py` has all of it."""

import json

import numpy as np
import pytest

from tests.benchmarks.programs import run

CARDINALITIES = (5_000, 5_000, 5_000, 5_000)
OPTIMIZERS = ("adam", "rmsprop_momentum")
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The lines of a short run under two rules with moments."""
    folder = tmp_path_factory.mktemp("parity")
    output = folder / "parity.jsonl"
    options = ["--data", "long_tail", "--examples", 131_072, "--test-examples", 50_000]
    options += ["--cardinalities", *CARDINALITIES, "--optimizer", *OPTIMIZERS]
    options += ["--configurations", "stock", "dense", "none", "default", "--seeds", *SEEDS]
    options += ["--epochs", 1, "--output", output]
    run("parity.py", folder, *options)
    # All of it is there: nothing is run again.
    before = output.read_text()
    run("parity.py", folder, *options)
    assert output.read_text() == before
    return output


def loss_of_auc(output, optimizer, name, reference):
    """Returns by how much less AUC a configuration has than a reference, the mean over seeds."""
    values = {}
    for line in map(json.loads, output.read_text().splitlines()):
        if line["settings"]["optimizer"] == optimizer:
            values[line["name"], line["settings"]["seed"]] = line["result"]["auc"]
    assert len(values) == 4 * len(SEEDS)
    return np.mean([values[reference, seed] - values[name, seed] for seed in SEEDS])


@pytest.mark.parametrize("name", ["none", "default"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_model_is_as_good_as_that_of_stock_keras(output, optimizer, name):
    # The rule of commit 6454eae, whose moments decayed and did not move the row, lost 0.0058 and
    # 0.0063 against `dense` here. Keras 3 moves a row that repeats in a batch once for each of its
    # gradients, so pairs with `stock` differ by more.
    assert loss_of_auc(output, optimizer, name, "dense") < 0.003
    assert loss_of_auc(output, optimizer, name, "stock") < 0.004


def test_the_table_has_a_line_for_each_optimizer(output, tmp_path):
    table = run("parity.py", tmp_path, "--summary", "--output", output).splitlines()
    optimizers = [line.split(" | ")[2] for line in table[2:]]
    assert [one.split(",")[0] for one in optimizers] == [*OPTIMIZERS]
    assert all(" | 3 | 0." in line and "±" in line for line in table[2:])
