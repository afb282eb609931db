"""Benchmarks choose their Keras themselves, so that once is enough."""

from tf_slipstream import _keras

collect_ignore_glob = [] if _keras.IS_KERAS_3 else ["test_*.py"]
