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


@pytest.mark.skipif(not _compat.IS_KERAS_3, reason="the README's program imports Keras 3")
def test_the_first_program_runs_and_exports(tmp_path):
    program = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3"),
    )
    assert done.returncode == 0, done.stderr
    shown = re.search(r"```text\n(.*?)```", README, re.S).group(1)
    assert form_of(done.stdout) == form_of(shown)
    losses, expected = losses_of(done.stdout), losses_of(shown)
    assert losses == pytest.approx(expected, abs=0.05)
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
