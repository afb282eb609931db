"""Training on two workers and two parameter servers, all real processes."""

import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests.distribute import clusters, programs
from tf_slipstream import _compat

PROGRAMS = pathlib.Path(programs.__file__)
# A minute is the long form.
SECONDS = float(os.environ.get("SLIPSTREAM_SUM_SECONDS", 2))


def run(cluster, name, **settings):
    return cluster.run(PROGRAMS, name, json.dumps(settings), timeout=300 + SECONDS)


@pytest.mark.parametrize(
    "policy, cache, wire_dtype",
    [
        (None, {}, "float32"),
        (None, {}, "bfloat16"),  # which has whole numbers up to 256
        (programs.SLEEPY, {}, "float32"),
        (programs.SLEEPY, {"num_bytes": 0}, "float32"),
    ],
    ids=["no policy", "no policy, bfloat16", "held by workers", "held by servers"],
)
def test_no_update_is_lost_where_workers_write_the_same_rows(cluster, policy, cache, wire_dtype):
    settings = {"policy": policy, "cache": cache, "wire_dtype": wire_dtype}
    result = run(cluster, "sums", seconds=SECONDS, **settings)
    assert result["num_wrong"] == 0, result
    assert result["missing"] == 0
    assert result["iterations"] == result["steps"]
    stats = result["after"]
    assert stats["num_lookups"] == result["lookups"]
    assert stats["num_held_batches"] == stats["num_lost_batches"] == 0
    held = result["before"]["num_held_batches"]
    if policy is None:
        assert stats["num_deferred_lookups"] == held == stats["num_cached_rows"] == 0
    else:
        assert stats["num_deferred_lookups"] > result["lookups"] / 4
        # What a worker has nowhere to keep, it does not hold.
        assert (held > 0) == (stats["num_cached_rows"] > 0) == (cache == {})


def test_no_update_is_lost_with_4_workers_and_4_servers(forks, tmp_path):
    with clusters.Cluster(forks, tmp_path, num_workers=4, num_servers=4) as cluster:
        result = run(cluster, "sums", seconds=SECONDS, policy=programs.SLEEPY, cache={})
    assert result["num_wrong"] == result["missing"] == 0, result
    stats = result["after"]
    assert stats["num_lookups"] == result["lookups"]
    assert stats["num_deferred_lookups"] > result["lookups"] / 4
    assert stats["num_held_batches"] == stats["num_lost_batches"] == 0


def test_with_an_age_of_0_every_row_is_pulled_and_gradients_are_still_held(cluster):
    cache = {"max_age": 0}
    result = run(cluster, "sums", seconds=0, policy=programs.SLEEPY, cache=cache)
    assert result["num_wrong"] == 0
    assert result["before"]["num_held_batches"] > 0
    assert result["after"]["num_cached_rows"] == 0
    # The step looks each batch up once.
    assert result["after"]["num_pulled_rows"] == result["after"]["num_row_updates"]


@pytest.mark.parametrize("policy", [None, programs.SLEEPY], ids=["no policy", "policy"])
def test_padding_is_nobodys_lookup(cluster, policy):
    result = run(cluster, "padding", policy=policy)
    assert result["num_wrong"] == 0
    assert result["stats"]["num_lookups"] == result["num_ids"]
    assert (result["stats"]["num_deferred_lookups"] > 0) == (policy is not None)


def test_skipped_rows_are_neither_held_nor_sent(cluster):
    policy = {**programs.SLEEPY, "on_stale": "skip", "probe": 2}
    stats = run(cluster, "sums", seconds=0, policy=policy)["after"]
    assert stats["num_skipped_lookups"] > 0
    assert stats["num_deferred_lookups"] == stats["num_held_batches"] == 0


@pytest.mark.parametrize("wire_dtype", ["float32", "bfloat16"])
def test_rows_and_gradients_travel_in_the_dtype_asked_for(cluster, wire_dtype):
    partitioned = not _compat.IS_KERAS_3
    result = run(cluster, "wire", wire_dtype=wire_dtype, partitioned=partitioned)
    assert result["num_wrong_rows"] == result["num_wrong_updates"] == 0
    assert (result["num_rounded"] > 0) == (wire_dtype == "bfloat16")


def test_a_table_of_bfloat16_is_refused_with_what_to_do(cluster):
    said = run(cluster, "refusal", dtype="bfloat16")["said"]
    assert "'item' has a table of bfloat16" in said
    assert "wire_dtype" in said and "mixed_bfloat16" in said
    assert run(cluster, "refusal", dtype="mixed_bfloat16")["said"] == ""


def test_gradients_that_were_changed_are_refused(cluster):
    result = run(cluster, "changed_gradients", partitioned=not _compat.IS_KERAS_3)
    changed, unchanged, *scaled = result["said"]
    for said in (changed, *scaled):
        assert "The gradient of table 'item' was changed between the tape and the optimizer" in said
    assert unchanged == "" and len(scaled) == _compat.IS_KERAS_3
    assert result["table"] == 0


@pytest.mark.skipif(not _compat.IS_KERAS_3, reason="tf_keras has a loop of its own")
def test_fit_takes_each_batch_once_of_data_that_workers_share(cluster):
    counts = run(cluster, "fit_shared", steps=200)["counts"]
    assert sum(counts) == 200 and max(counts) == 1
    # A worker may have taken some that it has not come to.
    assert counts[:100] == [1] * 100


@pytest.mark.parametrize("more", [{}, {"partitioned": True}, {"max_delay": 0}], ids=str)
def test_fit_trains_counts_and_holds(cluster, more):
    if "partitioned" in more and _compat.IS_KERAS_3:
        pytest.skip("Keras 3 knows no partitioned variables; a large table has shards without")
    if "max_delay" in more and not _compat.IS_KERAS_3:
        pytest.skip("a bound on delay is the trainer's, which tf_keras does without")
    settings = {"policy": programs.SLEEPY, **more}
    result = run(cluster, "fit", rule="Adagrad", rate=0.5, **settings)
    history = result["history"]
    assert result["iterations"] == 100
    if _compat.IS_KERAS_3:
        assert result["num_batches"] == 100
    assert set(history) == {f"{v}{m}" for v in ("", "val_") for m in ("loss", "accuracy", "auc")}
    # 0.89 to 0.95 in six runs: which steps the workers take side by side is chance.
    assert history["val_auc"][1] > 0.75, history
    assert history["loss"][1] < history["loss"][0]
    stats = result["stats"]
    assert stats["num_lookups"] == 100 * 64 * 3
    assert stats["num_deferred_lookups"] > 0 and stats["num_cached_rows"] > 0
    assert stats["num_held_batches"] == stats["num_stale_rows"] == 0  # the end of fit
    assert result["shapes"] == ([[500, 4]] * 2 if "partitioned" in more else [[1000, 4]])
    assert len(set(result["devices"])) == len(result["devices"])
    assert all("/job:ps/" in device for device in result["devices"])


@pytest.mark.skipif(not _compat.IS_KERAS_3, reason="tf_keras has a `predict` of its own")
def test_workers_predict_in_order_what_the_model_is_when_all_is_applied(cluster):
    result = run(cluster, "predicting", policy=programs.SLEEPY)
    training, after = result["found"]
    for one in (training, after):
        assert one["shape"] == [1000, 1]
        # Sums of a dozen products below 1, on other machines in another order.
        assert one["largest_difference"] < 16 * np.finfo(np.float32).eps
        assert one["num_unlike"] == 0
        assert one["num_held"][1] == 0
    assert training["num_held"][0] > 0 and training["num_asleep"][1] > 0
    assert "got no batch" in result["said"]


def test_the_last_validation_is_what_is_evaluated_after_fit(cluster):
    skip = {**programs.SLEEPY, "on_stale": "skip", "probe": 2}
    policies = [None, programs.SLEEPY, skip, "conservative", "balanced", "aggressive"]
    found = run(cluster, "validation", rule="Adam", steps=150, policies=policies)["found"]
    for policy, one in zip(policies, found, strict=True):
        assert one["validated"].keys() == {"loss", "auc"}
        assert one["validated"] == one["evaluated"], policy
        assert (one["num_stale"] > 0) == (policy is not None), policy


def test_callbacks_watch_what_sleeps_and_whether_the_model_gets_worse(cluster, tmp_path):
    log_dir = str(tmp_path / "logs")
    settings = {"policy": programs.SLEEPY, "watched": True, "log_dir": log_dir}
    result = run(cluster, "fit", rule="Adagrad", rate=0.5, **settings)
    assert [one["reason"] for one in result["decisions"]][-1] == "metric"
    assert {one["epoch"] for one in result["decisions"]} == {0, 1}
    assert result["decisions"][-1]["step"] == 100
    # Two within each epoch and one at its end; steps are those done, not those sent.
    records = result["records"]
    assert records == sorted(records) and 50 in records and records[-1] == 100
    latest, page = result["monitored"]
    assert latest["step"] == 100 and latest["rows"] == programs.NUM_ROWS
    assert latest["deferred_lookups_share"] > 0 and latest["rows_popular"] > 0
    assert 0 < latest["cache_hit_rate"] < 1
    assert 'slipstream_cache_hit_rate{table="item"}' in page
    assert list(pathlib.Path(log_dir).iterdir())


def test_what_is_exported_has_stock_ops_alone(cluster, tmp_path):
    folder = str(tmp_path / "model")
    settings = {"policy": programs.SLEEPY, "epochs": 1, "export": folder}
    run(cluster, "fit", rule="Adam", **settings)
    expected = np.load(folder + ".npz")
    loaded = tf.saved_model.load(folder)
    clicks = loaded.serve(expected["ids"])
    np.testing.assert_allclose(clicks, expected["clicks"], rtol=1e-6)
    assert b"Slipstream" not in pathlib.Path(folder, "saved_model.pb").read_bytes()


def test_fit_without_built_optimizer_trains_all_the_same(cluster):
    result = run(cluster, "fit", rule="Adam", rate=0.1, policy=programs.SLEEPY, build=False)
    assert result["iterations"] == 100
    assert result["stats"]["num_lookups"] > 0
    assert result["history"]["loss"][1] < result["history"]["loss"][0]


def test_keras_3_divides_a_large_table_and_draws_each_shard_anew(cluster):
    if not _compat.IS_KERAS_3:
        pytest.skip("tf_keras has the strategy's partitioner")
    result = run(cluster, "large_table")
    assert result["shapes"] == [[60000, 8]] * 2
    assert sorted(device.split("/")[3] for device in result["devices"]) == ["task:0", "task:1"]
    assert result["num_equal_rows"] == 0
    assert result["num_wrong"] == 0
    assert result["saves_whole_table"]


@pytest.mark.skipif(not _compat.IS_KERAS_3, reason="tf_keras's fit has no checkpoints of ours")
def test_another_number_of_servers_takes_the_weights_and_refuses_the_checkpoint(
    cluster, forks, tmp_path
):
    settings = {"folder": str(tmp_path), "policy": programs.SLEEPY}
    saved = run(cluster, "saving", way="save_weights", **settings)
    assert saved["num_shards"] == 2 and saved["said"] == ""
    with clusters.Cluster(forks, tmp_path, 1, 1) as other:
        loaded = run(other, "saving", way="load_weights", **settings)
    assert loaded["num_shards"] == 1 and loaded["iterations"] == saved["iterations"] == 3
    assert "as many parameter servers and workers as the run had that wrote it" in loaded["said"]
    assert loaded["rows"] == saved["rows"]
    assert any("Skipping variable loading for optimizer" in said for said in loaded["warned"])


@pytest.mark.parametrize("rule", ["SGD", "Adam"])
def test_one_worker_trains_as_one_machine_does(forks, tmp_path, rule):
    with clusters.Cluster(forks, tmp_path, num_workers=1) as cluster:
        policy = {**programs.SLEEPY, "threshold": 3.0, "refresh_every": 0}
        result = run(cluster, "train_alone", steps=60, rule=rule, policy=policy)
    stats, alone = result["stats"], result["stats_alone"]
    assert {name: stats[name] for name in alone} == alone
    assert stats["num_deferred_row_updates"] > 0 and stats["num_cached_rows"] > 0
    assert result["largest_difference"] == 0


def test_a_server_without_the_ops_is_named_with_what_to_start(forks, tmp_path):
    program = PROGRAMS.parent / "plain_server.py"
    with clusters.Cluster(forks, tmp_path, 1, 1, program=str(program)) as cluster:
        coordinator = clusters.Coordinator(cluster, PROGRAMS, "sums", json.dumps({"seconds": 0}))
        try:
            assert coordinator.process.wait(60) == 1
        finally:
            coordinator.close()
    assert "python -m tf_slipstream.server" in coordinator.log()
    assert "worker:0" in coordinator.log() or "ps:0" in coordinator.log()
