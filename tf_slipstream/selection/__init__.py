"""Choosing the inputs that a model trains on: docs/guide/choosing_inputs.md.

Belongs here: the pilot, which predicts an input's label at next to no cost; how likely an input is
kept, and what corrects the loss for it; the Keras model around the user's that trains on those
kept. To add a way of choosing: a function in `probabilities.py` and its name in `METHODS`.
"""

from tf_slipstream.selection.pilot import Pilot
from tf_slipstream.selection.selective_model import SelectiveModel
from tf_slipstream.selection.selector import InputSelector
from tf_slipstream.selection.stats import SelectionStats
from tf_slipstream.selection.wide_model import WideModel

__all__ = ["InputSelector", "Pilot", "SelectionStats", "SelectiveModel", "WideModel"]
