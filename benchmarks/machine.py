"""What a result was measured on."""

import importlib.metadata
import os
import platform
import time


def describe(packages=("tensorflow", "keras", "tf_keras", "tf-slipstream", "numpy")):
    """Returns a dict: processor, cores, memory, kernel, huge-page setting, versions, load."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "huge_pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "python": platform.python_version(),
        "versions": versions,
        "load_average": os.getloadavg()[0],
    }


def available_memory():
    """Returns the bytes that programs can still get."""
    return int(_field("/proc/meminfo", "MemAvailable").split()[0]) * 1024


def wait_until_idle(max_seconds, share=0.9):
    """Waits until the cores were idle for `share` of a second, or `max_seconds` are over."""
    end = time.monotonic() + max_seconds
    while time.monotonic() < end:
        before = _cpu_times()
        time.sleep(1.0)
        spent = [after - first for first, after in zip(before, _cpu_times())]
        if spent[3] > share * sum(spent):  # user, nice, system, idle, ...
            return


def _cpu_times():
    return [int(ticks) for ticks in _read("/proc/stat").splitlines()[0].split()[1:9]]


def _read(path):
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None


def _field(path, name):
    for line in (_read(path) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None
