"""Whole training steps run, have the losses of their models, and report the agreed fields."""

import pytest

from tests.benchmarks import programs
from tf_slipstream._compat import IS_KERAS_3

import runner  # isort: skip (programs.py puts its folder on the path)
import training_workload  # isort: skip

pytestmark = pytest.mark.skipif(not IS_KERAS_3, reason="the subjects choose their Keras themselves")

TINY = ["--scale", 0.0001, "--batch-sizes", 32, "--rounds", 1, "--steps", 3]
OF_A_RESULT = {"seconds", "model", "rule", "cardinalities", "batch_size", "zipf", "threads"}
OF_A_RESULT |= {"memory_before", "peak_memory", "versions"}


def test_a_result_has_the_agreed_fields_and_a_peer_without_environment_a_reason(tmp_path):
    options = [*TINY, "--models", "two_tower", "--subjects", "slipstream", "torch"]
    programs.run("training_step.py", tmp_path, *options, BENCH_PEERS=str(tmp_path))
    line, skipped = programs.results(tmp_path, "training_step")
    assert OF_A_RESULT | set(runner.FIELDS) <= set(line)
    assert len(line["seconds"]) == 3 and min(line["seconds"]) > 0
    assert "make bench-peers" in skipped["skipped"]


def test_the_loss_is_that_of_the_published_dlrm():
    """In this process: starting TensorFlow takes longer than the step."""
    import tensorflow_training

    options = ["--subject", "keras3", "--model", "dlrm", "--cardinalities", *["50"] * 26]
    args = training_workload.arguments(options)
    training_workload.check(tensorflow_training.SUBJECTS["keras3"], args)


def test_pytorch_runs_where_its_environment_was_made(tmp_path):
    if programs.environment("peers") is None:
        pytest.skip("build/peers was not made; make bench-peers makes it")
    options = [*TINY, "--models", "dlrm", "small_mlp", "--subjects", "torch"]
    programs.run("training_step.py", tmp_path, *options)
    assert len(programs.results(tmp_path, "training_step")) == 2
