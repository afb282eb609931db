"""Checks of the pages that people read: lines that fit a screen, and links that lead somewhere."""

import pathlib
import re
import subprocess
import sys

import pytest

import tf_slipstream

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
MAX_LENGTH = 100


def prose_of(page):
    """Yields number and text of the lines that are neither in a table nor in a code block."""
    is_code = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code and not line.startswith("|"):
            yield number, line
    assert not is_code, "a code block has no end"


def is_one_link(line):
    return re.fullmatch(r"\s*(?:[-*] |\d+\. )?\[[^\]]*\]\([^)]*\)\W*", line) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_of_prose_is_longer_than_100_characters(page):
    lines = [
        f"{page.relative_to(ROOT)}:{number}: {line}"
        for number, line in prose_of(page)
        if len(line) > MAX_LENGTH and not is_one_link(line)
    ]
    assert not lines, "\n".join(lines)


def anchors_of(page):
    headings = [line.lstrip("# ") for _, line in prose_of(page) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http:", "https:")):
            continue
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        assert path.exists(), link
        if anchor and path.suffix == ".md":
            assert anchor in anchors_of(path), link


def code_of_the_package():
    """Returns all sources as one text, with strings that follow each other joined."""
    folders = ("tf_slipstream/**/*.py", "custom_ops/tf/*.cc", "custom_ops/kernels/*.cc")
    text = "\n".join(path.read_text() for folder in folders for path in ROOT.glob(folder))
    # A placeholder, and what C++ puts between two strings.
    text = re.sub(r"\{[^{}\n]*\}", "...", re.sub(r'"\s*\n\s*f?"', "", text))
    return text.replace("\\n", " ")


def test_messages_of_the_troubleshooting_page_are_those_of_the_code():
    page = (ROOT / "docs" / "guide" / "troubleshooting.md").read_text()
    messages = re.findall(r"^### (.*)$", page, re.M)
    assert len(messages) > 20
    of_keras = ("Unknown layer: SlipstreamEmbedding",)
    code = code_of_the_package()
    for message in messages:
        # Pieces between names and numbers; a single word or bracket says nothing.
        words = message.removeprefix("tf_slipstream ")  # begins every warning of the loader
        pieces = [piece.strip(" '`:)") for piece in words.split("...")]
        long = [piece for piece in pieces if len(piece) > 8]
        assert long, message
        for piece in long:
            assert message in of_keras or piece in code, piece


def test_every_public_name_has_a_place_in_the_reference():
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    there = set(re.findall(r"^::: tf_slipstream\.([\w.]+)$", pages, re.M))
    homes = {name.partition(".")[0] for name in there}
    assert homes == set(tf_slipstream.__all__)
    for module in (tf_slipstream.data, tf_slipstream.distribute, tf_slipstream.export):
        names = {name for name in module.__all__ if callable(getattr(module, name))}
        short = module.__name__.rpartition(".")[2]
        assert {f"{short}.{name}" for name in names} <= there


def test_the_site_is_built_and_has_no_broken_link(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra `docs`; `make setup` installs it")
    pytest.importorskip("mkdocstrings", reason="the extra `docs`; `make setup` installs it")
    # With --quiet no warning would fail it.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    command += ["--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    layers = (tmp_path / "site" / "reference" / "layers.html").read_text()
    assert "SlipstreamEmbedding" in layers and "mask_zero" in layers
