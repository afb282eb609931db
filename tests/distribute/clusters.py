"""Workers, parameter servers and coordinators as real processes of this machine."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
_START_SECONDS = 120


def free_ports(num):
    """Returns ports that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]


def check_free(port):
    """Raises an `OSError` if somebody listens at a port."""
    with socket.socket() as one:
        one.bind(("localhost", port))


def environment(**more):
    """Returns the environment of a small, quiet process of a cluster."""
    few = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "2"}
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **few, **quiet, "PYTHONPATH": str(ROOT), **more}


class Forks:
    """Starts processes by forking one that has imported TensorFlow; all end with the `with` block.

    Args:
        folder: Of its own files.
    """

    def __init__(self, folder):
        self._folder = pathlib.Path(folder)
        self._source = subprocess.Popen(
            [sys.executable, str(pathlib.Path(__file__).parent / "forks.py")],
            env=environment(FORKS_FOLDER=str(self._folder)),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        # Its children get a SIGKILL when it ends.
        self._source.kill()
        self._source.wait(timeout=30)

    def start(self, argv, log, machine=None, **environ):
        """Runs a Python file or module, `argv[0]`; returns its `Process`.

        `machine`: a file that stands for a machine of a box.
        """
        task = {"argv": list(map(str, argv)), "environ": environ, "log": str(log)}
        task["machine"] = machine
        print(json.dumps(task), file=self._source.stdin, flush=True)
        return Process(int(self._source.stdout.readline()), self._folder)


class Process:
    """A process that `Forks` started."""

    def __init__(self, pid, folder):
        self.pid = pid
        self._code = folder / f"{pid}.code"

    def poll(self):
        """Returns its exit code, or None while it runs."""
        if not self._code.exists():
            return None
        text = self._code.read_text()
        return int(text) if text else None

    def wait(self, timeout):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"process {self.pid} has not ended in {timeout} s")
            time.sleep(0.02)
        return self.poll()

    def kill(self):
        """Ends it at once, as a machine that fails does."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self.wait(timeout=30)


class Cluster:
    """Servers that live until the `with` block ends.

    Args:
        forks: `Forks`.
        folder: Where their output goes, a file each.
        num_workers: Positive integer.
        num_servers: Positive integer, of parameter servers.
        program: What a task runs, with `--cluster` and `--task`.
        box: `network.Box` of benchmarks/distribution with a machine for each task, named "worker0",
            "ps0" and so on, and "chief" for coordinators; None: all are on this one.
    """

    def __init__(
        self,
        forks,
        folder,
        num_workers=2,
        num_servers=2,
        program="tf_slipstream.server",
        box=None,
    ):
        self._forks, self._folder, self._program = forks, pathlib.Path(folder), program
        self._box = box
        self.environ = {}
        if box is not None:
            # Beside what waits for a link that is cut, others must go on.
            self.environ = {"TF_NUM_INTEROP_THREADS": "8", "TF_SLIPSTREAM_LOST_AFTER": "16"}
        if box is None:
            addresses = [f"localhost:{port}" for port in free_ports(num_workers + num_servers)]
        else:
            tasks = [f"worker{i}" for i in range(num_workers)]
            tasks += [f"ps{i}" for i in range(num_servers)]
            addresses = [f"{box.address(task)}:4000" for task in tasks]
        self.addresses = {"worker": addresses[:num_workers], "ps": addresses[num_workers:]}
        self._processes = {}

    def __enter__(self):
        try:
            tasks = [(job, i) for job, all in self.addresses.items() for i in range(len(all))]
            for job, index in tasks:
                self.start(job, index)
            for job, index in tasks:
                self.wait_until_up(job, index)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error):
        self.close()

    def start(self, job, index):
        """Starts a task, in place of one that is gone."""
        argv = [self._program, "--cluster", json.dumps(self.addresses), "--task", f"{job}:{index}"]
        log = self._folder / f"{job}{index}.log"
        machine = self._box and self._box.path(f"{job}{index}")
        self._processes[job, index] = self._forks.start(argv, log, machine, **self.environ)

    def wait_until_up(self, job, index):
        host, port = self.addresses[job][index].split(":")
        deadline = time.monotonic() + _START_SECONDS

        def connect():
            socket.create_connection((host, int(port)), timeout=1).close()

        while True:
            try:
                return connect() if self._box is None else self._box.call("chief", connect)
            except OSError:
                ended = self._processes[job, index].poll() is not None
                if ended or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"{job}:{index} did not start: {self.log(job, index)}"
                    ) from None
                time.sleep(0.1)

    def pid(self, job, index):
        return self._processes[job, index].pid

    def kill(self, job, index):
        self._processes[job, index].kill()

    def log(self, job, index):
        return (self._folder / f"{job}{index}.log").read_text()

    def close(self):
        for process in self._processes.values():
            process.kill()

    def run(self, *argv, timeout=300):
        """Runs a program to its end, and returns the JSON object in its last line."""
        return Coordinator(self, *argv).result(timeout)

    def config(self):
        """Returns TF_CONFIG for a coordinator."""
        host = "localhost" if self._box is None else self._box.address("chief")
        return json.dumps(
            {
                "cluster": {**self.addresses, "chief": [f"{host}:{free_ports(1)[0]}"]},
                "task": {"type": "chief", "index": 0},
            }
        )


class Coordinator:
    """A program that trains on a cluster.

    Args:
        cluster: `Cluster`.
        program: Path of a Python file.
        *arguments: Its command line.
    """

    def __init__(self, cluster, program, *arguments):
        self._log = cluster._folder / f"coordinator{time.monotonic_ns()}.log"
        self.process = cluster._forks.start(
            [program, *arguments],
            self._log,
            cluster._box and cluster._box.path("chief"),
            TF_CONFIG=cluster.config(),
            **cluster.environ,
        )

    def log(self):
        return self._log.read_text() if self._log.exists() else ""

    def wait_for(self, text, timeout):
        """Waits until the program has printed `text`."""
        deadline = time.monotonic() + timeout
        while text not in self.log():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no {text!r} in: {self.log()[-4000:]}")
            time.sleep(0.05)

    def result(self, timeout):
        """Waits for its end, and returns the JSON object in its last line."""
        try:
            code = self.process.wait(timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.log()[-4000:]}") from None
        finally:
            self.close()
        assert code == 0, self.log()[-6000:]
        return json.loads(self.log().strip().splitlines()[-1])

    def close(self):
        self.process.kill()
