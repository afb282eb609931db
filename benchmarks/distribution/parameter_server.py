"""ParameterServerStrategy on this machine: tf_keras's own lookup and optimizer beside ours.

    python benchmarks/distribution/parameter_server.py

Two workers and two parameter servers, each a machine of its own in a box (network.py), train one
table on the same batches, at several speeds of their links. Bytes are all that they send. Where the
system allows no box, all is measured once, on the loopback interface of the machine. The last line
is a JSON object with the ratios of stock to ours.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import machine
import numpy as np
import workload

from distribution import network

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = pathlib.Path(__file__).with_name("parameter_server_step.py")
POLICIES = ("", "_stale", "_long")  # none, the default's, and that of a long run
OURS = {  # and what the names of their ratios end in
    f"slipstream{policy}{dtype}": f"{policy}{dtype}"
    for dtype in ("", "_bfloat16")
    for policy in POLICIES
}
SUBJECTS = ("tf_keras", "tf_keras_legacy", *OURS)
# Ends the name of a subject of which each machine runs two workers: one computes while the other's
# rows travel.
_PAIRED = "_paired"
STOCK = {"tf_keras": "", "tf_keras_legacy": "_legacy"}
# Ports that the machines of a box listen at; each has them all for itself.
_PORT = 4000


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2048, help="examples of a worker's step")
    parser.add_argument("--fields", type=int, default=26)
    parser.add_argument("--zipf", type=float, default=1.1)
    parser.add_argument("--workers", type=int, default=2, help="machines that compute")
    parser.add_argument(
        "--per-machine",
        type=int,
        nargs="+",
        choices=(1, 2),
        default=[1],
        help="workers on each; two at the first speed alone",
    )
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=400, help="steps of all workers together")
    parser.add_argument("--steps", type=int, default=60, help="the same, measured")
    parser.add_argument("--rounds", type=int, default=3, help="parts of the measured steps")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=SUBJECTS)
    parser.add_argument("--gigabits", type=float, nargs="*", default=[1, 10, 25], help="of links")
    parser.add_argument("--loopback", action="store_true", help="no box, though there could be one")
    return parser.parse_args(argv)


def measure(args):
    """Yields a result per subject and speed, and at last the ratios."""
    found = {}
    reason = "--loopback was given." if args.loopback else network.why_not()
    if reason:
        print(f"Measured on loopback alone, where bytes cost nothing: {reason}", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        write_batches(args, pathlib.Path(folder) / "ids")
        box = None if reason else stack.enter_context(box_of(args.workers, args.servers))
        for per_machine in args.per_machine:
            # tf_keras, in the servers too. They forget a coordinator when the next one comes.
            num = per_machine * args.workers
            servers = cluster(num, args.servers, folder, box, TF_USE_LEGACY_KERAS="1")
            with servers as environment:
                for subject in args.subjects:
                    for result in _run(subject, args, folder, environment, box, per_machine):
                        found[result["subject"], result["gigabits"]] = result
                        yield result
    yield ratios(found)


def ratios(found):
    """Returns stock over ours, of those that were measured.

    `legacy`: of stock's legacy optimizer. `paired`: ours with two workers on a machine, and `both`:
    stock too.

    Args:
        found: Dict from a subject and a speed, None for links that are not shaped, to a result.
    """
    ratio = {}

    def compare(what, one, other, gigabits, name):
        if (one, gigabits) in found and (other, gigabits) in found:
            pair = [found[subject, gigabits] for subject in (one, other)]
            if what == "bytes":
                values = [result["bytes_per_step"] for result in pair]
            else:
                values = [result["milliseconds"][1] for result in pair]
            ratio[name] = round(values[0] / values[1], 2)

    for gigabits in dict.fromkeys(gigabits for _, gigabits in found):
        speed = "" if gigabits is None else f"_{gigabits:g}g"
        for paired, stock in itertools.product(("", _PAIRED), STOCK):
            for ours, end in OURS.items():
                one, other, name = stock, ours + paired, f"{speed}{end}{paired}{STOCK[stock]}"
                if gigabits is None and not paired:
                    compare("bytes", one, other, gigabits, f"ps_bytes_ratio{name}")
                compare("step", one, other, gigabits, f"ps_step_ratio{name}")
                if paired and not STOCK[stock]:
                    compare("step", one + paired, other, gigabits, f"ps_step_ratio{name}_both")
        ends = itertools.product(POLICIES[1:], ("", "_bfloat16"), ("", _PAIRED))
        for policy, dtype, paired in ends:
            one, other = f"slipstream{dtype}{paired}", f"slipstream{policy}{dtype}{paired}"
            compare("step", one, other, gigabits, f"ps{policy}_over_none{speed}{dtype}{paired}")
    return ratio


def predicted_bytes(args, result):
    """Returns the bytes of a worker's step, by the model of docs/reference/parameter_servers.md."""
    row, lookups = 4 * args.dim, args.batch * args.fields
    if result["subject"].startswith("tf_keras"):
        pushed = lookups if result["subject"] == "tf_keras_legacy" else result["distinct_rows"]
        # Ids are int64, those of a push and the lookups'.
        return lookups * (8 + row) + pushed * (8 + row)
    with_policy = result["subject"] not in ("slipstream", "slipstream_bfloat16")
    if result["subject"].endswith("bfloat16"):
        row //= 2
    pulled = result["pulled_rows"] * (4 + row + 4 * with_policy)
    return pulled + result["pushed_rows"] * (4 + row + 8)


def predicted_milliseconds(num_bytes, compute, gigabits, num_workers, num_servers, per_machine=1):
    """Returns how long a step takes, by the model of docs/reference/parameter_servers.md.

    A worker computes, and its rows come in by its machine's link and go out by it. Workers queue
    for the processors, which all machines of a box share, and those of one machine for its link. By
    mean value analysis (Reiser and Lavenberg 1980).

    Args:
        num_bytes: That a worker's step sends and gets.
        compute: Milliseconds of one step of all workers where links cost nothing.
        gigabits: Gbit/s of a link.
        num_workers: Positive integer, of machines that compute.
        num_servers: Positive integer. The links of fewer servers than workers are shared.
        per_machine: Workers on each of them.
    """
    one_way = 4e-6 * num_bytes / (network.PAYLOAD * gigabits) * max(1, num_workers / num_servers)
    num_all = per_machine * num_workers
    # Of all other workers those that use the same link.
    neighbours = (per_machine - 1) / max(1, num_all - 1)
    computing_queue = link_queue = 0.0
    for num in range(1, num_all + 1):
        computing = compute * (1 + computing_queue)
        waiting = one_way * (1 + neighbours * link_queue)
        step = computing + 2 * waiting
        computing_queue, link_queue = num * computing / step, num * waiting / step
    return step / num_all


def write_batches(args, path):
    """Writes as many batches of ids as there are steps: int32, none twice."""
    rng = np.random.default_rng(0)
    shape = (args.warmup + args.steps, args.batch * args.fields)
    workload.zipf_ids(rng, args.rows, args.zipf, shape).astype(np.int32).tofile(path)


def loopback_bytes():
    """Returns the bytes that have been sent over loopback."""
    lines = pathlib.Path("/proc/net/dev").read_text().splitlines()
    fields = next(line for line in lines if line.strip().startswith("lo:")).split(":")[1].split()
    return int(fields[8])


def _run(subject, args, folder, environment, box, per_machine=1):
    options = {"folder": folder, "subject": subject, **vars(args)}
    if subject in ("tf_keras", "tf_keras_legacy", "slipstream", "slipstream_bfloat16"):
        options["warmup"] = min(20, args.warmup)  # nothing has to fall asleep
    if per_machine > 1:
        options["gigabits"] = args.gigabits[:1]
    options["links"] = None if box is None else dataclasses.asdict(box.links)
    for result in run_program(PROGRAM, options, environment, box):
        result["predicted_bytes_per_step"] = predicted_bytes(args, result)
        if per_machine > 1:
            result["subject"] += _PAIRED
        if result["gigabits"] is None:
            compute = result["milliseconds"][1]
        else:
            result["predicted_milliseconds"] = predicted_milliseconds(
                result["predicted_bytes_per_step"],
                compute,
                result["gigabits"],
                args.workers,
                args.servers,
                per_machine,
            )
        yield result


def box_of(num_workers, num_servers):
    """Returns a `network.Box` for a cluster, of links that are not shaped."""
    tasks = [("worker", i) for i in range(num_workers)] + [("ps", i) for i in range(num_servers)]
    return network.Box([*(f"{job}{i}" for job, i in tasks), "chief"], None)


@contextlib.contextmanager
def cluster(num_workers, num_servers, folder, box=None, **more):
    """Starts workers and parameter servers, which end with the `with` block.

    Args:
        num_workers: Positive integer. A box with fewer machines for them has several on each.
        num_servers: Positive integer, of parameter servers.
        folder: Where their output goes.
        box: As `box_of` makes it; None: all listen on loopback.
        **more: Environment variables of all.

    Yields:
        The environment of a coordinator, with its TF_CONFIG.
    """
    environment = _environment(**more)
    with contextlib.ExitStack() as stack:
        if box is None:
            ports = _free_ports(num_workers + num_servers + 1)
            addresses = [f"localhost:{port}" for port in ports]
        else:
            names = [name for name in box.links.machines if name.startswith("worker")]
            others = [name for name in box.links.machines if name not in names]
            machines = [names[i % len(names)] for i in range(num_workers)] + others
            addresses = [
                f"{box.address(name)}:{_PORT + machines[:i].count(name)}"
                for i, name in enumerate(machines)
            ]
        jobs = {"worker": addresses[:num_workers], "ps": addresses[num_workers:-1]}
        tasks = [(job, i) for job in jobs for i in range(len(jobs[job]))]
        for number, (job, index) in enumerate(tasks):
            command = [sys.executable, "-m", "tf_slipstream.server", "--task", f"{job}:{index}"]
            command += ["--cluster", json.dumps(jobs)]
            log = stack.enter_context(open(pathlib.Path(folder) / f"{job}{index}.log", "w"))
            options = {"stdout": log, "stderr": log, "env": environment}
            if box is None:
                stack.callback(_end, subprocess.Popen(command, **options))
            else:
                stack.callback(_end, box.popen(machines[number], command, **options))
        for job, index in tasks:
            wait = functools.partial(_wait_until_up, jobs[job][index])
            wait() if box is None else box.call("chief", wait)
        config = {
            "cluster": {**jobs, "chief": [addresses[-1]]},
            "task": {"type": "chief", "index": 0},
        }
        yield {**environment, "TF_CONFIG": json.dumps(config)}


def run_program(program, options, environment, box=None):
    """Runs a Python file with its options as JSON; returns the JSON value in its last line.

    With a box the program is its machine "chief".
    """
    command = [sys.executable, str(program), json.dumps(options, default=list)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    if box is None:
        process = subprocess.Popen(command, env=environment, **pipes)
    else:
        process = box.popen("chief", command, env=environment, **pipes)
    try:
        output, errors = process.communicate(timeout=900)
    finally:
        _end(process)
    if process.returncode:
        raise RuntimeError(f"{program} with {options} failed:\n{errors[-4000:]}")
    return json.loads(output.splitlines()[-1])


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
    speed = "not shaped" if result["gigabits"] is None else f"{result['gigabits']:g} Gbit/s"
    predicted = result.get("predicted_milliseconds")
    model = "" if predicted is None else f", model: {predicted:.1f}"
    return (
        f"{result['subject']:>33} {speed:>10} {result['bytes_per_step'] / 1024:8.0f} KiB a "
        f"worker's step (model: {result['predicted_bytes_per_step'] / 1024:.0f}), {median:6.1f} ms "
        f"({low:.1f}-{high:.1f}{model}); {result['saved']}"
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
