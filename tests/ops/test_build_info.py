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
    for op in ("Slipstream>ApplyRows", "Slipstream>LiveSlices"):
        devices = [k.device_type for k in kernels.get_registered_kernels_for_op(op).kernel]
        assert sorted(set(devices)) == ["CPU", "GPU"][: 1 + tf_slipstream.build_info()["cuda"]]
        assert len(devices) == 2 * len(set(devices))  # int32 and int64 ids


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
