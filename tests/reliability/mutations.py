"""Bytes and values altered at random, as damage and malice alter them."""

import copy
import pathlib
import tempfile

import numpy as np

_FOLDERS = []

_NUMBERS = (0, 1, -1, 2**7, 2**8, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64)
_VALUES = (None, True, False, "", "0", [], {}, 0.5, -1.5, 1e308, float("nan"), float("inf"))
_VALUES += (*_NUMBERS, -(2**63), 10**400, "x" * 300, "\x00", "\ud800", "../../x", [[]], {"": {}})


def mutated(data, random, most=4):
    """Returns bytes with one to `most` changes: bits, numbers, pieces cut, doubled and moved."""
    data = bytearray(data)
    for _ in range(random.integers(1, most + 1)):
        place = int(random.integers(0, max(1, len(data))))
        size = int(min(2 ** random.integers(0, 8), max(0, len(data) - place)))
        what = random.integers(0, 7)
        if what <= 1 and data:
            data[place] ^= 1 << int(random.integers(0, 8))
        elif what == 2:
            del data[place : place + size]
        elif what == 3:
            data[place:place] = data[place : place + size] * int(random.integers(1, 9))
        elif what == 4:
            number = int(random.choice(_NUMBERS[:-2])) & 2**64 - 1
            width = int(random.choice([1, 2, 4, 8]))
            data[place : place + width] = number.to_bytes(8, "little")[:width]
        elif what == 5:
            data[place : place + size] = random.bytes(size)
        else:
            del data[place:]
    return bytes(data)


def mutated_value(value, random, most=3):
    """Returns what JSON holds with one to `most` changes: values, names, lists."""
    value = copy.deepcopy(value)
    for _ in range(random.integers(1, most + 1)):
        parents = [one for one in _parts(value) if one]
        if not parents:
            return _VALUES[random.integers(0, len(_VALUES))]
        parent = parents[random.integers(0, len(parents))]
        keys = list(parent) if isinstance(parent, dict) else range(len(parent))
        key = keys[int(random.integers(0, len(keys)))]
        what = random.integers(0, 4)
        if what == 0:
            del parent[key]
        elif what == 1 and isinstance(parent, dict):
            parent[f"{key}{random.integers(0, 3)}"] = copy.deepcopy(parent[key])
        elif what == 1:
            parent.append(copy.deepcopy(parent[key]))
        else:
            parent[key] = copy.deepcopy(_VALUES[random.integers(0, len(_VALUES))])
    return value


def _parts(value):
    """Yields the dicts and lists within a value, and itself."""
    if isinstance(value, (dict, list)):
        yield value
        for one in value.values() if isinstance(value, dict) else value:
            yield from _parts(one)


def generator(*seeds):
    return np.random.default_rng(seeds)


def lasting_folder():
    """Returns a folder that is there until the process ends, for what is made once in it."""
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix="reliability-"))
    return pathlib.Path(_FOLDERS[-1].name)
