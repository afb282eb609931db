"""The bench of quality over several devices, at a tiny size."""

import json
import pathlib
import subprocess
import sys

import pytest

from tf_slipstream import _compat

BENCH = pathlib.Path(__file__).parents[2] / "benchmarks" / "distribution" / "quality.py"


@pytest.mark.skipif(not _compat.IS_KERAS_3, reason="the bench trains with Keras 3")
def test_every_way_takes_the_same_steps(tmp_path):
    output = tmp_path / "quality.jsonl"
    options = ["--data", "synthetic", "--examples", 4096, "--test-examples", 2048, "--seeds", 0]
    policy = "min_updates=2,updates_per_sleep=1,window=2,threshold=1e9"
    options += ["--cardinalities", 50, 20, "--configurations", policy]
    command = [sys.executable, BENCH, *options, "--output", output]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results = [json.loads(line) for line in output.read_text().splitlines()]
    ways = ["single", "mirrored", "delayed", "parameter_server"]
    assert [one["way"] for one in results] == ways
    assert [one["steps"] for one in results] == [8] * 4
    single, mirrored, *_ = results
    # Halves of a batch, summed, are the batch but for the order of sums.
    assert mirrored["auc"] == pytest.approx(single["auc"], abs=0.01)
    assert mirrored["lookups_saved"] == single["lookups_saved"] > 0
    assert all(0.2 < one["auc"] < 0.9 for one in results)
    assert "mirrored: " in done.stdout and "parameter_server: " in done.stdout
