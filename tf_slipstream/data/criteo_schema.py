"""What Criteo's formats have in common: columns, and how a count becomes a feature."""

import numpy as np

from tf_slipstream.data.click_log import MAX_CARDINALITY

DENSE_COLUMNS = tuple(f"I{number}" for number in range(1, 14))
ID_COLUMNS = tuple(f"C{number}" for number in range(1, 27))
COLUMNS = ("label", *DENSE_COLUMNS, *ID_COLUMNS)


def check_hash_size(hash_size):
    """Returns `hash_size` as an int, or raises a `ValueError` if no two ids or too many are below.

    A NumPy integer would decide the dtype of what is reduced by it, or overflow.
    """
    if not isinstance(hash_size, (int, np.integer)) or not 2 <= hash_size <= MAX_CARDINALITY:
        raise ValueError(
            f"Expected `hash_size` to be an integer in [2, {MAX_CARDINALITY}]; got {hash_size!r}. "
            f"Change `hash_size`."
        )
    return int(hash_size)


def log_counts(counts):
    """Returns `log(1 + count)` as float32, and 0 where a count is NaN, or negative as some are."""
    return np.log1p(np.fmax(counts, 0).astype(np.float32))
