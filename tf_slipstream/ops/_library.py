"""Loads the native library, or says once why not."""

import contextlib
import ctypes
import functools
import importlib.resources
import itertools
import os
import warnings

import tensorflow as tf

from tf_slipstream.state import schema

_enabled = os.environ.get("TF_SLIPSTREAM_NATIVE", "1") not in ("0", "false", "False")

_HOW_TO_BUILD = (
    "Training works all the same on plain TensorFlow ops, but slower. To build the native ops for "
    "this TensorFlow, with g++ installed: pip install --force-reinstall --no-deps "
    "<the tf_slipstream source folder>"
)


def native_ops(device=""):
    """Returns the module of native ops, or None where the fallback is to be used.

    Args:
        device: Name of the tables' device. On a GPU the ops need the CUDA kernels.
    """
    if not _enabled or (is_gpu(device) and not _built_for()[1]):
        return None
    return _load()


def has_cpu_ops(table):
    """Whether there are native ops for a table that is one variable in host memory.

    Args:
        table: `tf.Variable`, or what a distribution strategy has in its place.
    """
    is_one = not isinstance(table, tf.distribute.DistributedValues)
    return is_one and not is_gpu(table.device) and native_ops() is not None


def needed_native_ops():
    """Returns the native ops, for what has no fallback.

    Raises:
        RuntimeError: If there are none here.
    """
    native = native_ops()
    if native is None:
        raise RuntimeError(
            "Training on parameter servers needs tf_slipstream's native ops, which are safe when "
            "workers update a row at once, and they are not built for this TensorFlow "
            f"({tf.__version__}). Install tf_slipstream with a C++ compiler at hand."
        )
    return native


def build_info():
    """Says what native ops there are.

    Returns:
        Dict with `native`, whether native ops are in use; `tensorflow`, the `"major.minor"` version
        that they were built for, None without them; `cuda`, whether they have CUDA kernels; and
        `cuda_archs`, a list of the GPU architectures that these were built for: `"80-real"` for
        compute capability 8.0, `"90"` for 9.0 and, compiled when they are loaded, all later ones.
    """
    is_native = native_ops() is not None
    version, archs = _built_for() if is_native else (None, [])
    return {
        "native": is_native,
        "tensorflow": version,
        "cuda": bool(archs),
        "cuda_archs": list(archs),
    }


def row_int_dtype(device):
    """Returns the dtype of a table's int32 variables on its device, which has their bits.

    TensorFlow keeps no int32 variable in a GPU's memory, where the CUDA kernels need them.
    """
    return "uint32" if is_gpu(device) and native_ops(device) is not None else "int32"


def is_gpu(device):
    """Whether a device's name is a GPU's."""
    return ":GPU:" in device


@contextlib.contextmanager
def fallback():
    """Uses plain-TensorFlow ops inside the `with` block, for comparison.

    A `tf.function` keeps the ops that it was traced with.
    """
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def tensorflow_minor_version():
    """Returns the running TensorFlow's version as `"major.minor"`."""
    return ".".join(tf.__version__.split(".")[:2])


def built_versions():
    """Returns the TensorFlow versions that the installed package has native ops for."""
    names = [entry.name for entry in importlib.resources.files(__package__).iterdir()]
    prefix, suffix = "_slipstream_ops_tf", ".so"
    return sorted(
        name[len(prefix) : -len(suffix)]
        for name in names
        if name.startswith(prefix) and name.endswith(suffix)
    )


@functools.cache
def _load():
    version = tensorflow_minor_version()
    if version not in built_versions():
        found = ", ".join(built_versions()) or "none"
        _warn(f"has no native ops for TensorFlow {version} (built for: {found})")
        return None
    try:
        ops = tf.load_op_library(_path())
    except (tf.errors.NotFoundError, OSError) as error:
        _warn(f"could not load its native ops: {error}")
        return None
    theirs = _said_by("SlipstreamSchema")
    if theirs != schema.text():
        _warn(
            f"was built from other sources than are installed ({_first_difference(theirs)}), and "
            "its native ops are not used"
        )
        return None
    return ops


def _path():
    name = f"_slipstream_ops_tf{tensorflow_minor_version()}.so"
    return str(importlib.resources.files(__package__) / name)


@functools.cache
def _built_for():
    """Returns the TensorFlow version that the library was built for and its CUDA architectures."""
    if _load() is None:
        return None, []
    version, *archs = _said_by("SlipstreamBuildInfo").replace(",", " ").split()
    return version, archs


def _said_by(function):
    """Returns the text that a function of the library says."""
    describe = getattr(ctypes.CDLL(_path()), function)
    describe.restype = ctypes.c_char_p
    return describe().decode()


def _first_difference(theirs):
    pairs = itertools.zip_longest(theirs.splitlines(), schema.text().splitlines())
    one, other = next(pair for pair in pairs if pair[0] != pair[1])
    return f"'{one}' where '{other}' was expected"


def _warn(what):
    warnings.warn(f"tf_slipstream {what}. {_HOW_TO_BUILD}", RuntimeWarning, stacklevel=2)
