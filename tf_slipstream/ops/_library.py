"""Loads the native library, or says once why not."""

import contextlib
import functools
import importlib.resources
import os
import warnings

import tensorflow as tf

_enabled = os.environ.get("TF_SLIPSTREAM_NATIVE", "1") not in ("0", "false", "False")

_HOW_TO_BUILD = (
    "Training works all the same on plain TensorFlow ops, but slower. To build the native ops for "
    "this TensorFlow, with g++ installed: pip install --no-build-isolation --force-reinstall "
    "--no-deps <the tf_slipstream source folder>"
)


def native_ops(device=""):
    """Returns the module of native ops, or None where the fallback is to be used.

    Args:
        device: Name of the tables' device. The ops have CPU kernels alone.
    """
    return _load() if _enabled and ":GPU:" not in device else None


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
    library = importlib.resources.files(__package__) / f"_slipstream_ops_tf{version}.so"
    try:
        return tf.load_op_library(str(library))
    except (tf.errors.NotFoundError, OSError) as error:
        _warn(f"could not load its native ops: {error}")
        return None


def _warn(what):
    warnings.warn(f"tf_slipstream {what}. {_HOW_TO_BUILD}", RuntimeWarning, stacklevel=2)
