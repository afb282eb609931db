"""Checks of the pages that people read: lines that fit a screen, and links that lead somewhere."""

import pathlib
import re

import pytest

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
