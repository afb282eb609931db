"""Faster training of recommender models in TensorFlow/Keras, without making the model worse.

What users import. No logic here; to add a public name, import it and list it in `__all__`.
"""

from tf_slipstream import data, distribute, export
from tf_slipstream.callbacks import SkipGuard, SkipHistory
from tf_slipstream.embedding import SlipstreamEmbedding
from tf_slipstream.ops import build_info
from tf_slipstream.optimizer import SlipstreamOptimizer
from tf_slipstream.policy import StalenessPolicy
from tf_slipstream.row_wise_adagrad import RowWiseAdagrad
from tf_slipstream.state.stats import SkipStats

__version__ = "0.1.0"

__all__ = [
    "RowWiseAdagrad",
    "SkipGuard",
    "SkipHistory",
    "SkipStats",
    "SlipstreamEmbedding",
    "SlipstreamOptimizer",
    "StalenessPolicy",
    "build_info",
    "data",
    "distribute",
    "export",
]
