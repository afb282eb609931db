"""The short form of `large_cluster`: a table that each server has a part of."""

import pytest

from tests.reliability import large_cluster


@pytest.mark.parametrize("rule", ["Adagrad", "SGD"])
def test_a_table_is_trained_restored_moved_and_served_to_the_bit(rule, tmp_path):
    given = ["--rows", "120000", "--batch", "512", "--steps", "24", "--rule", rule]
    args = large_cluster.arguments(given)
    large_cluster.check(args, large_cluster.run(args, tmp_path, lambda line: None))
