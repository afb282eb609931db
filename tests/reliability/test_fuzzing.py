"""Altered files and configurations are refused with a sentence, and with no other error."""

import pathlib
import subprocess
import sys

import pytest

from tests.reliability import fuzzing
from tests.reliability.mutations import generator, mutated, mutated_value

NUM_INPUTS = 60
ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("kind", fuzzing.KINDS, ids=lambda kind: kind.__name__)
def test_what_is_altered_is_refused_or_read(kind, tmp_path):
    refused = [fuzzing.try_input(kind, seed, tmp_path) for seed in range(NUM_INPUTS)]
    assert 10 < sum(refused)


def test_mutations_change_most_inputs():
    data, value = bytes(range(256)), {"a": [1, 2], "b": {"c": "x"}}
    assert sum(mutated(data, generator(seed)) != data for seed in range(100)) > 95
    assert sum(mutated_value(value, generator(seed)) != value for seed in range(100)) > 80


def test_the_fuzzer_that_follows_coverage_tries_inputs_until_it_is_told_to_stop(tmp_path):
    pytest.importorskip("atheris", reason="atheris, of the extra `fuzz`, is not installed")
    command = [sys.executable, "-m", "tests.reliability.coverage_fuzzing", "policy_config"]
    run = subprocess.run([*command, "-runs=200"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and "Done 200 runs" in run.stderr, run.stderr[-3000:]
