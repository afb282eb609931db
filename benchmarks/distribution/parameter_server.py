"""ParameterServerStrategy on this machine: tf_keras's own lookup and optimizer beside ours.

    python benchmarks/distribution/parameter_server.py

Two workers and two parameter servers, each a process, train one table on the same batches. Bytes
are all that crosses the loopback interface of a network of their own, where the system lets a
program have one, else of the machine. The last line is a JSON object with the ratios of stock to
ours.
"""

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import machine
import numpy as np
import workload

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = pathlib.Path(__file__).with_name("parameter_server_step.py")
OURS = {  # and what the names of their ratios end in
    "slipstream": "",
    "slipstream_stale": "_stale",
    "slipstream_bfloat16": "_bfloat16",
    "slipstream_stale_bfloat16": "_stale_bfloat16",
}
SUBJECTS = ("tf_keras", "tf_keras_legacy", *OURS)
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2048, help="examples of a worker's step")
    parser.add_argument("--fields", type=int, default=26)
    parser.add_argument("--zipf", type=float, default=1.1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=400, help="steps of all workers together")
    parser.add_argument("--steps", type=int, default=60, help="the same, measured")
    parser.add_argument("--rounds", type=int, default=3, help="parts of the measured steps")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=SUBJECTS)
    return parser.parse_args(argv)


def measure(args):
    """Yields a result per subject, and at last the ratios."""
    own_network()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        write_batches(args, pathlib.Path(folder) / "ids")
        # tf_keras, in the servers too. They forget a coordinator when the next one comes.
        with cluster(args.workers, args.servers, folder, TF_USE_LEGACY_KERAS="1") as environment:
            for subject in args.subjects:
                found[subject] = _run(subject, args, folder, environment)
                yield found[subject]
    yield ratios(found)


def ratios(found):
    """Returns stock over ours, of those that were measured; `legacy`: of its legacy optimizer."""
    ratio = {}
    for stock, against in (("tf_keras", ""), ("tf_keras_legacy", "_legacy")):
        for ours, end in OURS.items():
            if ours not in found or stock not in found:
                continue
            theirs, mine = found[stock], found[ours]
            names = [f"ps_{what}_ratio{end}{against}" for what in ("bytes", "step")]
            ratio[names[0]] = theirs["bytes_per_step"] / mine["bytes_per_step"]
            ratio[names[1]] = theirs["milliseconds"][1] / mine["milliseconds"][1]
    return {name: round(value, 2) for name, value in ratio.items()}


def predicted_bytes(args, result):
    """Returns the bytes of a worker's step, by the model of docs/reference/parameter_servers.md."""
    row, lookups = 4 * args.dim, args.batch * args.fields
    if result["subject"].startswith("tf_keras"):
        pushed = lookups if result["subject"] == "tf_keras_legacy" else result["distinct_rows"]
        # Ids are int64, those of a push and the lookups'.
        return lookups * (8 + row) + pushed * (8 + row)
    with_policy = "stale" in result["subject"]
    if result["subject"].endswith("bfloat16"):
        row //= 2
    pulled = result["pulled_rows"] * (4 + row + 4 * with_policy)
    return pulled + result["pushed_rows"] * (4 + row + 8)


def write_batches(args, path):
    """Writes as many batches of ids as there are steps: int32, none twice."""
    rng = np.random.default_rng(0)
    shape = (args.warmup + args.steps, args.batch * args.fields)
    workload.zipf_ids(rng, args.rows, args.zipf, shape).astype(np.int32).tofile(path)


def own_network():
    """Moves this process into a network with nothing but a loopback interface, if it may."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = bytearray(struct.pack("16sh", b"lo", 0).ljust(40, b"\0"))
        fcntl.ioctl(control, _SIOCGIFFLAGS, request)
        name, flags = struct.unpack_from("16sh", request)
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh", name, flags | _IFF_UP).ljust(40))
    return True


def loopback_bytes():
    """Returns the bytes that have been sent over loopback."""
    lines = pathlib.Path("/proc/net/dev").read_text().splitlines()
    fields = next(line for line in lines if line.strip().startswith("lo:")).split(":")[1].split()
    return int(fields[8])


def _run(subject, args, folder, environment):
    options = {"folder": folder, "subject": subject, **vars(args)}
    if "stale" not in subject:
        options["warmup"] = min(20, args.warmup)  # nothing has to fall asleep
    result = run_program(PROGRAM, options, environment)
    result["predicted_bytes_per_step"] = predicted_bytes(args, result)
    return result


@contextlib.contextmanager
def cluster(num_workers, num_servers, folder, **more):
    """Starts workers and parameter servers, which end with the `with` block.

    Args:
        num_workers: Positive integer.
        num_servers: Positive integer, of parameter servers.
        folder: Where their output goes.
        **more: Environment variables of all.

    Yields:
        The environment of a coordinator, with its TF_CONFIG.
    """
    environment = _environment(**more)
    with contextlib.ExitStack() as stack:
        ports = _free_ports(num_workers + num_servers + 1)
        addresses = [f"localhost:{port}" for port in ports]
        jobs = {"worker": addresses[:num_workers], "ps": addresses[num_workers:-1]}
        tasks = [(job, i) for job in jobs for i in range(len(jobs[job]))]
        for job, index in tasks:
            command = [sys.executable, "-m", "tf_slipstream.server", "--task", f"{job}:{index}"]
            command += ["--cluster", json.dumps(jobs)]
            log = stack.enter_context(open(pathlib.Path(folder) / f"{job}{index}.log", "w"))
            server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            stack.callback(_end, server)
        for job, index in tasks:
            _wait_until_up(jobs[job][index])
        config = {
            "cluster": {**jobs, "chief": [addresses[-1]]},
            "task": {"type": "chief", "index": 0},
        }
        yield {**environment, "TF_CONFIG": json.dumps(config)}


def run_program(program, options, environment):
    """Runs a Python file with its options as JSON; returns the JSON object in its last line."""
    done = subprocess.run(
        [sys.executable, str(program), json.dumps(options, default=list)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if done.returncode:
        raise RuntimeError(f"{program} with {options} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _environment(**more):
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, **quiet, "PYTHONPATH": path, **more}


def _free_ports(num):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_until_up(address, seconds=120):
    host, port = address.split(":")
    end = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _end(process):
    process.kill()
    process.wait(timeout=30)


def line(result):
    """Returns a result as a line for people."""
    low, median, high = result["milliseconds"]
    return (
        f"{result['subject']:>26} {result['bytes_per_step'] / 1024:8.0f} KiB a worker's step "
        f"(model: {result['predicted_bytes_per_step'] / 1024:.0f}), {median:6.1f} ms "
        f"({low:.1f}-{high:.1f}); {result['saved']}"
    )


def main():
    args = arguments()
    print(json.dumps(machine.describe()))
    for result in measure(args):
        if "subject" in result:
            print(line(result), flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
