"""Benchmarks choose their Keras themselves, so that once is enough."""

from tf_slipstream import _compat

collect_ignore_glob = [] if _compat.IS_KERAS_3 else ["test_*.py"]
