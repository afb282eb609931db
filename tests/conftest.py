"""What all tests share: quiet and small TensorFlow, repeatable Hypothesis, both kinds of ops."""

import contextlib
import gc
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# On processors with AVX-512 or AMX oneDNN fuses the dense layers of some graphs and not of others,
# which rounds their last bit in two ways; tests compare processes and graphs to the bit.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import hypothesis
import pytest
import tensorflow as tf

from tests.thorough import thorough
from tf_slipstream import _compat
from tf_slipstream.ops import _library

# More than one, so that kernels do run in parallel, and few enough for any machine.
NUM_THREADS = 2
tf.config.threading.set_intra_op_parallelism_threads(NUM_THREADS)
tf.config.threading.set_inter_op_parallelism_threads(NUM_THREADS)
# Replicas of tests/distribute; all else runs on the first.
NUM_DEVICES = 4
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * NUM_DEVICES,
)

# Fixed examples: a failure is there in the next run too, and on every machine.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")

# What asks Keras for nothing is tested once, with Keras 3.
_ONCE = ("analysis", "data", "delta", "ops", "reliability", "test_architecture.py", "test_docs.py")
# Its rules are held to both Kerases' dense updates by ops/test_apply_rows_against_keras.py.
_ONCE += ("update_rules/test_conservation.py",)
_TWICE = ("analysis/test_popularity.py", "data/test_criteo_text.py")
_TWICE += ("ops/test_apply_rows_against_keras.py", "ops/test_bfloat16.py")
# Keras reads and checks batches, saves and restores.
_TWICE += ("reliability/test_bad_batches.py", "reliability/test_kills.py")
_TWICE += ("reliability/test_together.py",)
_TESTS = pathlib.Path(__file__).parent
# For test_thorough.py: entries of thorough.py that are the name of no test.
ENTRIES_OF_NONE = pytest.StashKey()


def pytest_ignore_collect(collection_path):
    if _compat.IS_KERAS_3 or collection_path.is_dir() or _TESTS not in collection_path.parents:
        return None
    path = collection_path.relative_to(_TESTS)
    is_once = path.parts[0] in _ONCE or path.as_posix() in _ONCE
    # None: as any other.
    return (is_once and path.as_posix() not in _TWICE) or None


@pytest.hookimpl(tryfirst=True)  # before -m and -k have taken some away
def pytest_collection_modifyitems(config, items):
    items_by_name = {}
    for item in items:
        if _TESTS in item.path.parents:
            path = item.path.relative_to(_TESTS).as_posix()
            items_by_name[f"{path}::{item.nodeid.partition('::')[2]}"] = item
    left, config.stash[ENTRIES_OF_NONE] = thorough([*items_by_name], _compat.IS_KERAS_3)
    for name in left:
        items_by_name[name].add_marker("thorough")


def pytest_collection_finish():
    # TensorFlow and Keras stay. To go through their objects again and again, looking for garbage,
    # takes a tenth of the tests' time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(params=["native", "fallback"])
def native_or_fallback(request):
    """Runs a test with the native ops, which must be there, and with plain TensorFlow ops."""
    if request.param == "native":
        assert _library.native_ops() is not None, "the native ops are not built"
        context = contextlib.nullcontext()
    else:
        context = _library.fallback()
    with context:
        yield request.param
