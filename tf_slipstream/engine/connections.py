"""Connections of a cluster that end when the other machine is gone.

A machine that loses its power or its network for good says nothing. TCP then waits 15 minutes where
data is on its way, and for ever where an answer is: gRPC, as TensorFlow uses it, asks nobody
whether he is still there. So a step whose worker is gone would never end.
"""

import contextlib
import os
import socket
import threading
import time

# Seconds without an answer after which a connection ends.
LOST_AFTER = "TF_SLIPSTREAM_LOST_AFTER"
_SECONDS = 60
# Probes that are sent before it ends.
_NUM_PROBES = 3
_watched, _lock = set(), threading.Lock()


def end_when_lost(cluster):
    """Has this process's connections to the machines of a cluster end when they are gone.

    TCP asks them now and then, as it does with `SO_KEEPALIVE`. After `TF_SLIPSTREAM_LOST_AFTER`
    seconds without an answer, by default 60, a connection fails, and TensorFlow says of the machine
    that it is unavailable: of a worker, so that another does its step; of a server as an error. 0:
    nothing ends. A thread looks for new connections every two seconds.

    Args:
        cluster: Dict from a job to its addresses, "HOST:PORT".

    Raises:
        ValueError: If the environment variable is no number of seconds.
    """
    seconds = _seconds()
    if seconds == 0:
        return
    with _lock:
        is_first = not _watched
        _watched.update(address for job in cluster.values() for address in job)
    if is_first:
        threading.Thread(target=_watch, args=(seconds,), daemon=True).start()


def _seconds():
    text = os.environ.get(LOST_AFTER, str(_SECONDS))
    if not text.isdecimal():
        raise ValueError(f"{LOST_AFTER} must be a whole number of seconds, got {text!r}.")
    return int(text)


def _watch(seconds):
    done, peers, named_until = set(), set(), 0
    while True:
        now = time.monotonic()
        if now >= named_until:
            peers = {peer for address in tuple(_watched) for peer in _peers(address)}
            named_until = now + seconds
        found = set()
        for one in _sockets():
            with one, contextlib.suppress(OSError):
                host, port = one.getpeername()[:2]
                if (host.removeprefix("::ffff:"), port) in peers:
                    inode = os.fstat(one.fileno()).st_ino
                    found.add(inode)
                    if inode not in done:
                        _ask(one, seconds)
        done = found
        time.sleep(min(2.0, seconds / 4))


def _peers(address):
    """Returns the IP addresses of a machine, with its port."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError):  # it may have no name yet
        return set()
    return {one[4][:2] for one in found}


def _sockets():
    """Yields copies of this process's TCP connections that do not block, as those of gRPC."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            is_socket = os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
            # Of others a default timeout of Python's would make such ones.
            if not is_socket or os.get_blocking(int(name)):
                continue
            one = socket.socket(fileno=os.dup(int(name)))
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                yield one
            else:
                one.close()


def _ask(one, seconds):
    every = max(1, seconds // (_NUM_PROBES + 1))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, every)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _NUM_PROBES)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * seconds)
