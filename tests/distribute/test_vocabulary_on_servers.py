"""A vocabulary on two workers and two parameter servers, all real processes."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests.distribute import programs
from tf_slipstream import _compat

PROGRAMS = pathlib.Path(programs.__file__)


def run(cluster, name, **settings):
    return cluster.run(PROGRAMS, name, json.dumps(settings), timeout=300)


@pytest.mark.parametrize(
    "ids, policy", [("int64", None), ("string", programs.SLEEPY)], ids=["integers", "strings"]
)
def test_an_id_learns_in_a_row_of_its_own(cluster, tmp_path, ids, policy):
    settings = {"ids": ids, "policy": policy}
    if policy is not None:
        settings["cache"] = {"num_bytes": 0}
    # tf_keras exports no partitioned variables.
    more = {"export": str(tmp_path / "served")} if _compat.IS_KERAS_3 else {"partitioned": True}
    result = run(cluster, "vocabulary", **settings, **more)
    assert result["num_shards"] == [2, 2] and result["servers"] == [1, 1]
    assert min(result["both"]) > 200
    # Ids below 50 were looked up all the time, those up to 800 were forgotten.
    assert result["known"] == [750, 0, 1499] and result["num_reused"] > 500
    assert result["num_wrong"] == 0 and result["num_of_free_rows"] == 0
    assert [result[name] for name in ("on_worker", "alone", "here")] == [0, 0, 0]
    stats = result["stats"]
    assert stats["num_steps"] == 24
    assert stats["num_lookups"] == 6 * 800 + 12 * 50 + 6 * 750
    assert stats["num_known_lookups"] == stats["num_lookups"]
    assert stats["num_forgotten"] == 750 and stats["num_ids"] == 750 and result["num_after"] == 0
    assert "on 2 parameter servers" in result["wrong_rows"]
    if "export" in more:
        served = tf.saved_model.load(more["export"])
        with np.load(more["export"] + ".npz", allow_pickle=True) as file:
            asked = tf.constant(file["ids"].tolist(), ids)
            np.testing.assert_array_equal(served.serve(asked), file["vectors"])


@pytest.mark.skipif(not _compat.IS_KERAS_3, reason="tf_keras's fit has no checkpoints of ours")
def test_fit_goes_on_from_a_checkpoint_and_publishes_what_changed(cluster, tmp_path):
    settings = {"folder": str(tmp_path), "policy": programs.SLEEPY, "cache": {"num_bytes": 0}}
    first = run(cluster, "fit_vocabulary", ids=[0, 400], epochs=1, **settings)
    assert first["known"] == [400, 0, 399] and first["counts"] == [10]
    settings |= {"publish": True}
    result = run(cluster, "fit_vocabulary", ids=[200, 600], epochs=3, **settings)
    assert result["num_shards"] == [2, 1] and result["iterations"] == 30
    assert result["num_epochs"] == 2
    assert result["known"] == [400, 200, 599] and result["counts"] == [20, 30]
    stats = result["stats"]
    assert (stats["num_steps"], stats["num_lookups"]) == (30, 30 * 400)
    assert (stats["num_admitted"], stats["num_forgotten"]) == (600, 200)
    if "publish" in settings:
        asked = np.load(tmp_path / "asked.npz")
        served = tf.saved_model.load(str(tmp_path / "2")).signatures["serving_default"]
        (vectors,) = served(tf.constant(asked["ids"])).values()
        np.testing.assert_array_equal(vectors, asked["vectors"])
        old = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
        (vectors,) = old(tf.constant(asked["ids"])).values()
        assert np.abs(vectors - asked["vectors"]).min() > 0
        # Most are of the table, which is 4,000.
        assert result["versions"] == [1, 2] and 400 <= max(result["num_rows"].values()) <= 600


def test_rows_that_are_taken_back_must_not_be_kept_by_workers(cluster):
    said = run(cluster, "kept_rows", policy=programs.SLEEPY)["said"]
    assert "worker_cache = slipstream.distribute.WorkerCache(num_bytes=0)" in said
