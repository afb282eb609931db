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
