"""Workers of `MultiWorkerMirroredStrategy` of which one is lost: the other ends, and both go on."""

import json
import time

import numpy as np
import pytest

from tests.benchmarks import programs  # noqa: F401
from tests.distribute import clusters, lost_worker_program
from tests.distribute.replicas import alone, batches
from tests.policy.training import policies

from distribution import network  # isort: skip (tests.benchmarks puts its folder on the path)

NUM_WORKERS, NUM_STEPS, KILLED_AFTER = 2, 60, 35
# TensorFlow's tasks ask each other for signs of life, and wait 10 s for one.
LOST_SECONDS = 30
CUT_SECONDS = 3
SECONDS = 120


class Workers:
    """Starts the program on all workers; they end with the `with` block.

    Args:
        forks: `clusters.Forks`.
        folder: Where they write.
        num_steps: Of the whole training.
        killed: Dict from a worker to the step after which it kills itself.
        box: `network.Box` with a machine for each; None: all are on this one.
    """

    def __init__(self, forks, folder, num_steps, killed=None, box=None):
        if box is None:
            addresses = [f"localhost:{port}" for port in clusters.free_ports(NUM_WORKERS)]
        else:
            addresses = [f"{box.address(name)}:4000" for name in box.links.machines]
        self._logs, self.processes = [], []
        for task in range(NUM_WORKERS):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": task}}
            step = (killed or {}).get(task, 0)
            self._logs.append(folder / f"log{task}.{time.monotonic_ns()}")
            self.processes.append(
                forks.start(
                    [lost_worker_program.__name__, folder, task, num_steps, step],
                    self._logs[-1],
                    box and box.path(f"worker{task}"),
                    TF_CONFIG=json.dumps(config),
                )
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()

    def log(self, task):
        return self._logs[task].read_text() if self._logs[task].exists() else ""

    def wait_for(self, task, text):
        end = time.monotonic() + SECONDS
        while text not in self.log(task):
            assert self.processes[task].poll() is None, self.log(task)[-4000:]
            assert time.monotonic() < end, self.log(task)[-4000:]
            time.sleep(0.05)


@pytest.mark.parametrize("lost", [1, 0], ids=["worker", "chief"])
def test_the_other_ends_and_both_go_on_to_the_same_bits(forks, tmp_path, lost):
    survivor = 1 - lost
    with Workers(forks, tmp_path, NUM_STEPS, {lost: KILLED_AFTER}) as workers:
        workers.processes[lost].wait(SECONDS)
        assert workers.processes[survivor].wait(LOST_SECONDS) == 1
        error = workers.log(survivor)
    assert "UnavailableError" in error
    assert f"/job:worker/replica:0/task:{lost}" in error
    last = KILLED_AFTER // lost_worker_program.EVERY * lost_worker_program.EVERY
    with Workers(forks, tmp_path, NUM_STEPS) as workers:
        for task, process in enumerate(workers.processes):
            assert process.wait(SECONDS) == 0, workers.log(task)[-4000:]
            assert f"goes on from step {last}\n" in workers.log(task)
    single = alone("adam", policies(threshold=1e9, refresh_every=37))
    for batch in batches(NUM_WORKERS, NUM_STEPS):
        single.step(batch.ids, batch.grads)
    single.optimizer.wake_all()
    for name, expected in single.arrays().items():
        for task in range(NUM_WORKERS):
            actual = np.load(tmp_path / f"trained{task}.npz")[name]
            np.testing.assert_array_equal(actual, expected, err_msg=name)


def test_a_link_may_be_cut_for_seconds_and_for_good_ends_both(forks, tmp_path):
    if reason := network.why_not():
        pytest.skip(reason)
    names = [f"worker{task}" for task in range(NUM_WORKERS)]
    with (
        network.Box(names, gigabits=1) as box,
        Workers(forks, tmp_path, 1_000_000, box=box) as workers,
    ):
        workers.wait_for(0, "step 10 is saved")
        box.links.cut("worker1")
        time.sleep(CUT_SECONDS)
        num_saved = workers.log(0).count("saved")
        box.links.mend("worker1")
        workers.wait_for(0, f"step {10 * (num_saved + 2)} is saved")
        box.links.cut("worker1")
        for process in workers.processes:
            assert process.wait(LOST_SECONDS) == 1
        # The first hears of signs of life that stopped, the other gets no answer to its own.
        assert "UnavailableError" in workers.log(0)
        assert "/job:worker/replica:0/task:1" in workers.log(0)
        assert "DeadlineExceededError" in workers.log(1) or "UnavailableError" in workers.log(1)
