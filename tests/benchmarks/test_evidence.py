"""The tables and the picture of the pages are those of the results that are kept."""

import json

import pytest

from tests.benchmarks.programs import run

import evidence  # isort: skip (programs.py puts its folder on the path)
import picture  # isort: skip

MADE = "made by other numbers than are kept: run benchmarks/evidence.py and benchmarks/picture.py"


@pytest.mark.parametrize("page", evidence.PAGES, ids=lambda page: page.name)
def test_tables_are_made_of_the_results_that_are_kept(page):
    assert evidence.with_tables(page.read_text()) == page.read_text(), MADE


def test_every_table_is_on_a_page():
    pages = "".join(page.read_text() for page in evidence.PAGES)
    for name in evidence.TABLES:
        assert pages.count(f"<!-- table {name} -->\n|") == 1, name


def test_the_picture_is_drawn_of_the_results_that_are_kept():
    assert picture.drawn(evidence.embedding_steps()) == picture.PICTURE.read_text(), MADE


def test_a_number_that_differs_is_seen():
    page = next(page for page in evidence.PAGES if page.name == "parity.md").read_text()
    assert evidence.with_tables(page.replace("| 0.7475 |", "| 0.7575 |")) == page


def test_what_is_kept_of_a_run_replaces_an_earlier_one(tmp_path):
    settings = {"data": "long_tail", "optimizer": "adam", "learning_rate": 0.01, "batch_size": 64}
    settings |= {"examples": None, "epochs": 1, "seed": 3, "configuration": {"stock": "stock"}}
    values = dict.fromkeys(evidence.KEPT_RESULTS, 0.123456789012)
    line = {"name": "stock", "family": "stock", "settings": settings, "result": values}
    line |= {"time": 0.0, "machine": {"cpu": "a"}, "seconds": 1.0}
    source, kept = tmp_path / "results.jsonl", tmp_path / "kept.jsonl"
    for auc in (0.5, 0.75):
        values["auc"] = auc
        source.write_text(json.dumps(line) + "\n")
        evidence.keep([source], kept)
    (found,) = map(json.loads, kept.read_text().splitlines())
    assert found["result"]["auc"] == 0.75 and found["result"]["log_loss"] == 0.12345679
    assert found["date"] == "1970-01-01" and "examples" not in found["settings"]
    # What reads the benchmark's own lines reads these.
    printed = run("parity.py", tmp_path, "--summary", "--output", kept)
    assert "| long_tail | 1 | adam, 0.01 | 1 | 0.7500 |" in printed
