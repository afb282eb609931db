"""What the tests of several click logs share."""

import numpy as np


def join(batches):
    """Joins `((dense, ids), label)` batches to `(dense, ids, label)`."""
    features, labels = zip(*batches, strict=True)
    dense, ids = zip(*features, strict=True)
    return np.concatenate(dense), np.concatenate(ids), np.concatenate(labels)
