"""Training on several devices and machines, on the engines that TensorFlow has for it.

What a strategy needs beyond the optimizer belongs here: what travels between replicas and when,
tables on parameter servers, and loops that Keras lacks. No arithmetic on rows, which is for `ops`.
To add a strategy: a module here, its place in `optimizer`, its processes or devices in
`tests/distribute`, and a page in `docs`.
"""

from tf_slipstream.distribute.parameter_server import CacheStats, WorkerCache
from tf_slipstream.distribute.trainer import ParameterServerTrainer

__all__ = ["CacheStats", "ParameterServerTrainer", "WorkerCache"]
