"""Checks that what the README shows works."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from tf_slipstream import _compat

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
# What the later programs take as given.
DATASET = """
import tensorflow as tf
dataset = tf.data.Dataset.from_tensor_slices((ids, ids[:, 1:] % 2)).batch(2048).take(4)
"""


@pytest.mark.skipif(not _compat.IS_KERAS_3, reason="the README's program imports Keras 3")
def test_the_programs_run_and_the_first_exports(tmp_path):
    program, *more = re.findall(r"```python\n(.*?)```", README, re.S)
    program += 'print("the first program ends here")\n' + DATASET + "".join(more)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3"),
    )
    assert done.returncode == 0, done.stderr
    shown = re.search(r"```text\n(.*?)```", README, re.S).group(1)
    printed, _, _ = done.stdout.partition("the first program ends here")
    # Older releases of Keras print what they exported, though told not to.
    printed, _, _ = printed.partition("Saved artifact")
    assert form_of(printed) == form_of(shown)
    losses, expected = losses_of(printed), losses_of(shown)
    assert losses == pytest.approx(expected, abs=0.01)  # sums are ordered otherwise elsewhere
    assert (tmp_path / "served" / "saved_model.pb").exists()


def losses_of(output):
    return [float(loss) for loss in re.findall(r"loss: ([\d.]+)", output)]


def form_of(output):
    """Returns what a program printed without times and losses."""
    return re.sub(r"\d+(?=m?s)|\d+\.\d+", "N", output).strip()


def test_every_command_and_page_that_it_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([\w-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for page in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / page.partition("#")[0]).exists(), page
