"""scikit-build-core, asking for a TensorFlow to build against only where none is installed."""

from scikit_build_core import build as _backend
from scikit_build_core.build import *  # noqa: F403
from tensorflow_flags import installed_tensorflow

# As `dependencies` in pyproject.toml.
_TENSORFLOW = "tensorflow>=2.18,<3"


def get_requires_for_build_wheel(config_settings=None):
    return _backend.get_requires_for_build_wheel(config_settings) + _needed()


def get_requires_for_build_editable(config_settings=None):
    return _backend.get_requires_for_build_editable(config_settings) + _needed()


def _needed():
    return [] if installed_tensorflow() else [_TENSORFLOW]
