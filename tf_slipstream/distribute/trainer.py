"""Keras 3's `fit` on parameter servers, which Keras 3 itself does not have."""

import collections

import numpy as np
import tensorflow as tf

from tf_slipstream import _compat
from tf_slipstream.distribute.checkpoints import StepCheckpoints
from tf_slipstream.engine.server_table import num_tasks

_HOW_TO_GO_ON = (
    "Its variables are gone, so this program cannot go on. Restart the server (python -m "
    "tf_slipstream.server ...) and then this program: with `checkpoint_dir`, `fit` goes on from "
    "the last checkpoint."
)


# Batches of a prediction that are sent and not read yet, for each worker.
_NUM_AHEAD = 8


class ParameterServerTrainer:
    """Trains a compiled Keras 3 model on parameter servers, as `model.fit` does on one machine.

    Steps run on the workers, each on whichever is free; a step whose worker fails is done by
    another. What the model's `train_step` does, it does there. Metrics are summed over the workers:
    each step adds what it counted from zero, so a metric's variables must be sums, as Keras's own
    are.

    Args:
        model: Built and compiled under `strategy.scope()`, with a `SlipstreamOptimizer`.
        strategy: `tf.distribute.ParameterServerStrategy` without `variable_partitioner`.
        checkpoint_dir: Folder that all servers and this program share; None: no checkpoints. `fit`
            goes on from the last one in it.
        checkpoint_every: Steps between two checkpoints, beside one at each epoch's end; None: none.
        max_delay: Bound on how far workers run apart. Steps are counted in rounds of as many as
            there are workers; one begins when all of the rounds more than `max_delay` before its
            own are done. So between a step's lookup and its update there are at most
            `(2 * max_delay + 1) * num_workers - 1` updates by others. 0: a round begins when the
            one before has ended, and all wait for the slowest worker. None: nobody waits.

    Raises:
        ValueError: Under tf_keras, whose `model.fit` works on parameter servers; for a `max_delay`
            below 0.

    Example:

    ```python
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    with strategy.scope():
        model = ...
        model.compile(slipstream.SlipstreamOptimizer(keras.optimizers.Adagrad(0.05)), "mse")
    trainer = slipstream.distribute.ParameterServerTrainer(model, strategy)
    history = trainer.fit(make_dataset, epochs=3, steps_per_epoch=1000)
    ```
    """

    def __init__(self, model, strategy, checkpoint_dir=None, checkpoint_every=None, max_delay=None):
        if not _compat.IS_KERAS_3:
            raise ValueError("With tf_keras call `model.fit`: it works on parameter servers.")
        if not isinstance(strategy, tf.distribute.ParameterServerStrategy):
            raise ValueError(f"`strategy` must be a ParameterServerStrategy, got {strategy!r}.")
        is_count = isinstance(max_delay, int) and not isinstance(max_delay, bool)
        if max_delay is not None and not (is_count and max_delay >= 0):
            raise ValueError(f"`max_delay` must be an integer >= 0 or None, got {max_delay!r}.")
        self.model, self.strategy = model, strategy
        self.coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
        self._checkpoint_dir, self._checkpoint_every = checkpoint_dir, checkpoint_every
        self._max_delay = max_delay
        self._checkpoints = None
        self._functions = {}

    def fit(
        self,
        x,
        epochs=1,
        steps_per_epoch=None,
        callbacks=None,
        validation_data=None,
        validation_steps=None,
        initial_epoch=0,
        verbose=1,
    ):
        """Trains the model.

        Args:
            x: A `tf.data.Dataset` of batches, or a function that makes one, called with a
                `tf.distribute.InputContext` on each worker. Each worker reads all of it, for ever,
                and no worker knows which one it is. So that each example is seen once, let workers
                share it: a dataset of `tf.data.experimental.service.distribute` with a `job_name`.
                Else shuffle it well, without a seed, and without a global one
                (`keras.utils.set_random_seed`, `tf.random.set_seed`), by which all workers would
                shuffle alike and read the same batches.
            epochs: As `model.fit`'s.
            steps_per_epoch: Steps of all workers together in an epoch.
            callbacks: Keras callbacks. A batch's begin and end are those of its sending.
            validation_data: As `x`.
            validation_steps: Steps of a validation, needed with `validation_data`.
            initial_epoch: As `model.fit`'s.
            verbose: As `model.fit`'s.

        Returns:
            Keras's `History`.

        Raises:
            RuntimeError: If a parameter server is gone, or was started without the ops.
        """
        if not steps_per_epoch or (validation_data is not None and not validation_steps):
            raise ValueError(
                "Workers read their data for ever: `steps_per_epoch`, and with `validation_data` "
                f"`validation_steps`, must say how many steps; got {steps_per_epoch!r} and "
                f"{validation_steps!r}."
            )
        with _explained():
            self._build(x)
            first_step = self._restore()
            if isinstance(callbacks, _compat.keras.callbacks.CallbackList):
                run = callbacks
            else:
                run = _compat.keras.callbacks.CallbackList(
                    callbacks,
                    add_history=True,
                    add_progbar=verbose != 0,
                    verbose=verbose,
                    epochs=epochs,
                    steps=steps_per_epoch,
                    model=self.model,
                )
            self.model.stop_training = False
            run.on_train_begin()
            iterator = self._iterator(x)
            logs = {}
            for epoch in range(max(initial_epoch, first_step // steps_per_epoch), epochs):
                begin = max(0, first_step - epoch * steps_per_epoch)
                run.on_epoch_begin(epoch)
                self._run_steps("train", iterator, steps_per_epoch, run, begin, epoch)
                logs = self._take_metrics()
                if validation_data is not None:
                    found = self.evaluate(validation_data, validation_steps)
                    logs |= {f"val_{name}": value for name, value in found.items()}
                self._save((epoch + 1) * steps_per_epoch)
                run.on_epoch_end(epoch, logs)
                if self.model.stop_training:
                    break
            self.model.optimizer.finalize_variable_values(self.model.trainable_variables)
            run.on_train_end(logs)
        return self.model.history

    def evaluate(self, x, steps):
        """Returns a dict from a metric's name to its value over some steps of the workers."""
        with _explained():
            self._build(x)
            self.model.optimizer.settle()
            self._run_steps("test", self._iterator(x), steps)
            return self._take_metrics()

    def predict(self, x, steps=None):
        """Returns the model's outputs for all inputs, in their order.

        This program reads the batches, and sends each to whichever worker is free. What is held is
        applied first.

        Args:
            x: A `tf.data.Dataset` of batches, as `model.predict` takes it, or a function that makes
                one, called once with a `tf.distribute.InputContext`.
            steps: How many batches; None: all. Needed where `x` has no end.

        Returns:
            Array `[num_inputs, ...]`, or a structure of them as the model's outputs.

        Raises:
            ValueError: If there is no batch.
            RuntimeError: If a parameter server is gone.
        """
        data = x(tf.distribute.InputContext()) if callable(x) else x
        data = data if steps is None else data.take(steps)
        num_ahead = _NUM_AHEAD * num_tasks("worker")
        sent, outputs = collections.deque(), []
        with _explained():
            self.model.optimizer.settle()
            for batch in data:
                if len(sent) == num_ahead:
                    outputs.append(sent.popleft().fetch())
                sent.append(self.coordinator.schedule(self._function("predict"), args=(batch,)))
            outputs += [one.fetch() for one in sent]
        if not outputs:
            raise ValueError("`predict` got no batch.")
        return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *outputs)

    def _build(self, x):
        """Makes the variables of optimizer and metrics, which no step on a worker can."""
        model = self.model
        with self.strategy.scope():
            model.optimizer.build(model.trainable_variables)
            data = x(tf.distribute.InputContext()) if callable(x) else x
            # Traced, not run: a batch read here would be one less where workers share their data.
            tf.function(model.test_step).get_concrete_function(data.element_spec)
        model.reset_metrics()

    def _iterator(self, x):
        if not callable(x):
            return iter(self.coordinator.create_per_worker_dataset(x.repeat()))

        def make():
            return self.strategy.distribute_datasets_from_function(lambda c: x(c).repeat())

        return iter(self.coordinator.create_per_worker_dataset(make))

    def _run_steps(self, kind, iterator, num_steps, run=None, begin=0, epoch=0):
        function = self._function(kind)
        rounds = Rounds(num_tasks("worker"), self._max_delay if kind == "train" else None)
        for step in range(begin, num_steps):
            if run is not None:
                run.on_train_batch_begin(step)
            rounds.wait()
            rounds.add(self.coordinator.schedule(function, args=(iterator,)))
            if run is not None:
                run.on_train_batch_end(step)
            total = epoch * num_steps + step + 1
            if kind == "train" and self._checkpoint_every and total % self._checkpoint_every == 0:
                self._save(total)
            if kind == "train" and self.model.stop_training:
                break
        self.coordinator.join()

    def _function(self, kind):
        """Returns what a worker does in a step."""
        if kind == "predict" and kind not in self._functions:
            # It writes nothing.
            self._functions[kind] = tf.function(
                lambda batch: self.strategy.run(self.model.predict_step, args=(batch,)),
                reduce_retracing=True,
            )
        if kind not in self._functions:
            do_step = self.model.train_step if kind == "train" else self.model.test_step

            def step(data):
                metrics = list(self.model.metrics_variables)
                # Keras's metrics read and assign, and steps of other workers would be lost.
                mapping = [(v, tf.zeros(v.shape, v.dtype)) for v in metrics]
                with _compat.keras.StatelessScope(state_mapping=mapping) as scope:
                    do_step(data)
                for variable in metrics:
                    variable.value.assign_add(scope.get_current_value(variable))
                # Moving averages and the states of random numbers: the last step to write wins.
                counted = {id(variable) for variable in metrics}
                for variable in self.model.non_trainable_variables:
                    value = scope.get_current_value(variable)
                    if value is not None and id(variable) not in counted:
                        variable.value.assign(value)

            self._functions[kind] = tf.function(
                lambda iterator: self.strategy.run(step, args=(next(iterator),))
            )
        return self._functions[kind]

    def _take_metrics(self):
        logs = self.model.get_metrics_result()
        logs = {name: float(value) for name, value in logs.items()}
        self.model.reset_metrics()
        return logs

    def _restore(self):
        if self._checkpoint_dir is None:
            return 0
        if self._checkpoints is None:
            variables = [*self.model.variables, *self.model.optimizer.variables]
            self._checkpoints = StepCheckpoints(
                self._checkpoint_dir, [_compat.tf_variable(v) for v in variables]
            )
        return self._checkpoints.restore()

    def _save(self, step):
        if self._checkpoints is None:
            return
        self.coordinator.join()
        # What workers hold goes to the servers, which hold it on; no row wakes.
        self.model.optimizer.flush_workers()
        self._checkpoints.save(step)


class Rounds:
    """Keeps workers together: which steps must be done before another is sent.

    Args:
        num_workers: Steps of a round.
        max_delay: As `ParameterServerTrainer`'s.
    """

    def __init__(self, num_workers, max_delay):
        self._num_workers, self._max_delay = num_workers, max_delay
        self._open = collections.deque()  # steps sent and not known to be done, oldest first
        self._num_sent = 0

    def wait(self):
        """Waits until the next step may be sent."""
        if self._max_delay is None:
            return
        first_open = self._num_workers * (self._num_sent // self._num_workers - self._max_delay)
        while self._num_sent - len(self._open) < first_open:
            self._open[0].fetch()
            self._open.popleft()

    def add(self, step):
        """Notes a step that was sent, a `RemoteValue`."""
        self._num_sent += 1
        if self._max_delay is not None:
            self._open.append(step)


class _explained:
    """Says what an error of the cluster means and what to do."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        is_lost = isinstance(error, (tf.errors.UnavailableError, tf.errors.AbortedError))
        if is_lost and "/job:ps" in str(error):
            raise RuntimeError(f"A parameter server does not answer. {_HOW_TO_GO_ON}") from error
