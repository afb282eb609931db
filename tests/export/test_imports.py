"""What an import loads, and that names mean the same whatever was imported before."""

import importlib
import json
import pathlib
import pkgutil
import resource
import subprocess
import sys
import types

import pytest

import tf_slipstream
from tests.export.processes import run_cli
from tests.models import click_data, click_model, embedding_of, fit, random_table
from tf_slipstream import SlipstreamOptimizer, export
from tf_slipstream._compat import IS_KERAS_3, keras

ROOT = pathlib.Path(__file__).parents[2]
KERAS = "keras" if IS_KERAS_3 else "tf_keras"
HEAVY = ("tensorflow", "keras", "tf_keras", "numpy", "google.protobuf")
# Names that need no TensorFlow.
LIGHT = ("SkipStats", "StalenessPolicy", "export")


def run(code):
    """Runs Python in a process of its own; returns what it prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(code):
    """Returns which of `HEAVY` are loaded after some code."""
    return set(json.loads(run(f"{code}\nimport json, sys\nprint(json.dumps([*sys.modules]))"))) & {
        *HEAVY
    }


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import tf_slipstream; tf_slipstream.__version__; dir(tf_slipstream)") == set()


def test_names_that_need_no_tensorflow_load_none():
    names = "; ".join(f"tf_slipstream.{name}" for name in LIGHT)
    assert loaded_by(f"import tf_slipstream; {names}") == set()
    assert loaded_by("from tf_slipstream import export; export.apply_delta") == {"numpy"}


def test_the_program_starts_at_once():
    """Measured in seconds of the processor, which do not depend on what else runs."""

    def seconds():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    program = str(pathlib.Path(sys.executable).with_name("tf-slipstream"))
    took = []
    for _ in range(3):
        before = seconds()
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60)
        took.append(seconds() - before)
        assert done.stdout == f"tf-slipstream {tf_slipstream.__version__}\n"
    assert min(took) < 0.3
    assert loaded_by("import tf_slipstream.cli") == set()


def test_all_names_are_there_in_dir_and_for_star_imports():
    assert set(tf_slipstream.__all__) == set(tf_slipstream._HOMES) < set(dir(tf_slipstream))
    code = "from tf_slipstream import *; print(sorted(name for name in dir() if name[0] != '_'))"
    assert run(code).splitlines()[-1] == str(tf_slipstream.__all__)
    assert set(export.__all__) == set(export._HOMES) == set(dir(export))
    for package in (tf_slipstream, export):
        for name in package.__all__:
            assert getattr(package, name).__name__.rpartition(".")[2] == name
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            _ = package.nothing


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns the files of a model with a layer and an optimizer of ours."""
    folder = tmp_path_factory.mktemp("saved")
    optimizer = SlipstreamOptimizer(keras.optimizers.Adam(0.1))
    model = click_model(embedding_of(random_table(), name="user", policy="default"), optimizer)
    fit(model, click_data())
    files = ["model.keras", "model.h5"] if IS_KERAS_3 else ["model.keras", "model.h5", "model"]
    for name in files:
        model.save(folder / name)
    return [str(folder / name) for name in files]


ORDERS = {
    "Keras first": f"import {KERAS} as keras; import tf_slipstream",
    "TensorFlow first": "import tensorflow as tf; import tf_slipstream; keras = tf.keras",
    "a part of ours first": f"import tf_slipstream.export; import {KERAS} as keras; "
    "tf_slipstream.export; tf_slipstream.SkipStats",
    "a name after it": f"import tf_slipstream; import {KERAS} as keras; "
    "tf_slipstream.SlipstreamEmbedding",
}


@pytest.mark.parametrize("imports", ORDERS.values(), ids=ORDERS)
def test_keras_knows_our_classes_in_every_kind_of_file(imports, saved):
    code = f"""
{imports}
for path in {saved}:
    model = keras.models.load_model(path)
    print(type(model.layers[1]).__name__, type(model.optimizer).__name__)
"""
    lines = run(code).splitlines()
    assert lines[-len(saved) :] == ["SlipstreamEmbedding SlipstreamOptimizer"] * len(saved)


PACKAGES = sorted(
    module.name
    for module in pkgutil.walk_packages(tf_slipstream.__path__, "tf_slipstream.")
    if module.ispkg
)


@pytest.mark.parametrize("package", ["tf_slipstream", *PACKAGES])
def test_no_module_hides_a_name_of_its_package(package):
    """Importing a module sets its name in the package, whatever that was before."""
    package = importlib.import_module(package)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    for name in modules & set(getattr(package, "__all__", ())):
        assert isinstance(getattr(package, name), types.ModuleType), name


def test_functions_are_functions_after_their_modules_were_imported():
    """In the orders that once made them modules: a name used, then its modules imported again."""
    # Each in a fork of a process that has imported TensorFlow, which takes seconds.
    code = f"""
import importlib, os, pkgutil, sys
import tensorflow, {KERAS}
for first in ("tf_slipstream.delta.apply", "tf_slipstream.export.deltas", "tf_slipstream.cli"):
    if process := os.fork():
        assert os.waitpid(process, 0)[1] == 0
        continue
    importlib.import_module(first)
    from tf_slipstream import export
    for name in export.__all__:
        getattr(export, name)
    for module in pkgutil.iter_modules(export.__path__):
        importlib.import_module(f"tf_slipstream.export.{{module.name}}")
    print(first, [name for name in export.__all__ if not callable(getattr(export, name))])
    sys.stdout.flush()
    os._exit(0)
"""
    lines = run(code).splitlines()[-3:]
    assert [line.split(" ", 1)[1] for line in lines] == ["[]"] * 3


def test_a_host_without_tensorflow_has_what_needs_none():
    result = run_cli("--version", before="import tf_slipstream.export as e; e.apply_delta")
    assert result.returncode == 0, result.stderr
    for name in ("DeltaTracker", "save_version"):
        before = f"import tf_slipstream.export as e; e.{name}"
        assert "tensorflow is imported" in run_cli("--version", before=before).stderr
