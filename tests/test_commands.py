"""Holds the status page's list of commands to the README and the guide."""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
STATUS = (ROOT / "docs" / "status.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "migration").glob("*.md"))
PROGRAMS = "make|python|pip|tf-slipstream|tensorboard|tensorflow_model_server|curl|sh"


def commands(page):
    """Yields the commands that a page shows, in blocks and within lines."""
    text = page.read_text()
    for kind, block in re.findall(r"```(sh|console)\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ ") or kind == "sh":
                yield line.removeprefix("$ ")
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    yield from re.findall(rf"`((?:{PROGRAMS}) [^`]+)`", prose)


def head(command):
    """Returns what names a command: `make demo`, `python -m module`, `pip install name`."""
    command = re.sub(r"^(\w+=('[^']*'|\S+)\s+)+", "", command.split("  #")[0].strip())
    words = command.split()
    length = {"pip": len(words), "curl": 1, "tensorflow_model_server": 1}.get(words[0], 2)
    return " ".join(words[: 3 if words[1:2] == ["-m"] else length])


def listed():
    """Returns the commands of the status page, and the last cells beside them."""
    table = STATUS.split("| command | run by |")[1]
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", table, re.M)
    return {name: cell for names, cell in rows for name in re.findall(r"`([^`]+)`", names)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_on_the_status_page(page):
    names = {head(name) for name in listed()}
    assert names > {"make demo", "pip install .", "python -m tf_slipstream.server", "curl"}
    missing = {head(command) for command in commands(page)} - names
    assert not missing


def test_what_runs_a_command_exists_or_it_is_said_that_nothing_does():
    for name, cell in listed().items():
        files = re.findall(r"`([\w./]+/[\w./]+)`", cell)
        assert files or "not run" in cell or "`make " in cell, name
        for file in files:
            assert (ROOT / file).exists(), file


def test_make_help_tells_of_the_commands_that_the_pages_show():
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = {head(c) for page in PAGES for c in commands(page) if c.startswith("make ")}
    told = set(re.findall(r"^make [\w-]+", done.stdout, re.M)) | {"make help"}
    assert shown <= told
