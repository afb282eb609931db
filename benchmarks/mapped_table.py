"""What does a step cost when a table is larger than memory, and mapped from the disk?

    python benchmarks/mapped_table.py --folder DIR

A table with Adagrad's slots, 4 times the memory that a cgroup gives; 26 x 1,024 lookups a step,
Zipf's by 1.1; each distinct row is read and updated. The first steps fill memory and are left out.
Needs g++, and the right to make a cgroup (version 1). All subjects must end with the same rows, but
for the one that holds updates.
"""

import argparse
import json
import os
import pathlib
import subprocess
import tempfile

import machine
import numpy as np

HERE = pathlib.Path(__file__).parent
GROUP = pathlib.Path("/sys/fs/cgroup/memory/slipstream_mapped_table")
# Name: is mapped, order of the rows, the next step's pages are asked for, updates are held.
SUBJECTS = {
    "in memory": (False, "shuffled", 0, 0),
    "mapped, shuffled": (True, "shuffled", 0, 0),
    "mapped, by popularity": (True, "popular", 0, 0),
    "mapped, by popularity, asked for a step ahead": (True, "popular", 1, 0),
    "the same, and updates of popular rows held": (True, "popular", 1, 1),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True, help="on the disk")
    parser.add_argument("--rows", type=int, default=1 << 23, help="a power of 2")
    parser.add_argument("--memory", type=int, default=1 << 29, help="of the cgroup, bytes")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--warm-up", type=int, default=200)
    args = parser.parse_args()
    program = pathlib.Path(tempfile.mkdtemp()) / "mapped_table"
    source = str(HERE / "mapped_table.cc")
    subprocess.run(["g++", "-O3", "-std=c++17", source, "-o", program], check=True)
    file = pathlib.Path(args.folder) / "mapped_table.bin"
    GROUP.mkdir(exist_ok=True)
    sums = {}
    try:
        (GROUP / "memory.limit_in_bytes").write_text(str(args.memory))
        print("| table | ms a step | 10%-90% | pages waited for | MB read | MB written |")
        print("|---|---|---|---|---|---|")
        for name, (is_mapped, order, asks, holds) in SUBJECTS.items():
            places = [file, GROUP] if is_mapped else ["-", "-"]
            command = [program, *places, args.rows, args.steps, order, asks, holds]
            done = subprocess.run(
                [*map(str, command)], check=True, capture_output=True, text=True
            ).stdout.splitlines()
            steps = np.array([one.split() for one in done[args.warm_up : -1]], float)
            ms, pages, read, written, num_rows = steps.T
            low, median, high = np.percentile(ms, [10, 50, 90])
            cells = [f"{median:.1f}", f"{low:.1f}-{high:.1f}", f"{np.mean(pages):.0f}"]
            cells += [f"{np.mean(one) / 1e6:.1f}" for one in (read, written)]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
            if not holds:
                sums[name] = done[-1]
    finally:
        file.unlink(missing_ok=True)
        GROUP.rmdir()
    assert len(set(sums.values())) == 1, sums
    print(f"{np.mean(num_rows):.0f} distinct rows a step")
    print(json.dumps(machine.describe() | {"cpus": os.cpu_count()}))


if __name__ == "__main__":
    main()
