"""Prints what CMake needs to know of the installed TensorFlow, as a CMake list."""

import pathlib

import tensorflow as tf

version = ".".join(tf.__version__.split(".")[:2])
library = pathlib.Path(tf.sysconfig.get_lib()) / "libtensorflow_framework.so.2"
print(version, tf.sysconfig.get_include(), library, tf.__cxx11_abi_flag__, sep=";")
