"""A bad batch is refused by the table's name, and no variable changes: dense ones neither."""

import numpy as np
import pytest

from tests.reliability import bad_batches


@pytest.mark.parametrize("kind", ["tables", "collection"])
def test_a_bad_id_is_refused_in_each_of_26_tables(kind):
    for place in range(bad_batches.NUM_TABLES):
        bad = (-1, bad_batches.NUM_ROWS, 2**31, -(2**63))[place % 4]
        bad_batches.try_bad_id(kind, place, place % bad_batches.SIZE, bad)


@pytest.mark.parametrize("kind", ["tables", "collection"])
def test_a_number_that_is_not_finite_is_refused(kind):
    for row, bad in enumerate((np.nan, np.inf)):
        bad_batches.try_bad_number(kind, row, bad)


@pytest.mark.parametrize("kind", ["tables", "collection"])
def test_ids_of_a_wrong_kind_are_refused_and_no_examples_do_no_harm(kind):
    bad_batches.try_bad_shapes(kind)
    bad_batches.try_no_examples(kind)


@pytest.mark.parametrize("ends", bad_batches.BAD_ENDS)
def test_bags_whose_ends_make_no_sense_are_refused(ends):
    bad_batches.try_bad_bags(ends)
