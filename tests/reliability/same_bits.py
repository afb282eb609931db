"""The same bits with 1, 2 and 4 threads, and in other processes."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = ("tests.ops.training_hash", "tests.policy.training_hash")


def trial(seed, folder):
    """Runs one of the programs, which print a hash of all that they trained, several times."""
    del folder
    program, hashes = PROGRAMS[seed % len(PROGRAMS)], set()
    environ = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    for num_threads in (1, 2, 4):
        done = subprocess.run(
            [sys.executable, "-m", program, str(num_threads)],
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-1000:]
        hashes.add(done.stdout.split()[-1])
    assert len(hashes) == 1, hashes
    return {"processes": 3}
