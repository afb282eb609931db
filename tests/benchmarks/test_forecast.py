"""Checks that the forecast's benchmark puts a forecast beside what training did."""

import re

from tests.benchmarks.programs import run


def test_it_prints_what_was_expected_and_what_was_done(tmp_path):
    options = ["--examples", 131_072, "--test-examples", 1024, "--cardinalities", 300, 100, 50]
    options += ["--optimizer", "adagrad", "--configurations", "aggressive"]
    printed = run("forecast.py", tmp_path, *options)
    row = re.findall(r"^\| long_tail \| adagrad \| `aggressive` \|(.*)\|$", printed, re.M)[0]
    expected, trained, most = (
        [float(share) for share in re.findall(r"([\d.]+)%", cell)] for cell in row.split("|")
    )
    assert all(0 < one <= bound for one, bound in zip(expected, most, strict=True))
    assert all(0 < one <= bound for one, bound in zip(trained, most, strict=True))
