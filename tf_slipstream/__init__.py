"""Faster training of recommender models in TensorFlow/Keras, without making the model worse.

What users import. Importing it loads no TensorFlow: a public name is loaded when it is first used,
so that `tf-slipstream` starts at once, on hosts without TensorFlow as well. To add a public name,
list it in `_HOMES` and `__all__`, and import it below for editors.

Keras finds the classes of a saved model by names that are registered when our modules are imported.
That happens here if TensorFlow or Keras was imported before, else when a name that needs it is
first used. So import Keras first, or use a name, before `load_model`.
"""

import importlib
import sys
import typing

if typing.TYPE_CHECKING:
    from tf_slipstream import data, distribute, export
    from tf_slipstream.callbacks import (
        Alarm,
        AlarmError,
        AlarmEvent,
        SkipGuard,
        SkipHistory,
        SlipstreamMonitor,
    )
    from tf_slipstream.collection import SlipstreamEmbeddingCollection
    from tf_slipstream.comparison.experiment import Experiment, popular_share
    from tf_slipstream.copying import copy_training
    from tf_slipstream.embedding import SlipstreamEmbedding
    from tf_slipstream.ops import build_info
    from tf_slipstream.optimizer import SlipstreamOptimizer
    from tf_slipstream.policy import StalenessPolicy
    from tf_slipstream.resizing import resize
    from tf_slipstream.row_wise_adagrad import RowWiseAdagrad
    from tf_slipstream.selection import (
        InputSelector,
        Pilot,
        SelectionStats,
        SelectiveModel,
        WideModel,
    )
    from tf_slipstream.state.stats import SkipStats
    from tf_slipstream.swapping import swap_in, swap_out
    from tf_slipstream.vocabulary import DynamicVocabulary, VocabularyStats

__version__ = "0.1.0"

__all__ = [
    "Alarm",
    "AlarmError",
    "AlarmEvent",
    "DynamicVocabulary",
    "Experiment",
    "InputSelector",
    "Pilot",
    "RowWiseAdagrad",
    "SelectionStats",
    "SelectiveModel",
    "SkipGuard",
    "SkipHistory",
    "SkipStats",
    "SlipstreamEmbedding",
    "SlipstreamEmbeddingCollection",
    "SlipstreamMonitor",
    "SlipstreamOptimizer",
    "StalenessPolicy",
    "VocabularyStats",
    "WideModel",
    "build_info",
    "copy_training",
    "data",
    "distribute",
    "export",
    "popular_share",
    "resize",
    "swap_in",
    "swap_out",
]

# By name, the module that has it; of a module that is public itself, its own.
_HOMES = {
    "Alarm": "callbacks",
    "AlarmError": "callbacks",
    "AlarmEvent": "callbacks",
    "DynamicVocabulary": "vocabulary",
    "Experiment": "comparison.experiment",
    "InputSelector": "selection",
    "Pilot": "selection",
    "RowWiseAdagrad": "row_wise_adagrad",
    "SelectionStats": "selection",
    "SelectiveModel": "selection",
    "SkipGuard": "callbacks",
    "SkipHistory": "callbacks",
    "SkipStats": "state.stats",
    "SlipstreamEmbedding": "embedding",
    "SlipstreamEmbeddingCollection": "collection",
    "SlipstreamMonitor": "callbacks",
    "SlipstreamOptimizer": "optimizer",
    "StalenessPolicy": "policy",
    "VocabularyStats": "vocabulary",
    "WideModel": "selection",
    "build_info": "ops",
    "copy_training": "copying",
    "data": "data",
    "distribute": "distribute",
    "export": "export",
    "popular_share": "comparison.experiment",
    "resize": "resizing",
    "swap_in": "swapping",
    "swap_out": "swapping",
}
# Whose classes Keras must know by name.
_REGISTERED = ("collection", "embedding", "optimizer", "row_wise_adagrad", "selection")
_REGISTERED += ("vocabulary",)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    value = globals()[name] = home if name == _HOMES[name] else getattr(home, name)
    _register()
    return value


def __dir__():
    return [*__all__, "__version__"]


def _register():
    """Registers our classes with Keras, if there is a TensorFlow or Keras to do it for."""
    if any(sys.modules.get(name) for name in ("tensorflow", "keras", "tf_keras")):
        for name in _REGISTERED:
            importlib.import_module(f"{__name__}.{name}")


_register()
