"""Runs the example as a user would."""

import os
import pathlib
import re
import signal
import subprocess
import sys

from tests.distribute import clusters

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "parameter_server.sh"


def _five_free_ports():
    """Returns the first of five ports that are free, next to each other."""
    while True:
        first = clusters.free_ports(1)[0]
        try:
            for port in range(first, first + 5):
                clusters.check_free(port)
            return first
        except OSError:
            continue


def test_the_example_starts_trains_and_stops_everything():
    environ = clusters.environment(PYTHON=sys.executable, PORT=str(_five_free_ports()))
    environ.pop("TF_CONFIG", None)
    process = subprocess.Popen(
        ["sh", str(EXAMPLE), "--rows", "4000", "--epochs", "2", "--steps", "60"],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        # The servers have the pipe too: that it ends says that they did.
        output, _ = process.communicate(timeout=240)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    assert process.returncode == 0, output
    assert "120 steps" in output
    shares = re.findall(r"(\d+)% of", output)
    assert len(shares) == 3 and all(int(share) > 0 for share in shares), output
    assert output.count("listens at localhost") == 4
