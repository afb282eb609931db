"""Checkpoints of a run on parameter servers."""

import contextlib
import pathlib
import shutil

import tensorflow as tf

from tf_slipstream.state.schema_version import SchemaVersion

# What TensorFlow puts behind a variable's name.
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


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
        named, seen = {}, set()
        for i, variable in enumerate(variables):
            if id(variable) not in seen:
                named[f"v{i}"] = variable
                seen.add(id(variable))
        checkpoint = tf.train.Checkpoint(step=self._step, _schema_version=SchemaVersion(), **named)
        self._named = named
        self._manager = tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=num_kept)

    def restore(self):
        """Reads the last one, if there is any, and returns its step; else 0.

        Raises:
            ValueError: If it is not of these variables, as where it was written with another number
                of servers. No variable has changed then.
        """
        latest = self._manager.latest_checkpoint
        if latest is None:
            return 0
        self._check(latest)
        head = tf.train.Checkpoint(step=self._step, _schema_version=SchemaVersion())
        head.read(latest).assert_existing_objects_matched()
        # One after the other: `Checkpoint.restore` reads all that a server has at once, which then
        # needs its memory twice.
        for name, variable in self._named.items():
            with tf.device(variable.device):
                (value,) = tf.raw_ops.RestoreV2(
                    prefix=latest,
                    tensor_names=[name + _VALUE],
                    shape_and_slices=[""],
                    dtypes=[variable.dtype],
                )
                variable.assign(value)
        return int(self._step)

    def _check(self, path):
        reader = tf.train.load_checkpoint(path)
        dtypes = reader.get_variable_to_dtype_map()
        saved = {
            key.removesuffix(_VALUE): (shape, dtypes[key])
            for key, shape in reader.get_variable_to_shape_map().items()
            if key.endswith(_VALUE) and key.startswith("v")
        }
        own = {name: (one.shape.as_list(), one.dtype) for name, one in self._named.items()}
        if saved == own:
            return
        unlike = [name for name in own if saved.get(name) != own[name]] or [*saved.keys() - own]
        name = unlike[0]
        raise ValueError(
            f"The checkpoint {path} is not of this model and cluster: it has {len(saved)} "
            f"variables and here are {len(own)}; '{name}' is {_described(saved, name)} there and "
            f"{_described(own, name)} here. Each server has a part of each large table, and counts "
            "for each worker: start as many parameter servers and workers as the run had that "
            "wrote it, and the same model. To change their number, start that run once more, call "
            "`model.save_weights`, and load the file, which has whole tables, into a run with "
            "another `checkpoint_dir`. Slots of tables, and which rows sleep, then begin anew."
        )

    def save(self, step):
        """Writes a checkpoint of a step, unless the last one is of it.

        Raises:
            RuntimeError: If a file cannot be written. The last one is whole then.
        """
        latest, before = self._manager.latest_checkpoint, int(self._step)
        if latest is not None and before == step:
            return
        self._step.assign(step)
        try:
            self._manager.save(checkpoint_number=step)
        except (tf.errors.UnavailableError, tf.errors.AbortedError):
            raise  # a server is gone
        except tf.errors.OpError as error:
            self._step.assign(before)
            self._remove_unfinished(step)
            folder = self._manager.directory
            raise RuntimeError(
                f"The checkpoint of step {step} could not be written to {folder}: "
                f"{_reason(error.message, folder)}. "
                f"{f'The last whole one is {latest}.' if latest else 'There is no other.'} See "
                "that each server can write there and that the disk has room, and start again: "
                "`fit` goes on from the last one."
            ) from error

    def _remove_unfinished(self, step):
        """Makes room. What a server is still writing may come after it."""
        for path in pathlib.Path(self._manager.directory).glob(f"ckpt-{step}[_.]*temp*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


def _reason(message, folder):
    """Returns what an error of TensorFlow, which may have many lines, says of a folder's files."""
    lines = [line for line in message.replace("\\n", "\n").splitlines() if line.strip()]
    line = next((line for line in lines if folder in line), lines[0])
    return line[max(0, line.find(folder)) :].strip(" .")


def _described(variables, name):
    if name not in variables:
        return "not"
    shape, dtype = variables[name]
    return f"{dtype.name} {shape}"
