"""A large table over parameter servers: trained, checkpointed, moved and exported, all checked.

    python -m tests.reliability.large_cluster --rows 200000000

Takes 14 GB of memory, 30 GB of disk and some 8 minutes so. A cluster trains one table. Another of
as many servers restores the checkpoint and trains on. One of another size, and one machine, load
the weights; there the table is exported, and served rows are compared with those of the cluster.
With TF_USE_LEGACY_KERAS=1 it is tf_keras's `fit`, and its partitioned variables.
"""

import argparse
import json
import os
import pathlib
import shutil
import tempfile
import time

from tests.distribute import clusters

PROGRAM = pathlib.Path(__file__).with_name("large_cluster_program.py")


def arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--dim", type=int, default=4, help="length of a row")
    parser.add_argument("--servers", type=int, default=4)
    parser.add_argument("--to-servers", type=int, default=2, help="of the cluster it is moved to")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40, help="of all workers together")
    parser.add_argument("--batch", type=int, default=4096, help="lookups of a step")
    parser.add_argument("--rule", choices=("Adagrad", "SGD"), default="Adagrad")
    parser.add_argument("--folder", help="for its files, which are removed; else a temporary one")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds of each cluster")
    return parser.parse_args(argv)


def check_room(args, folder):
    """Raises a `SystemExit` unless there is memory and disk for it."""
    table = 4 * args.rows * args.dim
    # Table, slot, row states and pool; the checkpoint that is read; what TensorFlow takes.
    memory = 2 * table + 9 * args.rows + table + (1 << 30)
    # Two checkpoints, the weights twice, a version.
    disk = 2 * (2 * table + 9 * args.rows) + 3 * table
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    if free < memory or shutil.disk_usage(folder).free < disk:
        raise SystemExit(
            f"{args.rows:,} rows of {args.dim} need about {memory >> 30} GB of memory and "
            f"{disk >> 30} GB at {folder}, and there is less. Give fewer --rows, or a --folder."
        )


def run(args, folder, tell=print):
    """Does all of it.

    Args:
        args: Of `arguments`.
        folder: Path.
        tell: Is called with each line for people.

    Returns:
        Dict from a program's name to what it found.
    """
    found = {}
    with clusters.Forks(folder) as forks:
        for name, part, num_servers in (
            ("trained", "train", args.servers),
            ("restored", "train", args.servers),
            ("moved", "load", args.to_servers),
            ("alone", "load", None),
            ("served", "serve", None),
        ):
            settings = {**vars(args), "folder": str(folder), "num_servers": num_servers}
            settings |= {"restores": name == "restored", "saves": name == "restored"}
            tell(f"{name}:")
            found[name] = _run(forks, part, settings, args, tell)
            tell(f"  found {json.dumps(found[name])}")
    return found


def _run(forks, part, settings, args, tell):
    folder = pathlib.Path(settings["folder"])
    if settings["num_servers"] is None:
        log = folder / f"{part}.log"
        process = forks.start([PROGRAM, part, json.dumps(settings)], log)
        return _follow(process, lambda: log.read_text() if log.exists() else "", args.timeout, tell)
    with clusters.Cluster(forks, folder, args.workers, settings["num_servers"]) as cluster:
        jobs = cluster.addresses.items()
        tasks = [(job, index) for job, all in jobs for index in range(len(all))]
        settings["pids"] = {f"{job}{index}": cluster.pid(job, index) for job, index in tasks}
        coordinator = clusters.Coordinator(cluster, PROGRAM, part, json.dumps(settings))
        try:
            return _follow(coordinator.process, coordinator.log, args.timeout, tell)
        finally:
            coordinator.close()


def _follow(process, log, timeout, tell):
    """Tells what a program says until it ends, and returns what it found."""
    deadline, num_told = time.monotonic() + timeout, 0
    try:
        while True:
            has_ended = process.poll() is not None
            lines = log().splitlines(keepends=True)
            lines = lines if has_ended else [one for one in lines if one.endswith("\n")]
            for line in lines[num_told:]:
                if line.startswith('{"part"'):
                    tell(f"  {described(json.loads(line))}")
            num_told = len(lines)
            if has_ended:
                break
            if time.monotonic() > deadline:
                raise AssertionError(f"not done in {timeout} s: {log()[-4000:]}")
            time.sleep(0.2)
    finally:
        process.kill()
    assert process.poll() == 0, log()[-6000:]
    return json.loads(lines[-1])["found"]


def described(part):
    """Returns what was measured of a part as a line for people."""
    jobs = {}
    for task, peak in part["peaks"].items():
        jobs.setdefault(task.rstrip("0123456789"), []).append(peak)
    peaks = ", ".join(f"{job} {max(peaks):,}" for job, peaks in jobs.items())
    return f"{part['part']}: {part['seconds']} s; peak MB of a process: {peaks}"


def check(args, found):
    """Holds the programs' findings against each other."""
    trained, restored, moved, alone = (
        found[name] for name in ("trained", "restored", "moved", "alone")
    )
    assert trained["num_shards"] == restored["num_shards"] == args.servers
    assert moved["num_shards"] == (args.to_servers if args.to_servers > 1 else 1)
    assert restored["restored"] == trained["saved"], (restored["restored"], trained["saved"])
    assert restored["held restored"] == trained["held saved"] > 0
    num_lookups = args.steps * args.batch
    assert trained["num_lookups"] == num_lookups and trained["num_deferred"] > 0
    assert restored["num_lookups"] == 2 * num_lookups
    for one in (moved, alone):
        assert one["table"] == one.get("read table", one["table"]) == restored["table"]
        assert one["num_wrong"] == 0
    assert found["served"]["num_wrong"] == 0


def main():
    args = arguments()
    os.nice(5)
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="large_cluster-") as folder:
        check_room(args, folder)
        begin = time.monotonic()
        found = run(args, pathlib.Path(folder), lambda line: print(line, flush=True))
        check(args, found)
    print(
        f"{args.rows:,} rows of {args.dim} on {args.servers} servers: trained as by hand, restored "
        f"to the bit, moved to {args.to_servers} servers and to one machine, and served to the bit "
        f"({time.monotonic() - begin:.0f} s)"
    )


if __name__ == "__main__":
    main()
