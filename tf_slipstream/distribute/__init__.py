"""Training on several machines, for users: loops that Keras lacks, checkpoints of a cluster.

What a step sends and holds is in `engine`. To add a loop: a module here, its name below, and its
processes in `tests/distribute`.
"""

from tf_slipstream.distribute.trainer import ParameterServerTrainer
from tf_slipstream.engine.server_table import CacheStats, WorkerCache

__all__ = ["CacheStats", "ParameterServerTrainer", "WorkerCache"]
