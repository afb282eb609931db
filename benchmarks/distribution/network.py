"""A cluster in a box: machines of one's own, joined by links of a chosen speed.

    python benchmarks/distribution/network.py

measures the links. Each machine is a network namespace of Linux. A link is a pair of virtual
interfaces that leads to a bridge; both of its directions are shaped, as those of a network card
are. Nothing outside is touched: the bridge has a namespace of its own too. No namespace has a name,
so that all of them end with this process and those that it started, however it ends.
"""

import ctypes
import dataclasses
import functools
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET, _PR_SET_PDEATHSIG = 0x40000000, 1
_COMMAND_SECONDS = 20
_PORT = "port"  # of the bridge; the machine's number follows
PAYLOAD = 0.95  # of what a link carries, by `main`; the rest are headers
_PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")


@functools.cache
def why_not():
    """Returns why this system lets nobody build a box, a sentence, or nothing if it does."""
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} of iproute2 cannot be found."
    try:
        with Box(["one"], gigabits=1):
            return ""
    except OSError as error:
        return f"Network namespaces cannot be made here ({error}): run as root, with tbf and veth."


class Box:
    """Machines that are joined by a bridge; they last until the `with` block ends.

    Args:
        names: Of the machines, at most 250.
        gigabits: Gbit/s of each machine's link in each direction; None: as fast as it goes.

    Attributes:
        links: Their `Links`.

    Raises:
        OSError: If the system does not allow it, or its kernel cannot do it.
    """

    def __init__(self, names, gigabits):
        self._names, self._processes, self._files = list(names), [], []
        try:
            hub, *machines = (self._new_namespace() for _ in range(1 + len(self._names)))
            self.links = Links(hub, dict(zip(self._names, machines, strict=True)))
            self._join()
            self.links.shape(gigabits)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait(timeout=30)
        while self._files:
            os.close(self._files.pop())

    def address(self, name):
        """Returns a machine's address, as the others know it."""
        return f"10.87.0.{1 + self._names.index(name)}"

    def path(self, name):
        """Returns a file that stands for a machine, for `enter` in any process."""
        return self.links.machines[name]

    def popen(self, name, command, **options):
        """Starts a program on a machine; it ends with the `with` block, or with this process."""
        path, parent = self.path(name), os.getpid()

        def prepare():
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            enter(path)
            if os.getppid() != parent:
                os._exit(1)

        environment = _without_proxies(options.pop("env", os.environ))
        process = subprocess.Popen(command, env=environment, preexec_fn=prepare, **options)
        self._processes.append(process)
        return process

    def call(self, name, function):
        """Calls a function on a machine, in a thread; returns what it returns."""
        return call_in(self.path(name), function)

    def _join(self):
        lines = ["link add hub type bridge", "link set hub up"]
        for number, name in enumerate(self._names):
            port = f"{_PORT}{number}"
            lines += [
                f"link add {port} type veth peer name eth0 netns {self.path(name)}",
                f"link set {port} master hub up",
            ]
        _run(self.links.hub, "ip", lines)
        for name in self._names:
            address = f"address add {self.address(name)}/24 dev eth0"
            _run(self.path(name), "ip", ["link set lo up", address, "link set eth0 up"])

    def _new_namespace(self):
        def make():
            _check(_LIBC.unshare(_CLONE_NEWNET))
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY)

        self._files.append(_in_thread(make))
        return f"/proc/{os.getpid()}/fd/{self._files[-1]}"


@dataclasses.dataclass
class Links:
    """What joins the machines of a box, for any process that may know of it.

    Attributes:
        hub: A file that stands for the namespace of the bridge.
        machines: Dict from a machine's name to a file that stands for it.
    """

    hub: str
    machines: dict

    def shape(self, gigabits, *names):
        """Sets the speed of some machines' links, or of all, in each direction.

        Args:
            gigabits: Gbit/s; None: as fast as it goes.
            *names: Of the machines.
        """
        names = names or list(self.machines)
        _shape(self.hub, [self._port(name) for name in names], gigabits)
        for name in names:
            _shape(self.machines[name], ["eth0"], gigabits)

    def cut(self, name):
        """Cuts a machine's link: what is sent is lost, and nobody is told."""
        _run(self.hub, "ip", [f"link set {self._port(name)} nomaster"])

    def mend(self, name):
        """Joins a machine again whose link was cut."""
        _run(self.hub, "ip", [f"link set {self._port(name)} master hub"])

    def bytes_sent(self):
        """Returns the bytes that all machines have sent so far, each counted once."""
        text = call_in(self.hub, pathlib.Path("/proc/thread-self/net/dev").read_text)
        lines = [line.split(":") for line in text.splitlines() if line.strip().startswith(_PORT)]
        return sum(int(numbers.split()[0]) for _, numbers in lines)

    def _port(self, name):
        return f"{_PORT}{list(self.machines).index(name)}"


def _shape(path, interfaces, gigabits):
    """Shapes what leaves by these: bursts of 0.5 ms and two packets or more, a switch's queue."""
    if gigabits is None:
        _run(path, "tc", [f"qdisc replace dev {name} root noqueue" for name in interfaces])
        return
    per_second = gigabits * 1e9 / 8
    burst = int(max(1 << 17, per_second * 5e-4))
    limit = int((1 << 22) + per_second / 100)
    shaper = f"tbf rate {int(gigabits * 1e6)}kbit burst {burst} limit {limit}"
    _run(path, "tc", [f"qdisc replace dev {name} root {shaper}" for name in interfaces])


def enter(path):
    """Moves this thread to the machine that a file stands for."""
    namespace = os.open(path, os.O_RDONLY)
    try:
        _check(_LIBC.setns(namespace, _CLONE_NEWNET))
    finally:
        os.close(namespace)


def call_in(path, function):
    """Calls a function in a thread that is on the machine that a file stands for."""

    def run():
        enter(path)
        return function()

    return _in_thread(run)


def _without_proxies(environment):
    """Returns an environment by which gRPC asks no proxy for another machine of a box."""
    return {k: v for k, v in environment.items() if k.lower() not in _PROXIES}


def _run(path, tool, lines):
    """Has `ip` or `tc` do some lines on the machine that a file stands for."""
    done = call_in(
        path,
        lambda: subprocess.run(
            [tool, "-batch", "-"],
            input="\n".join(lines),
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
        ),
    )
    if done.returncode:
        raise OSError(f"{tool}, of {lines}: {done.stderr.strip()}")


def _check(result):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _in_thread(function):
    """A namespace is a thread's: others of this process stay where they are."""
    results = []

    def run():
        try:
            results.append((function(), None))
        except BaseException as error:
            results.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    result, error = results[0]
    if error is not None:
        raise error
    return result


_SEND = """
import socket, sys, time
one = socket.create_connection((sys.argv[1], 5000))
left, part = int(sys.argv[2]), bytes(1 << 18)
while left > 0:
    left -= one.send(part[:left])
one.shutdown(socket.SHUT_WR)
one.recv(1)
"""


def throughput(box, sender, receiver, num_bytes):
    """Returns the Gbit/s at which one machine's bytes reach another."""

    def listen():
        return socket.create_server(("", 5000))

    with box.call(receiver, listen) as server:
        server.settimeout(60)
        command = [sys.executable, "-c", _SEND, box.address(receiver), str(num_bytes)]
        process = box.popen(sender, command)
        one, _ = server.accept()
        with one:
            one.settimeout(60)
            start, num = time.perf_counter(), 0
            while part := one.recv(1 << 20):
                num += len(part)
            seconds = time.perf_counter() - start
        process.wait(timeout=60)
    return 8e-9 * num / seconds


def main():
    if reason := why_not():
        print(reason)
        return
    for gigabits in (0.01, 1, 10, 25):
        with Box(["a", "b"], gigabits) as box:
            num_bytes = int(min(1e9, gigabits * 1e9 / 8))
            found = throughput(box, "a", "b", num_bytes)
            sent = box.links.bytes_sent()
        print(f"{gigabits:>5} Gbit/s asked, {found:.3f} found; {sent / num_bytes:.3f} bytes a byte")


if __name__ == "__main__":
    main()
