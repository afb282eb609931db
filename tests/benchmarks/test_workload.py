"""What benchmarks share: cases, ids, the check of a subject, reports."""

import argparse
import json

import numpy as np
import pytest

from tests.benchmarks import programs

import cases  # isort: skip (programs.py puts its folder on the path)
import equations  # isort: skip
import report  # isort: skip
import runner  # isort: skip
import workload  # isort: skip


@pytest.mark.parametrize("grid", cases.GRIDS)
def test_cases_of_a_grid_have_different_names(grid):
    names = [case.name for case in cases.GRIDS[grid]()]
    assert len(set(names)) == len(names) > 1


def test_a_table_says_how_many_of_which_size():
    assert cases.Case("4*250x32").cardinalities == (250,) * 4
    assert len(cases.Case("criteo_kaggle@0.001x16").cardinalities) == 26
    with pytest.raises(ValueError, match="1000000x32"):
        _ = cases.Case("1Mx32").cardinalities


def test_uniform_ids_are_all_about_as_frequent_and_skewed_ones_are_not():
    rng = np.random.default_rng(0)
    uniform = np.bincount(workload.zipf_ids(rng, 50, 0.0, 10_000), minlength=50)
    skewed = np.bincount(workload.zipf_ids(rng, 50, 1.3, 10_000), minlength=50)
    assert 120 < uniform.min() and uniform.max() < 280
    assert skewed.max() > 2000


class NumPyStep:
    """A subject that does what the equation says, `factor` times."""

    factor = 1.0

    def __init__(self, args):
        rng = np.random.default_rng(0)
        self.args, self.convention = args, equations.Convention()
        self.rows = [rng.random((num_rows, args.dim)) for num_rows in args.cardinalities]
        self.start, self.num_steps = [table.copy() for table in self.rows], 0

    def set_upstream(self, upstream):
        self.upstream = upstream

    def prepare(self, ids):
        return ids

    def step(self, batch):
        self.num_steps += 1
        for index, (start, ids) in enumerate(zip(self.start, batch)):
            end = equations.train(
                self.args.rule, self.convention, start, ids, self.upstream[index], self.num_steps
            )
            self.rows[index] = start + self.factor * (end - start)

    def tables(self):
        return self.rows


class WrongStep(NumPyStep):
    factor = 1.001


@pytest.mark.parametrize("rule", equations.RULES)
@pytest.mark.parametrize("bag", [1, 10])
def test_a_subject_that_is_wrong_is_found_before_it_is_timed(rule, bag):
    args = argparse.Namespace(rule=rule, cardinalities=[9, 9], dim=4, lookups=8, bag=bag)
    workload.check(NumPyStep, args)
    with pytest.raises(AssertionError):
        workload.check(WrongStep, args)


@pytest.fixture
def results_file(tmp_path):
    """Two runs of a grid by two subjects; the second run is ten times as fast."""
    path = tmp_path / "results.jsonl"
    lines = [
        {"case": case.name, "subject": subject, "round": index, "seconds": [seconds] * 3}
        for factor in (10, 1)
        for case in cases.lookups()
        for index in range(2)
        for subject, seconds in (("slipstream", factor * 0.004), ("limit", factor * 0.002))
    ]
    lines.append({"case": cases.lookups()[0].name, "subject": "torch", "round": 0, "skipped": "no"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_report_has_the_latest_run_and_the_ratio_to_ours(results_file):
    found = runner.load([results_file])
    assert all(len(rounds) == 2 for (_, name), rounds in found.items() if name != "torch")
    header, _, *rows = report.table(found, "slipstream")
    assert header == "| case | slipstream | limit | torch |"
    assert len(rows) == len(cases.lookups())
    assert "4.00 (4.00–4.00) | 2.00 (2.00–2.00), 0.50x" in rows[0]


def test_a_plot_is_drawn_of_the_grids_that_a_file_has(results_file, tmp_path):
    pytest.importorskip("matplotlib", reason="an extra: pip install .[bench]")
    programs.run("plot.py", tmp_path, results_file, "--output", tmp_path / "scaling.svg")
    assert "</svg>" in (tmp_path / "scaling.svg").read_text()
