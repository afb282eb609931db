"""Checks what a source archive and a wheel contain, and that the one is built from the other."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import pytest
import tensorflow as tf

import tf_slipstream
from tf_slipstream._compat import IS_KERAS_3
from tools import tensorflow_versions as versions

pytest.importorskip("scikit_build_core", reason="the build backend; `make setup` installs it")
pytestmark = pytest.mark.skipif(not IS_KERAS_3, reason="packages are the same for both Kerases")

ROOT = pathlib.Path(__file__).parents[1]
MINOR = ".".join(tf.__version__.split(".")[:2])
FOLDERS = ("custom_ops", "tests", "tf_slipstream")
FILES = (".gitignore", "LICENSE", "Makefile", "README.md", "pyproject.toml", "setup.cfg")
LIBRARY = f"tf_slipstream/ops/_slipstream_ops_tf{MINOR}.so"
# What a working folder holds beside the sources.
LEFTOVERS = ("build/a.o", "tf_slipstream/ops/_slipstream_ops_tf1.0.so", ".venv/lib/a.py")
SUPPORTED = list(versions.TENSORFLOW_VERSIONS)
WITHOUT_COMPILER = os.environ | {"CXX": "/nonexistent"}
# Of the CUDA kernels, if nvcc is there, one architecture: to compile for all takes minutes.
QUICKLY = os.environ | {"CUDAARCHS": os.environ.get("CUDAARCHS", "80")}
WITHOUT_NATIVE_OPS = ("-C", "cmake.define.SLIPSTREAM_NATIVE=OFF")


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def source_folder(tmp_path_factory):
    """A copy of what is in version control, and leftovers that belong in no package."""
    folder = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.so")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def source_archive(source_folder, tmp_path_factory):
    sources = files_below(source_folder)
    for name in LEFTOVERS:
        (source_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (source_folder / name).write_bytes(b"\x7fELF")
    folder = tmp_path_factory.mktemp("archive")
    build = "import sys; from scikit_build_core.build import build_sdist as b; b(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=source_folder, check=True)
    (archive,) = folder.iterdir()
    return archive, sources


def build_wheel(source_archive, folder, *options, env=QUICKLY):
    """Builds a wheel without network; returns it, and what was printed if there is none."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"]
    command += [
        "--no-cache-dir",
        "--no-index",
        "--wheel-dir",
        str(folder),
        *options,
        str(source_archive[0]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    return next(folder.glob("*.whl"), None), " ".join((done.stdout + done.stderr).split())


def test_a_source_archive_has_every_source_and_nothing_else(source_archive):
    archive, sources = source_archive
    top = f"tf_slipstream-{tf_slipstream.__version__}"
    with tarfile.open(archive) as tar:
        contents = {m.name.removeprefix(f"{top}/"): tar.extractfile(m).read() for m in tar}
    assert archive.name == f"{top}.tar.gz"
    assert set(contents) == sources | {"PKG-INFO"}
    for content in contents.values():
        content.decode()  # text: raises otherwise


@pytest.fixture(scope="module")
def wheel(source_archive, tmp_path_factory):
    """A wheel from the source archive, built as by pip for the TensorFlow that runs the tests."""
    wheel, printed = build_wheel(source_archive, tmp_path_factory.mktemp("wheel"))
    assert wheel is not None, printed
    return wheel


def test_a_wheel_from_the_source_archive_has_native_ops_that_load(source_archive, wheel, tmp_path):
    platform = re.sub("[-.]", "_", sysconfig.get_platform())
    assert wheel.name == f"tf_slipstream-{tf_slipstream.__version__}-py3-none-{platform}.whl"
    modules = {name for name in source_archive[1] if re.match(r"tf_slipstream/.*\.py$", name)}
    with zipfile.ZipFile(wheel) as packed:
        information = f"tf_slipstream-{tf_slipstream.__version__}.dist-info"
        names = {name for name in packed.namelist() if not name.startswith(information)}
        assert names == modules | {LIBRARY}
        licence = packed.read(f"{information}/licenses/LICENSE")
        assert licence == (ROOT / "LICENSE").read_bytes()
        metadata = packed.read(f"{information}/METADATA").decode()
        assert "License-Expression: Apache-2.0" in metadata
        library = packed.extract(LIBRARY, tmp_path)
    load = "import sys, tensorflow as tf; tf.load_op_library(sys.argv[1]).Slipstream_ApplyRows"
    subprocess.run([sys.executable, "-c", load, library], check=True)


@pytest.mark.skipif("CI" not in os.environ, reason="fetches TensorFlow; .ci/run does it")
def test_a_fresh_environment_without_compiler_runs_the_readme(wheel):
    command = [sys.executable, "tools/matrix.py", "--tensorflow", MINOR, "--wheel", str(wheel)]
    done = subprocess.run([*command, "--tests"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| {MINOR} |" in done.stdout


def test_all_that_names_tensorflow_versions_names_the_same():
    metadata = (ROOT / "pyproject.toml").read_text()
    (lowest,) = set(re.findall(r"(?:tensorflow|tf_keras)>=([\d.]+),<3", metadata))
    backend = (ROOT / "custom_ops" / "build_backend.py").read_text()
    assert lowest == versions.OLDEST and f'"tensorflow>={lowest},<3"' in backend
    (page,) = (ROOT / "docs").rglob("versions.md")
    assert re.findall(r"^\| (2\.\d+) \|", page.read_text(), re.M)[: len(SUPPORTED)] == SUPPORTED
    release = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    assert "tensorflow: [" + ", ".join(f'"{minor}"' for minor in SUPPORTED) + "]" in release
    assert f"--tensorflow {versions.OLDEST} {versions.NEWEST}" in (ROOT / "Makefile").read_text()


def found_tensorflow(python, **environment):
    """Returns what a build by a Python is told of TensorFlow, or the error."""
    command = [python, str(ROOT / "custom_ops" / "tensorflow_flags.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    return done.stdout.strip().split(";") if done.returncode == 0 else done.stderr


def test_a_build_finds_the_tensorflow_that_is_installed_and_says_where_there_is_none(tmp_path):
    folder = pathlib.Path(tf.__file__).parent
    expected = [MINOR, str(folder / "include"), str(folder / "libtensorflow_framework.so.2")]
    assert found_tensorflow(sys.executable) == expected
    # As pip isolates a build: the environment's packages are taken away.
    hide = "import sys; sys.path[:] = [path for path in sys.path if 'site-packages' not in path]"
    (tmp_path / "sitecustomize.py").write_text(hide)
    assert found_tensorflow(sys.executable, PYTHONPATH=str(tmp_path)) == expected
    venv.create(tmp_path / "empty")
    assert "No module" in found_tensorflow(tmp_path / "empty" / "bin" / "python")


def configured(folder, *options, env):
    """Returns what CMake says of the native ops, and the architectures that it builds CUDA for."""
    command = ["cmake", "-S", str(ROOT / "custom_ops"), "-B", str(folder), *options]
    command += [f"-DPython_EXECUTABLE={sys.executable}"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    (said,) = re.findall(r"-- tf_slipstream: (.*)", done.stdout)
    return said


@pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no cmake in PATH")
def test_cmake_says_what_it_builds_and_cuda_is_left_out_on_request_or_without_nvcc(tmp_path):
    assert "CPU only" in configured(tmp_path, "-DSLIPSTREAM_CUDA=OFF", env=QUICKLY)
    # In the same folder: the choice is not kept.
    without = configured(tmp_path, env=QUICKLY | {"CUDACXX": "/nonexistent"})
    assert "CPU only" in without
    if shutil.which("nvcc") is not None:
        assert "with CUDA kernels for 80 " in configured(
            tmp_path, env=QUICKLY | {"CUDAARCHS": "80"}
        )


def test_without_a_compiler_the_error_says_what_to_do(source_archive, tmp_path):
    wheel, printed = build_wheel(source_archive, tmp_path, env=WITHOUT_COMPILER)
    assert wheel is None
    assert "needs a C++17 compiler (g++)" in printed
    assert " ".join(WITHOUT_NATIVE_OPS) in printed


def test_without_native_ops_no_compiler_is_needed(source_archive, tmp_path):
    wheel, printed = build_wheel(
        source_archive, tmp_path, *WITHOUT_NATIVE_OPS, env=WITHOUT_COMPILER
    )
    assert wheel is not None, printed
    with zipfile.ZipFile(wheel) as packed:
        assert "tf_slipstream/ops/_library.py" in packed.namelist()
        assert not [name for name in packed.namelist() if name.endswith(".so")]
