"""Every subject of the embedding step runs, is checked, and reports the agreed fields."""

import argparse

import pytest

from tests.benchmarks import programs
from tf_slipstream._compat import IS_KERAS_3

import runner  # isort: skip (programs.py puts its folder on the path)
import workload  # isort: skip

pytestmark = pytest.mark.skipif(not IS_KERAS_3, reason="the subjects choose their Keras themselves")

TINY = ["--tables", "2*700x8", "--rules", "adagrad", "--lookups", 300, "--rounds", 1, "--steps", 3]
OWN = ["slipstream", "limit"]
OF_A_RESULT = {"seconds", "rule", "cardinalities", "dim", "lookups", "bag", "zipf", "threads"}
OF_A_RESULT |= {"distinct", "memory_before", "peak_memory", "versions", "convention"}


def test_a_result_has_the_agreed_fields_and_a_peer_without_environment_a_reason(tmp_path):
    subjects = ["--subjects", *OWN, "torch", "fbgemm", "torchrec", "tfra"]
    nowhere = {"BENCH_PEERS": str(tmp_path), "BENCH_TFRA": str(tmp_path)}
    printed = programs.run("embedding_step.py", tmp_path, *TINY, *subjects, **nowhere)
    lines = {line["subject"]: line for line in programs.results(tmp_path, "embedding_step")}
    assert set(lines) == {*OWN, "torch", "fbgemm", "torchrec", "tfra"}
    for name, line in lines.items():
        assert set(runner.FIELDS) - {"seconds"} <= set(line)
        assert name in printed
        if name in OWN:
            assert OF_A_RESULT <= set(line)
            assert len(line["seconds"]) == 3 and min(line["seconds"]) > 0
            assert line["cardinalities"] == [700] * 2
        else:
            assert "make bench-peers" in line["skipped"]


@pytest.mark.parametrize("name", ["keras3", "tf_keras", "tf_keras_legacy"])
def test_either_keras_is_right(name):
    """In this process: starting TensorFlow takes longer than the step."""
    import tensorflow_step

    args = argparse.Namespace(rule="adagrad", cardinalities=[9, 9], threads=2, bag=1)
    workload.check(tensorflow_step.SUBJECTS[name], args)


@pytest.mark.parametrize(
    "subject, name",
    [("torch", "peers"), ("fbgemm", "peers"), ("torchrec", "peers"), ("tfra", "tfra")],
)
def test_a_peer_runs_where_its_environment_was_made(subject, name, tmp_path):
    if programs.environment(name) is None:
        pytest.skip(f"build/{name} was not made; make bench-peers makes it")
    programs.run("embedding_step.py", tmp_path, *TINY, "--subjects", subject)
    (line,) = programs.results(tmp_path, "embedding_step")
    assert OF_A_RESULT <= set(line)


@pytest.mark.parametrize("rule", ["sgd", "row_wise_adagrad", "adam"])
def test_the_limit_is_right_under_every_rule_with_bags_and_odd_dims(rule, tmp_path):
    options = ["--tables", "300x7", "--rules", rule, "--bags", 4, "--lookups", 100]
    options += ["--rounds", 1, "--steps", 2, "--subjects", "limit"]
    programs.run("embedding_step.py", tmp_path, *options)
    (line,) = programs.results(tmp_path, "embedding_step")
    assert line["bag"] == 4
