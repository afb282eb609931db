"""A cluster in a box trains for half an hour, and something fails every 20 s.

    python -m tests.reliability.soak [--minutes 30] [--folder results/soak]

Two workers, two parameter servers and a coordinator have a machine each, on links of 1 Gbit/s. A
fault is drawn at random: a process is killed and started again, a link is cut or slow for some
seconds, the disk of the checkpoints is full. Training has to go on, or to stop with one clear error
and then to go on from the last checkpoint. Afterwards the same training runs undisturbed, and both
results are printed. Needs root, for network namespaces and a disk of its own; Keras 3.
"""

import argparse
import contextlib
import ctypes
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from tests.benchmarks.programs import ROOT
from tests.distribute import clusters

from distribution import network  # isort: skip (tests.benchmarks puts its folder on the path)

PROGRAM = pathlib.Path(__file__).with_name("soaked_program.py")
EVERY_SECONDS = 20
SECONDS_PER_STEP = 0.03
STEPS_PER_EPOCH = 200
DISK_BYTES = 64 << 20
_CLONE_NEWNS = 0x20000
# How long a coordinator may take to notice that it cannot go on, or to come to its first epoch.
MOST_SECONDS = 240
# What it may say when it ends, by fault.
SERVER_IS_GONE = "A parameter server does not answer"
DISK_IS_FULL = "could not be written"


class Soak:
    """A run on a cluster that is disturbed.

    Args:
        cluster: `clusters.Cluster` in a box.
        links: The box's `Links`.
        folder: Of the checkpoints, on a disk of its own.
        settings: Dict for the program.
        rng: `random.Random`.
    """

    def __init__(self, cluster, links, folder, settings, rng):
        self._cluster, self._links, self._folder, self._rng = cluster, links, folder, rng
        self._settings = settings | {"folder": str(folder / "checkpoints")}
        self._faults = {
            "kill a worker": self._kill_worker,
            "kill a server": self._kill_server,
            "kill the coordinator": self._kill_coordinator,
            "cut a link": self._cut,
            "slow a link": self._slow,
            "fill the disk": self._fill,
        }
        self.lines = []
        self._start()

    def run(self, seconds):
        """Disturbs the program for some seconds, lets it end, and returns what it printed."""
        deadline = time.monotonic() + seconds
        while not self._has_ended(EVERY_SECONDS) and time.monotonic() < deadline:
            name = self._rng.choice([*self._faults])
            begin = time.monotonic()
            line = {"fault": name, "outcome": self._faults[name]()}
            line["seconds"] = round(time.monotonic() - begin, 1)
            self.lines.append(line)
            print(json.dumps(line), flush=True)
        pathlib.Path(self._settings["until"]).touch()
        return self._run.result(MOST_SECONDS)

    def _start(self):
        self._run = clusters.Coordinator(self._cluster, PROGRAM, json.dumps(self._settings))

    def _has_ended(self, seconds):
        """Waits some seconds for its end; it must be a good one."""
        end = time.monotonic() + seconds
        while self._run.process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        code = self._run.process.poll()
        assert code in (None, 0), self._run.log()[-4000:]
        return code == 0

    def _kill_worker(self):
        index = self._rng.randrange(2)
        self._cluster.kill("worker", index)
        time.sleep(self._rng.uniform(0, 5))
        self._restart("worker", index)
        return "goes on"

    def _kill_server(self):
        """It comes back before the coordinator has noticed, or after."""
        index, is_quick = self._rng.randrange(2), self._rng.random() < 0.5
        self._cluster.kill("ps", index)
        if is_quick:
            self._restart("ps", index)
        said = self._end_of_run(SERVER_IS_GONE)
        if not is_quick:
            self._restart("ps", index)
        self._start()
        return f"stops: {said}"

    def _kill_coordinator(self):
        self._run.close()
        self._start()
        return "killed"

    def _cut(self):
        name = self._rng.choice([*self._links.machines])
        self._links.cut(name)
        try:
            time.sleep(self._rng.uniform(2, 8))
        finally:
            self._links.mend(name)
        return f"goes on, {name}"

    def _slow(self):
        name = self._rng.choice([*self._links.machines])
        self._links.shape(0.01, name)
        try:
            time.sleep(10)
        finally:
            self._links.shape(1, name)
        return f"goes on, {name}"

    def _fill(self):
        """Until a checkpoint has failed."""
        path = self._folder / "filling"
        with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        try:
            said = self._end_of_run(DISK_IS_FULL)
        finally:
            path.unlink()
        self._start()
        return f"stops: {said}"

    def _restart(self, job, index):
        self._cluster.start(job, index)
        self._cluster.wait_until_up(job, index)

    def _end_of_run(self, expected):
        code = self._run.process.wait(MOST_SECONDS)
        if code == 0:
            return "it had come to its end"
        said = [line for line in self._run.log().splitlines() if expected in line]
        assert said, self._run.log()[-4000:]
        return said[-1][:200]


def disk(num_bytes):
    """Returns a folder that is a small disk, for this process and those that it starts."""
    libc, folder = ctypes.CDLL(None, use_errno=True), tempfile.mkdtemp()
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "no namespace of mounts can be made: run as root")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    options = ["-t", "tmpfs", "-o", f"size={num_bytes}", "soak", folder]
    subprocess.run(["mount", *options], check=True)
    return pathlib.Path(folder)


def soak(folder, minutes, seed):
    """Returns what each fault came to, and the results of both runs."""
    machines = ["worker0", "worker1", "ps0", "ps1", "chief"]
    settings = {"steps": STEPS_PER_EPOCH, "epochs": 10**6, "until": str(folder / "end")}
    settings |= {"seconds_per_step": SECONDS_PER_STEP}
    with contextlib.ExitStack() as stack:
        checkpoints = disk(DISK_BYTES)  # before there are processes to see it
        forks = stack.enter_context(clusters.Forks(tempfile.mkdtemp(dir=folder)))
        box = stack.enter_context(network.Box(machines, gigabits=1))
        cluster = stack.enter_context(clusters.Cluster(forks, folder, box=box))
        run = Soak(cluster, box.links, checkpoints, settings, random.Random(seed))
        disturbed = run.run(60 * minutes)
        settings |= {"epochs": disturbed["steps"] // STEPS_PER_EPOCH, "until": ""}
        settings |= {"seconds_per_step": 0.0, "folder": str(folder / "quiet")}
        quiet = clusters.Coordinator(cluster, PROGRAM, json.dumps(settings)).result(3600)
    return run.lines, disturbed, quiet


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "results" / "soak")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if reason := network.why_not():
        sys.exit(reason)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(dir=arguments.folder))
    lines, disturbed, quiet = soak(folder, arguments.minutes, arguments.seed)
    for name in sorted({line["fault"] for line in lines}):
        own = [line for line in lines if line["fault"] == name]
        slowest = max(line["seconds"] for line in own)
        print(f"{name}: {len(own)} times, at most {slowest:.0f} s")
    print("disturbed:", json.dumps(disturbed))
    print("quiet:", json.dumps(quiet))


if __name__ == "__main__":
    main()
