"""Links that fail or are slow, where each process has a machine of its own in a box."""

import json
import time

import pytest

from tests.benchmarks.programs import ROOT
from tests.distribute import clusters, programs
from tf_slipstream import _compat

from distribution import network  # isort: skip (tests.benchmarks puts its folder on the path)

PROGRAMS = ROOT / "tests" / "distribute" / "programs.py"
MACHINES = ["worker0", "worker1", "ps0", "ps1", "chief"]
CUT_SECONDS = 9
SECONDS = 60


@pytest.fixture(scope="module")
def box():
    if reason := network.why_not():
        pytest.skip(reason)
    with network.Box(MACHINES, gigabits=1) as box:
        yield box


@pytest.fixture(scope="module")
def boxed(forks, box, tmp_path_factory):
    with clusters.Cluster(forks, tmp_path_factory.mktemp("boxed"), box=box) as cluster:
        yield cluster


class Run:
    """A coordinator that adds up gradients until it is told to end."""

    def __init__(self, cluster, until):
        self._until = until
        # Rows of 1 KiB: a step has some hundred.
        settings = {"until": str(until), "dim": 256, "policy": programs.SLEEPY}
        self.coordinator = clusters.Coordinator(cluster, PROGRAMS, "steady", json.dumps(settings))

    def rows_of_workers(self):
        """Returns how many rows each worker has looked up."""
        lines = [
            line for line in self.coordinator.log().split("\n")[:-1] if line.startswith("done")
        ]
        return json.loads(lines[-1][len("done ") :]) if lines else [0, 0]

    def wait_until(self, worker, num_rows):
        """Waits until a worker has looked up so many rows since now."""
        first, end = self.rows_of_workers()[worker], time.monotonic() + SECONDS
        while self.rows_of_workers()[worker] < first + num_rows:
            assert time.monotonic() < end, self.coordinator.log()[-2000:]
            time.sleep(0.05)

    def result(self):
        self._until.touch()
        return self.coordinator.result(SECONDS)


@pytest.fixture
def run(boxed, tmp_path):
    run = Run(boxed, tmp_path / "end")
    yield run
    run.coordinator.close()


def test_a_link_that_is_cut_and_then_slow_loses_no_update(box, run):
    def wait_for_both():
        for worker in (0, 1):
            run.wait_until(worker, 1)

    wait_for_both()
    box.links.cut("worker1")
    try:
        # The other goes on, once what was under way has ended.
        time.sleep(1)
        num_rows = run.rows_of_workers()
        time.sleep(CUT_SECONDS)
        run.wait_until(0, 1)
        assert run.rows_of_workers()[1] == num_rows[1]
    finally:
        box.links.mend("worker1")
    wait_for_both()
    # Then a link of 1 Mbit/s, which takes half a second for a step.
    box.links.shape(0.001, "worker1")
    try:
        wait_for_both()
    finally:
        box.links.shape(1, "worker1")
    result = run.result()
    # A step may be done again whose answer was lost.
    assert result["steps"] <= result["iterations"] <= result["steps"] + 1
    if result["iterations"] == result["steps"]:
        assert result["num_wrong"] == 0
    assert result["stats"]["num_lost_batches"] == 0


def test_a_worker_whose_link_is_cut_for_good_holds_nobody(box, run):
    for worker in (0, 1):
        run.wait_until(worker, 1)
    box.links.cut("worker1")
    try:
        time.sleep(1)
        result = run.result()
    finally:
        box.links.mend("worker1")
    # The step that it was doing is done by the other, and may have been done.
    assert result["steps"] <= result["iterations"] <= result["steps"] + 1
    # What it holds is told.
    assert result["stats"]["num_held_batches"] + result["stats"]["num_lost_batches"] > 0


@pytest.mark.skipif(not _compat.IS_KERAS_3, reason="tf_keras's fit has no checkpoints of ours")
def test_fit_goes_on_and_saves_without_a_worker_whose_link_is_cut(box, boxed, tmp_path):
    settings = {"rule": "Adagrad", "policy": programs.SLEEPY, "folder": str(tmp_path)}
    settings |= {"epochs": 10_000, "steps": 60, "no_validation": True}
    fit = clusters.Coordinator(boxed, PROGRAMS, "fit", json.dumps(settings))
    try:
        fit.wait_for("epoch 1 done", SECONDS)
        box.links.cut("worker1")
        num_done = fit.log().count(" done")
        fit.wait_for(f"epoch {num_done + 2} done", 2 * SECONDS)
        assert (tmp_path / f"ckpt-{60 * (num_done + 2)}.index").exists()
    finally:
        box.links.mend("worker1")
        fit.close()
