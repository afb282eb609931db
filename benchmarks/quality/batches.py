"""The batches of an epoch, as a `tf.data.Dataset` that gives many at a time."""

import collections

import numpy as np
import tensorflow as tf

# Of a `tf.function` call: enough that starting one costs nothing, few enough to show progress.
STEPS_PER_CALL = 50
# After a change of the teacher AUC is taken at these shares of the examples that follow.
CHECKPOINTS_AFTER_CHANGE = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)

# `dataset` of batches stacked `[num_steps, batch, ...]`; its steps; the steps after which to
# evaluate, the last one not.
Epoch = collections.namedtuple("Epoch", ["dataset", "num_steps", "stops"])


def make_epoch(data_set, configuration, settings, number):
    """Returns an `Epoch`.

    Args:
        data_set: `DataSet`.
        configuration: `Configuration`, whose inputs are left out.
        settings: Dict with "seed", "batch_size" and "checkpoints".
        number: The epoch's number.
    """
    seed, batch_size = settings["seed"], settings["batch_size"]
    examples, order = data_set.epoch(seed, number)
    change = data_set.change
    if configuration.random_inputs:
        random = np.random.default_rng(np.random.SeedSequence((seed, number, 2)))
        kept = random.random(len(order)) >= configuration.random_inputs
        change = None if change is None else int(kept[:change].sum())
        order = order[kept]
    num_steps = len(order) // batch_size
    stops = _checkpoints(num_steps, None if change is None else change // batch_size, settings)
    dataset = _dataset(examples, order, _calls(num_steps, stops), batch_size)
    return Epoch(dataset, num_steps, stops)


def _checkpoints(num_steps, change_step, settings):
    num = settings["checkpoints"]
    stops = {num_steps * i // (num + 1) for i in range(1, num + 1)}
    if change_step is not None:
        left = num_steps - change_step
        stops |= {change_step + round(share * left) for share in (0, *CHECKPOINTS_AFTER_CHANGE)}
    return stops - {0, num_steps}


def _calls(num_steps, stops):
    """Returns `(first step, step after the last)` per call."""
    bounds = sorted({*range(0, num_steps, STEPS_PER_CALL), *stops, num_steps})
    return list(zip(bounds[:-1], bounds[1:]))


def _dataset(examples, order, calls, batch_size):
    def take(first, last):
        places = order[first * batch_size : last * batch_size]
        shape = (last - first, batch_size)
        return [part[places].reshape(*shape, *part.shape[1:]) for part in examples]

    def with_shapes(*batches):
        return tuple(
            tf.ensure_shape(batch, [None, batch_size, *part.shape[1:]])
            for batch, part in zip(batches, examples)
        )

    dtypes = [tf.as_dtype(part.dtype) for part in examples]
    bounds = np.asarray(calls, np.int64)
    return (
        tf.data.Dataset.from_tensor_slices((bounds[:, 0], bounds[:, 1]))
        .map(lambda first, last: with_shapes(*tf.numpy_function(take, [first, last], dtypes)))
        .prefetch(2)
    )
