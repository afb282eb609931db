"""The embedding step at its limit: `limit.cc`, which moves the bytes that it must and does no more.

Compiled on first use, for this machine's processor, into `build/`.
"""

import ctypes
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))

import equations
import numpy as np
import workload

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.join(HERE, "..", "limit.cc")
LIBRARY = os.path.join(HERE, "..", "..", "build", "limit.so")
EPSILON = 1e-7


class Batch(ctypes.Structure):
    """`Batch` of limit.cc."""

    _fields_ = [
        ("lookups", ctypes.c_void_p),
        ("num_bags", ctypes.c_int64),
        ("bag", ctypes.c_int64),
        ("distinct", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("num_distinct", ctypes.c_int64),
    ]


class LimitStep:
    def __init__(self, args):
        self.convention = equations.Convention(
            epsilon=EPSILON, epsilon_under_root=args.rule == "adagrad"
        )
        self.args, self.library, self.kept = args, load(), []
        cardinalities = np.array(args.cardinalities, np.int64)
        self.handle = ctypes.c_void_p(
            self.library.LimitCreate(
                equations.RULES.index(args.rule),
                address(cardinalities),
                ctypes.c_int64(len(cardinalities)),
                ctypes.c_int64(args.dim),
                ctypes.c_int64(workload.num_bags(args)),
                ctypes.c_float(self.convention.initial_accumulator),
                args.threads,
            )
        )

    def set_upstream(self, upstream):
        self.kept.append(upstream)
        self.upstream = (ctypes.c_void_p * len(upstream))(*[t.ctypes.data for t in upstream])

    def prepare(self, ids):
        return (Batch * len(ids))(*[self._prepare_table(table) for table in ids])

    def step(self, batch):
        rate, epsilon = ctypes.c_float(equations.LEARNING_RATE), ctypes.c_float(EPSILON)
        self.library.LimitStep(self.handle, batch, self.upstream, rate, epsilon)

    def tables(self):
        result = []
        for index, rows in enumerate(self.args.cardinalities):
            start = self.library.LimitRows(self.handle, ctypes.c_int64(index))
            floats = (ctypes.c_float * (rows * self.args.dim)).from_address(start)
            result.append(np.array(floats).reshape(rows, self.args.dim))
        return result

    def _prepare_table(self, ids):
        """Groups the lookups of a table by row, rows in order of their first lookup."""
        lookups = np.ascontiguousarray(ids.reshape(-1))
        _, first, group = np.unique(lookups, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))[group]
        order = np.argsort(rank, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rank))]).astype(np.int64)
        distinct = lookups[np.sort(first)]
        positions = (order // ids.shape[-1]).astype(np.int32)
        self.kept += [lookups, distinct, offsets, positions]
        return Batch(
            address(lookups),
            *ids.shape,
            *map(address, (distinct, offsets, positions)),
            len(distinct),
        )


def address(array):
    return ctypes.c_void_p(array.ctypes.data)


def load():
    """Returns the library, compiled anew where its source is newer."""
    if not os.path.exists(LIBRARY) or os.path.getmtime(LIBRARY) < os.path.getmtime(SOURCE):
        os.makedirs(os.path.dirname(LIBRARY), exist_ok=True)
        unfinished = f"{LIBRARY}.{os.getpid()}"
        flags = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"]
        flags += ["-fassociative-math", "-fno-signed-zeros", "-shared", "-fPIC", "-pthread"]
        subprocess.run(["g++", *flags, SOURCE, "-o", unfinished], check=True)
        os.replace(unfinished, LIBRARY)
    library = ctypes.CDLL(LIBRARY)
    library.LimitCreate.restype = ctypes.c_void_p
    library.LimitRows.restype = ctypes.c_void_p
    return library


if __name__ == "__main__":
    workload.main({"limit": LimitStep}, packages=["numpy"])
