"""A worker of `test_multi_worker.py`: trains a table, and writes its variables to a folder.

Two trainings: one that never stops, and one that goes on from its checkpoint, written while rows
slept. At the end all rows are woken.
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf

from tests.distribute.replicas import Replicated, batches
from tests.policy.training import policies
from tf_slipstream import SlipstreamMonitor


def main(folder, task, num_steps):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    policy = policies(threshold=1e9, refresh_every=37)
    replicated = Replicated(strategy, "adam", policy)
    stream = list(batches(strategy.num_replicas_in_sync, num_steps))
    half = num_steps // 2
    for batch in stream[:half]:
        replicated.step(batch)
    held = replicated.local_held()
    assert held.any(), "nothing is held"
    monitor = SlipstreamMonitor(folder / f"logs{task}")
    monitor.record(replicated.optimizer)
    (latest,) = monitor.latest.values()
    assert latest["step"] == half and latest["rows_asleep"] > 0 and latest["held_norm_max"] > 0
    monitor.close()
    checkpoint = tf.train.Checkpoint(layer=replicated.layer, optimizer=replicated.optimizer)
    # Every worker takes part, in a place of its own: what is held is summed over workers.
    path = checkpoint.save(str(folder / f"worker{task}" / "training"))
    np.testing.assert_array_equal(replicated.local_held(), held)
    restored = Replicated(strategy, "adam", policy)
    tf.train.Checkpoint(layer=restored.layer, optimizer=restored.optimizer).restore(path)
    for name, training in (("trained", replicated), ("restored", restored)):
        for batch in stream[half:]:
            training.step(batch)
        training.optimizer.wake_all()
        assert not training.local_held().any()
        (arrays,) = training.replica_arrays()
        np.savez(folder / f"{name}{task}.npz", **arrays)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:]))
