"""Checks which tests `make test` leaves out."""

import pytest

from tests import thorough
from tests.conftest import ENTRIES_OF_NONE


def test_each_entry_is_the_name_of_a_test(pytestconfig):
    if any("::" in argument for argument in pytestconfig.args):
        pytest.skip("a part of a file was asked for, so others of its tests are not known")
    assert pytestconfig.stash[ENTRIES_OF_NONE] == []


NAMES = [f"delta/test_a.py::test_{name}[{i}]" for name in ("one", "two") for i in range(5)]
NAMES += ["delta/test_a.py::test_alone", "policy/test_swinging.py::test_some", "analysis/a.py::b"]


def test_keras_3_leaves_what_is_listed():
    assert thorough.thorough(NAMES, True)[0] == {"policy/test_swinging.py::test_some"}


def test_tf_keras_runs_two_in_five_cases_and_others_of_each_function():
    left, _ = thorough.thorough(NAMES, False)
    run = [name for name in NAMES if name not in left]
    expected = ["one[0]", "one[3]", "two[1]", "two[4]", "alone"]
    assert run == [f"delta/test_a.py::test_{name}" for name in expected]


def test_an_entry_of_a_file_without_such_a_test_is_told(monkeypatch):
    monkeypatch.setattr(thorough, "ALWAYS", "\ndelta/test_a.py::test_gone\ndelta/b.py\n")
    assert thorough.thorough(NAMES, True)[1] == ["delta/test_a.py::test_gone"]
