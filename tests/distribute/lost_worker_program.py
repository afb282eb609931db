"""A worker of `test_lost_worker.py`: trains a table with checkpoints, and may be killed.

It goes on from the chief's last checkpoint, if there is one. At the end all rows are woken, and its
variables are written to the folder.
"""

import os
import pathlib
import signal
import sys

import numpy as np
import tensorflow as tf

from tests.distribute.replicas import Replicated, batches
from tests.policy.training import policies

EVERY = 10


def main(folder, task, num_steps, killed_after):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    replicated = Replicated(strategy, "adam", policies(threshold=1e9, refresh_every=37))
    checkpoint = tf.train.Checkpoint(layer=replicated.layer, optimizer=replicated.optimizer)
    # Where all look for the last one; others than the chief write theirs elsewhere.
    latest = tf.train.latest_checkpoint(str(folder / "worker0"))
    if latest:
        checkpoint.restore(latest)
    manager = tf.train.CheckpointManager(checkpoint, str(folder / f"worker{task}"), 2)
    first = int(tf.convert_to_tensor(replicated.optimizer.iterations))
    print(f"goes on from step {first}", flush=True)
    for step, batch in enumerate(batches(strategy.num_replicas_in_sync, num_steps), 1):
        if step <= first:
            continue
        replicated.step(batch)
        if step % EVERY == 0:
            manager.save(step)
            print(f"step {step} is saved", flush=True)
        if step == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)
    replicated.optimizer.wake_all()
    (arrays,) = replicated.replica_arrays()
    np.savez(folder / f"trained{task}.npz", **arrays)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:]))
