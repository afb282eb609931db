"""Publishing: SavedModel versions for TensorFlow Serving, and deltas of what changed since one.

What is needed to write, ship, check and apply versions and deltas; no training, no serving. Modules
that a serving host runs (`apply_delta` and what it imports) need NumPy alone, which a test checks.
To add a name for users, list it in `_MODULES`; to add a file format, put it in a module of its own
beside `delta_file`, on top of `sealed_file`.
"""

import importlib

# Imported when first used, so that a serving host never imports TensorFlow.
_MODULES = {
    "DeltaTracker": "tracker",
    "ExportError": "errors",
    "apply_delta": "apply_delta",
    "check_stock_ops": "stock_ops",
    "save_delta": "save_delta",
    "save_version": "save_version",
}

__all__ = sorted(_MODULES)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    # Where a module is called like its function, importing it has set that name to the module.
    value = globals()[name] = getattr(module, name)
    return value


def __dir__():
    return __all__
