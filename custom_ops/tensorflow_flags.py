"""Finds the TensorFlow to build for, and prints what CMake needs of it, as a CMake list.

`tensorflow_flags.py FOLDER` takes the `tensorflow` folder of an unpacked wheel. Nothing
of TensorFlow is imported: a wheel for several versions is built where at most one of them runs.
"""

import importlib.metadata
import pathlib
import subprocess
import sys


def main(arguments):
    folder = pathlib.Path(arguments[0]) if arguments else installed_tensorflow()
    if folder is None:
        sys.exit("No module named 'tensorflow'")
    version = ".".join(version_of(folder).split(".")[:2])
    print(version, folder / "include", folder / "libtensorflow_framework.so.2", sep=";")


def installed_tensorflow():
    """Returns the folder of the TensorFlow that is installed, or None.

    pip builds in an environment of its own (`--no-build-isolation` prevents it). What it builds is
    for the TensorFlow outside, where Python looks without pip's PYTHONPATH.
    """
    return _folder_of(sys.executable) or _folder_of(sys.executable, "-I")


def version_of(folder):
    """Returns the version of the TensorFlow in a folder, as its metadata beside it says."""
    # pip's finder of metadata looks in sys.path alone.
    before, sys.path[:] = sys.path[:], [str(folder.parent)]
    try:
        (name, *_) = importlib.metadata.packages_distributions().get("tensorflow", [None])
        if name is None:
            sys.exit(f"{folder.parent} has no metadata (.dist-info) of TensorFlow beside {folder}")
        return importlib.metadata.version(name)
    finally:
        sys.path[:] = before


def _folder_of(*python):
    find = "import importlib.util as u; s = u.find_spec('tensorflow'); print(s and s.origin or '')"
    done = subprocess.run([*python, "-c", find], stdout=subprocess.PIPE, text=True, check=True)
    return pathlib.Path(done.stdout.strip()).parent if done.stdout.strip() else None


if __name__ == "__main__":
    main(sys.argv[1:])
