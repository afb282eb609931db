"""Publishing: SavedModel versions for TensorFlow Serving, and deltas of what changed since one.

What is needed to publish a model while it trains: which rows changed, signatures, checks of ops.
What is on the disk, and what makes the next version of it, is in `delta`, which needs no
TensorFlow. To add a name for users, list it in `_HOMES` and import it below for editors; no module
here may have the name of a function, because importing it would hide the function.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from tf_slipstream.delta.apply import apply_delta
    from tf_slipstream.delta.errors import ExportError
    from tf_slipstream.export.deltas import save_delta
    from tf_slipstream.export.stock_ops import check_stock_ops
    from tf_slipstream.export.tracker import DeltaTracker
    from tf_slipstream.export.versions import save_version

# Imported when first used, so that a serving host never imports TensorFlow.
_HOMES = {
    "DeltaTracker": "tf_slipstream.export.tracker",
    "ExportError": "tf_slipstream.delta.errors",
    "apply_delta": "tf_slipstream.delta.apply",
    "check_stock_ops": "tf_slipstream.export.stock_ops",
    "save_delta": "tf_slipstream.export.deltas",
    "save_version": "tf_slipstream.export.versions",
}

__all__ = [
    "DeltaTracker",
    "ExportError",
    "apply_delta",
    "check_stock_ops",
    "save_delta",
    "save_version",
]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__():
    return __all__
