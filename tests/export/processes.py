"""Other processes: a serving host, with or without TensorFlow, and never with our layers."""

import pathlib
import subprocess
import sys

import numpy as np

# Runs the program as on a host that has nothing but NumPy.
_WITHOUT_TENSORFLOW = """
import sys

class Absent:
    names = {"tensorflow", "keras", "tf_keras", "google", "absl", "h5py"}

    def find_spec(self, name, path=None, target=None):
        # No ImportError, which somebody could have expected.
        assert name.partition(".")[0] not in self.names, f"{name} is imported"

sys.meta_path.insert(0, Absent())
BEFORE
from tf_slipstream.cli import main
sys.exit(main(sys.argv[1:]))
"""

# Loads SavedModels and answers requests, in a process that has TensorFlow and not us. A line of its
# input is a request: folder, file of inputs, file to write.
_SERVE = """
import sys
import numpy as np
import tensorflow as tf

for line in sys.stdin:
    folder, inputs, outputs = line.strip().split("\\t")
    answers = tf.saved_model.load(folder).signatures["serving_default"](**np.load(inputs))
    answers = {name: answer.numpy() for name, answer in answers.items()}
    # NumPy files hold no Python objects.
    np.savez(outputs, **{n: a.astype("S") if a.dtype == object else a for n, a in answers.items()})
    assert not [name for name in sys.modules if name.startswith("tf_slipstream")]
    print(flush=True)
"""


class ServingProcess:
    """A process with TensorFlow and without us.

    Args:
        folder: Where it gets its requests.
    """

    def __init__(self, folder):
        self._folder = folder
        # Not in the repository, where it could import us.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answers(self, saved_model, inputs):
        """Returns what `serving_default` answers: dict from output to array."""
        paths = [self._folder / "inputs.npz", self._folder / "outputs.npz"]
        np.savez(paths[0], **inputs)
        print(saved_model, *paths, sep="\t", file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == "\n", "it failed; its error is above"
        return dict(np.load(paths[1]))

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)


def command_of_cli(before=""):
    """Returns the command of `tf-slipstream` in a process where TensorFlow cannot be imported.

    Args:
        before: Python that runs first, to make something fail.
    """
    return [sys.executable, "-c", _WITHOUT_TENSORFLOW.replace("BEFORE", before)]


def run_cli(*arguments, before=""):
    """Runs `tf-slipstream`, see `command_of_cli`.

    Args:
        *arguments: Of the command line.
        before: Python that runs first, to make something fail.

    Returns:
        `subprocess.CompletedProcess` with text output.
    """
    command = [*command_of_cli(before), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def apply_delta(base, delta, out, **kwargs):
    """Runs `tf-slipstream apply-delta`."""
    return run_cli("apply-delta", "--base", base, "--delta", delta, "--out", out, **kwargs)


def contents(folder):
    """Returns what is in a folder: dict from relative path to bytes."""
    paths = [path for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
