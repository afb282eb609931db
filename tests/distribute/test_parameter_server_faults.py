"""Processes that end when they should not."""

import json
import pathlib

import pytest

from tests.distribute import clusters, programs
from tf_slipstream import _compat

PROGRAMS = pathlib.Path(programs.__file__)
SECONDS = 300


@pytest.fixture
def start(cluster):
    """Starts programs that end with the test, whatever becomes of it."""
    started = []

    def start(name, **settings):
        started.append(clusters.Coordinator(cluster, PROGRAMS, name, json.dumps(settings)))
        return started[-1]

    yield start
    for one in started:
        one.close()


def end(cluster, run, job):
    """Kills a run's coordinator, or a parameter server under it, which is then started again."""
    if job == "coordinator":
        run.close()
        return
    cluster.kill("ps", 1)
    assert run.process.wait(SECONDS) == 1
    cluster.start("ps", 1)
    cluster.wait_until_up("ps", 1)


def test_a_killed_worker_costs_no_step_and_may_come_back(cluster, start):
    settings = {"rule": "Adagrad", "policy": programs.SLEEPY, "epochs": 1000, "steps": 150}
    run = start("fit", **settings, until_replaced=1, no_validation=True)
    run.wait_for("epoch 0 done", SECONDS)
    cluster.kill("worker", 1)
    run.wait_for("epoch 2 done", SECONDS)
    cluster.start("worker", 1)
    result = run.result(SECONDS)
    num_epochs = result["num_epochs"]
    assert 3 < num_epochs < 1000
    # The step that it was in the middle of is done again, and may have been counted by then.
    assert 150 * num_epochs <= result["iterations"] <= 150 * num_epochs + 1
    stats = result["stats"]
    assert stats["num_held_batches"] == 0
    # Its place was taken by a process that holds nothing of what it held.
    assert result["pulled_by"][1] > 0


def test_what_a_killed_worker_held_is_counted(cluster, start):
    policy = {**programs.SLEEPY, "max_sleep": 64}
    run = start("sums", seconds=0, loses_a_worker=True, policy=policy)
    run.wait_for("all hold something", SECONDS)
    cluster.kill("worker", 1)
    cluster.start("worker", 1)
    cluster.wait_until_up("worker", 1)
    result = run.result(SECONDS)
    lost = result["after"]["num_lost_batches"]
    assert 0 < lost < 1000 * 64
    assert result["after"]["num_held_batches"] == 0
    # One batch may have been sent and done again; each held one is of 1 to 200 lookups of a row.
    assert -200 <= result["missing"] <= 200 * lost
    assert result["steps"] <= result["iterations"] <= result["steps"] + 1


@pytest.mark.skipif(not _compat.IS_KERAS_3, reason="tf_keras's fit has no checkpoints of ours")
@pytest.mark.parametrize("job", ["ps", "coordinator"])
def test_a_restart_goes_on_from_the_last_checkpoint(cluster, start, tmp_path, job):
    settings = {"rule": "Adagrad", "policy": programs.SLEEPY, "folder": str(tmp_path), "every": 20}
    settings |= {"epochs": 200, "steps": 60, "no_validation": True}
    run = start("fit", **settings)
    run.wait_for("epoch 1 done", SECONDS)
    end(cluster, run, job)
    if job == "ps":
        assert "A parameter server does not answer" in run.log(), run.log()
    # A save in the middle of which the server ended has left no trace here.
    done = max(int(path.stem.split("-")[1]) for path in tmp_path.glob("ckpt-*.index"))
    assert done >= 120
    settings["epochs"] = done // 60 + 2
    result = start("fit", **settings).result(SECONDS)
    assert result["iterations"] == 60 * settings["epochs"]
    assert result["num_batches"] == 60 * settings["epochs"] - done
    assert result["stats"]["num_lookups"] == result["iterations"] * 64 * 3


@pytest.mark.skipif(_compat.IS_KERAS_3, reason="Keras 3's `fit` does not know parameter servers")
@pytest.mark.parametrize("job", ["ps", "coordinator"])
def test_fit_goes_on_from_tf_keras_backups(cluster, start, tmp_path, job):
    settings = {"rule": "Adagrad", "policy": programs.SLEEPY, "folder": str(tmp_path)}
    settings |= {"epochs": 200, "steps": 60, "no_validation": True}
    run = start("fit", **settings)
    run.wait_for("epoch 2 done", SECONDS)
    end(cluster, run, job)
    num_done = run.log().count(" done ")
    result = start("fit", **{**settings, "epochs": num_done + 3}).result(SECONDS)
    # The last epoch may have been saved or not.
    assert result["num_epochs"] in (3, 4)
    assert result["iterations"] == 60 * (num_done + 3)
    # What workers held when it was saved was saved as well.
    stats = result["stats"]
    assert stats["num_lookups"] == result["iterations"] * 64 * 3
    assert stats["num_held_batches"] == stats["num_lost_batches"] == 0


def test_workers_are_flushed_when_a_run_ends(cluster, start):
    result = start("sums", seconds=0, policy=programs.SLEEPY).result(SECONDS)
    assert result["before"]["num_held_batches"] > 0
    assert result["after"]["num_held_batches"] == 0
    assert result["num_wrong"] == 0
