"""The operations on tables: one file each, with its checks and its plain-TensorFlow fallback.

No Keras here: functions on `tf.Variable`s and tensors. `_library.py` alone loads the
native library. To add one: its OpKernel in `custom_ops/tf`, its function here, its test in
`tests/ops`.
"""

from tf_slipstream.ops._library import build_info
from tf_slipstream.ops._tables import StepSettings

__all__ = ["StepSettings", "build_info"]
