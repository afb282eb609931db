"""Connections that notice when the machine at the other end is gone."""

import socket
import subprocess
import sys

import pytest

from tests.benchmarks.programs import ROOT
from tf_slipstream.engine import connections

PROGRAM = """
import socket, sys, time
from tf_slipstream.engine.connections import end_when_lost
cluster, *ports = {"worker": [f"localhost:{sys.argv[1]}"]}, *map(int, sys.argv[1:])
ends = [socket.create_connection(("127.0.0.1", port)) for port in ports]
for end in ends:
    end.setblocking(False)
end_when_lost(cluster)
end_when_lost(cluster)
for _ in range(40):
    asks = [end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for end in ends]
    waits = [end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) for end in ends]
    time.sleep(0.05)
    if asks[0]:
        break
print(asks, waits)
"""


@pytest.mark.parametrize("seconds, asks", [("8", "[1, 0] [8000, 0]"), ("0", "[0, 0] [0, 0]")])
def test_connections_to_the_cluster_end_and_others_do_not(seconds, asks, monkeypatch):
    monkeypatch.setenv(connections.LOST_AFTER, seconds)
    with (
        socket.create_server(("127.0.0.1", 0)) as task,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        ports = [str(one.getsockname()[1]) for one in (task, other)]
        command = [sys.executable, "-c", PROGRAM, *ports]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == asks, done.stderr


def test_a_cluster_whose_machines_have_no_names_yet_is_waited_for():
    assert connections._peers("no-such-host.invalid:4000") == set()
    assert ("127.0.0.1", 4000) in connections._peers("127.0.0.1:4000")


@pytest.mark.parametrize("text", ["soon", "-1", "1.5", ""])
def test_a_time_that_is_none_is_an_error(text, monkeypatch):
    monkeypatch.setenv(connections.LOST_AFTER, text)
    with pytest.raises(ValueError, match="TF_SLIPSTREAM_LOST_AFTER must be a whole number"):
        connections.end_when_lost({"worker": ["localhost:4000"]})
