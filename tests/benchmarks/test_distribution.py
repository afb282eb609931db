"""The bytes counted between replicas are those of the model in docs/reference/replicas.md."""

import json

import pytest

from tests.benchmarks import programs
from tf_slipstream._compat import IS_KERAS_3

import workload  # isort: skip (programs.py puts its folder on the path)

pytestmark = pytest.mark.skipif(not IS_KERAS_3, reason="the subjects choose their Keras themselves")

LOOKUPS, DIM, ROWS = 3000, 8, 2000
TINY = ["--replicas", 2, "--rows", ROWS, "--dim", DIM, "--lookups", LOOKUPS]
# The counted steps go through all batches once.
TINY += ["--warmup", 8, "--steps", 2, "--counted-steps", workload.NUM_BATCHES]


def count(folder, subject, legacy="0"):
    options = ["--subject", subject, *TINY]
    script = "distribution/mirrored_step.py"
    printed = programs.run(script, folder, *options, TF_USE_LEGACY_KERAS=legacy)
    return json.loads(printed.splitlines()[-1])


@pytest.mark.parametrize("subject,legacy", [("keras3", "0"), ("tf_keras", "1")])
def test_stock_keras_sends_every_lookup(tmp_path, subject, legacy):
    assert count(tmp_path, subject, legacy)["bytes_per_step"] == LOOKUPS * (4 * DIM + 8)


def test_distinct_rows_are_sent_once(tmp_path):
    result = count(tmp_path, "slipstream")
    # Of both replicas.
    assert result["bytes_per_step"] == result["mean_distinct"] * (4 * DIM + 4) + 40


def test_sleeping_rows_send_their_ids(tmp_path):
    result = count(tmp_path, "slipstream_stale")
    distinct = result["mean_distinct"]
    assert result["lookups_deferred"] > 0.5
    assert 4 * distinct < result["bytes_per_step"] < 0.8 * distinct * (4 * DIM + 4)
