"""Checks training by several workers, real processes that talk over the loopback."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

from tests.distribute.replicas import alone, batches
from tests.policy.training import policies

ROOT = pathlib.Path(__file__).parents[2]
NUM_WORKERS, NUM_STEPS = 2, 60
# A worker that waits for one that is gone would wait for long.
MAX_SECONDS = 300


def free_port(num=1):
    """Returns a port after which, too, nobody listens at so many ports in all."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind(("localhost", 0))
            port = first.getsockname()[1]
            try:
                for i in range(1, num):
                    stack.enter_context(socket.socket()).bind(("localhost", port + i))
            except OSError:
                continue
            return port


def environment(**more):
    # Few threads: the processes share the machine's cores.
    few = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "2"}
    return os.environ | few | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)} | more


def test_workers_train_as_one_device_does_and_go_on_from_a_checkpoint(tmp_path):
    port = free_port(NUM_WORKERS)
    addresses = [f"localhost:{port + i}" for i in range(NUM_WORKERS)]
    workers = []
    try:
        for task in range(NUM_WORKERS):
            cluster = {"worker": addresses}
            config = {"cluster": cluster, "task": {"type": "worker", "index": task}}
            command = [sys.executable, "-m", "tests.distribute.multi_worker_program"]
            log = open(tmp_path / f"log{task}", "w")
            with log:
                workers.append(
                    subprocess.Popen(
                        [*command, str(tmp_path), str(task), str(NUM_STEPS)],
                        env=environment(TF_CONFIG=json.dumps(config)),
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        cwd=ROOT,
                    )
                )
        for task, worker in enumerate(workers):
            code = worker.wait(timeout=MAX_SECONDS)
            assert code == 0, (tmp_path / f"log{task}").read_text()[-4000:]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()

    # The chief alone writes what the monitor of each has read.
    assert [(tmp_path / f"logs{task}").exists() for task in range(NUM_WORKERS)] == [True, False]
    single = alone("adam", policies(threshold=1e9, refresh_every=37))
    for batch in batches(NUM_WORKERS, NUM_STEPS):
        single.step(batch.ids, batch.grads)
    assert single.optimizer.skip_stats()["user"].num_deferred_lookups > NUM_STEPS
    single.optimizer.wake_all()
    for name, expected in single.arrays().items():
        for kind in ("trained", "restored"):
            for task in range(NUM_WORKERS):
                actual = np.load(tmp_path / f"{kind}{task}.npz")[name]
                np.testing.assert_array_equal(actual, expected, err_msg=f"{kind} {name}")


def test_the_example_trains_and_stops_all_of_its_workers(tmp_path):
    port = free_port(NUM_WORKERS)
    done = subprocess.run(
        ["sh", str(ROOT / "examples" / "multi_worker.sh"), "--steps", "60", "--rows", "500"]
        + ["--save", str(tmp_path / "model.keras")],
        env=environment(PYTHON=sys.executable, PORT=str(port), WORKERS=str(NUM_WORKERS)),
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert sorted(report.pop("worker") for report in reports) == list(range(NUM_WORKERS))
    first, second = reports
    assert first["table"] == second["table"], "the workers' tables differ"
    assert first["lookups"] == second["lookups"] == NUM_WORKERS * 60 * 512
    assert first["deferred"] > 0
    assert 0 < first["loss"] < 0.7
    assert (tmp_path / "model.keras").exists()
    assert f"{NUM_WORKERS} workers are done" in done.stdout


def test_the_example_stops_the_others_when_a_worker_fails():
    done = subprocess.run(
        ["sh", str(ROOT / "examples" / "multi_worker.sh"), "--rows", "none"],
        env=environment(PYTHON=sys.executable, PORT=str(free_port(NUM_WORKERS))),
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS,
    )
    assert done.returncode == 1
    assert "invalid int value" in done.stderr
    assert "are done" not in done.stdout
