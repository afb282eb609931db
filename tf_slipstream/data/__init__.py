"""Click logs to train on: files of Criteo's, and a synthetic one.

Belongs here: what makes or changes datasets of batches; not models or steps.
To add a log: subclass `ClickLog`, implement `_blocks`, and list the public name in `__all__`.
"""

from tf_slipstream.data.click_log import ClickLog
from tf_slipstream.data.criteo import open_click_log
from tf_slipstream.data.synthetic import (
    CRITEO_KAGGLE_CARDINALITIES,
    SyntheticClickLog,
    criteo_cardinalities,
)

__all__ = [
    "CRITEO_KAGGLE_CARDINALITIES",
    "ClickLog",
    "SyntheticClickLog",
    "criteo_cardinalities",
    "open_click_log",
]
