"""The short form of `large_cluster`: a table that each server has a part of."""

from tests.reliability import large_cluster


def test_a_table_is_trained_restored_moved_and_served_to_the_bit(tmp_path):
    args = large_cluster.arguments(["--rows", "120000", "--batch", "512", "--steps", "24"])
    large_cluster.check(args, large_cluster.run(args, tmp_path, lambda line: None))
