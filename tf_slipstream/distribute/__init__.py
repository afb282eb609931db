"""Training on more than one device or machine, on the engines that TensorFlow has for it.

What a strategy needs beyond the optimizer belongs here: one file each for what replicas exchange,
tables on parameter servers, and loops that Keras lacks. No arithmetic on rows. To add one: a module
here, its processes or devices in `tests/distribute`, and a page in `docs`.
"""

from tf_slipstream.distribute.parameter_server import CacheStats, WorkerCache
from tf_slipstream.distribute.trainer import ParameterServerTrainer

__all__ = ["CacheStats", "ParameterServerTrainer", "WorkerCache"]
