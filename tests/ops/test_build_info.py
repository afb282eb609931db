"""Checks what `build_info` says of the native ops, and that it is so."""

import re

import tensorflow as tf
from tensorflow.python.framework import kernels

import tf_slipstream
from tf_slipstream.ops import _library

VERSION = ".".join(tf.__version__.split(".")[:2])


def test_it_names_the_version_and_the_architectures_that_the_library_was_built_for():
    info = tf_slipstream.build_info()
    assert info.keys() == {"native", "tensorflow", "cuda", "cuda_archs"}
    assert info["native"] is True
    assert info["tensorflow"] == VERSION
    assert info["cuda"] is bool(info["cuda_archs"])
    assert all(re.fullmatch(r"\d+a?(-real|-virtual)?", arch) for arch in info["cuda_archs"])


def test_ops_have_kernels_for_a_gpu_exactly_where_it_says_cuda():
    _library.native_ops()
    devices = ["CPU", "GPU"] if tf_slipstream.build_info()["cuda"] else ["CPU"]
    for op in ("Slipstream>ApplyRows", "Slipstream>LiveSlices"):
        # test_gpu_ops may have loaded emulated ones into this process, with a label.
        found = [
            (kernel.device_type, *constraint.allowed_values.list.type)
            for kernel in kernels.get_registered_kernels_for_op(op).kernel
            for constraint in kernel.constraint
            if constraint.name == "Tindices" and not kernel.label
        ]
        expected = [(device, int(t)) for device in devices for t in (tf.int32, tf.int64)]
        assert sorted(found) == sorted(expected)


def test_tables_on_a_gpu_use_the_native_ops_exactly_where_it_says_cuda():
    on_gpu = _library.native_ops("/job:localhost/replica:0/task:0/device:GPU:0")
    assert (on_gpu is not None) == tf_slipstream.build_info()["cuda"]


def test_without_native_ops_it_names_none():
    with _library.fallback():
        info = tf_slipstream.build_info()
    assert info == {"native": False, "tensorflow": None, "cuda": False, "cuda_archs": []}


def test_a_result_is_the_callers_own():
    tf_slipstream.build_info()["cuda_archs"].append("0")
    assert "0" not in tf_slipstream.build_info()["cuda_archs"]
