"""Prints what CMake needs to know of the installed TensorFlow, as a CMake list.

With `--which`, prints at once what changes when another TensorFlow is installed.
"""

import importlib.util
import pathlib
import sys

if "--which" in sys.argv:
    spec = importlib.util.find_spec("tensorflow")
    if spec is None:
        sys.exit("No module named 'tensorflow'")
    print(spec.origin, pathlib.Path(spec.origin).stat().st_mtime_ns)
    sys.exit()

import tensorflow as tf  # noqa: E402

version = ".".join(tf.__version__.split(".")[:2])
library = pathlib.Path(tf.sysconfig.get_lib()) / "libtensorflow_framework.so.2"
print(version, tf.sysconfig.get_include(), library, tf.__cxx11_abi_flag__, sep=";")
