"""Checkpoints of a run on parameter servers."""

import tensorflow as tf


class StepCheckpoints:
    """Checkpoints named by how many steps they are of.

    Each server writes what it has, so all share the folder. TensorFlow names a checkpoint in its
    file `checkpoint` only when all of it is written, so one cut off half-way replaces no other.

    Args:
        folder: Path.
        variables: `tf.Variable`s, in the same order in each run.
        num_kept: How many of the last are kept.
    """

    def __init__(self, folder, variables, num_kept=3):
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False, name="checkpointed_step")
        named = {f"v{i}": variable for i, variable in enumerate(variables)}
        checkpoint = tf.train.Checkpoint(step=self._step, **named)
        self._manager = tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=num_kept)
        self._checkpoint = checkpoint

    def restore(self):
        """Reads the last one, if there is any, and returns its step; else 0."""
        latest = self._manager.latest_checkpoint
        if latest is None:
            return 0
        self._checkpoint.restore(latest).assert_consumed()
        return int(self._step)

    def save(self, step):
        if self._manager.latest_checkpoint is not None and int(self._step) == step:
            return
        self._step.assign(step)
        self._manager.save(checkpoint_number=step)
