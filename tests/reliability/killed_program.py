"""Trains, saves, publishes and applies deltas, and is killed at a moment that it is told.

Users have raw ids, of which new ones come: rows are given and taken back all the time.

`python -m tests.reliability.killed_program FOLDER SECONDS`: the kill comes so long after the first
step; never with a negative number. Started again it goes on. At the end it prints a hash of all
that was trained.
"""

import hashlib
import os
import pathlib
import signal
import sys
import threading
import time

NUM_STEPS, PUBLISHED_EVERY, NUM_ROWS = 24, 4, 60


def kill_after(seconds):
    def kill():
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()


def publish(model, folder, number):
    """Publishes a version, unless that was done before a kill."""
    from tf_slipstream import export
    from tf_slipstream.delta.apply import apply_delta

    # Of a version that is published already too: what it applies is part of the training.
    model.optimizer.settle()
    version, delta = folder / "models" / str(number), folder / "deltas" / str(number)
    if number == 1:
        if not version.exists():
            export.save_version(model, version)
        return
    if not delta.exists():
        try:
            export.save_delta(model, number - 1, delta, version=number)
        except export.ExportError:
            # Killed before the first checkpoint: what is trained now is of no publication.
            export.save_delta(model, version.with_name(str(number - 1)), delta, version=number)
    if not version.exists():
        apply_delta(version.with_name(str(number - 1)), delta, version)


def batch_of(step):
    from tests.export.click_models import batch

    inputs, labels = batch(step, num_rows=NUM_ROWS)
    return inputs | {"user": inputs["user"] + 7 * step}, labels


def main(folder, seconds):
    import tensorflow as tf

    from tests.export.click_models import click_model
    from tests.models import sleepy
    from tf_slipstream import DynamicVocabulary, export
    from tf_slipstream._compat import keras

    folder = pathlib.Path(folder)
    for name in ("models", "deltas"):
        (folder / name).mkdir(exist_ok=True)
    vocabulary = DynamicVocabulary(NUM_ROWS, forget_after=8, name="users")
    model = click_model(keras.optimizers.Adam(0.1), NUM_ROWS, vocabulary)
    model.optimizer.policy = sleepy()
    model.optimizer.build(model.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    manager = tf.train.CheckpointManager(checkpoint, str(folder / "checkpoints"), max_to_keep=2)
    manager.restore_or_initialize()
    # Made with all that is known of it; marks that a kill cut off are refused, or not there.
    export.DeltaTracker(model, folder / "marks")
    begin = None
    for step in range(int(model.optimizer.iterations), NUM_STEPS):
        model.train_on_batch(*batch_of(step))
        if begin is None:
            begin = time.monotonic()
            if seconds >= 0:
                kill_after(seconds)
        if step % PUBLISHED_EVERY == 0:
            publish(model, folder, 1 + step // PUBLISHED_EVERY)
            manager.save()
    digest = hashlib.sha256()
    for variable in [*model.weights, *model.optimizer.variables]:
        # A mark's number is drawn anew in each run. Rows that a kill made this run train twice stay
        # marked as changed, if they were published the first time.
        if not any(word in variable.name for word in ("counters", "publication", "changed")):
            digest.update(variable.numpy().tobytes())
    stats = vocabulary.stats()
    assert stats.num_forgotten > 0 and stats.num_evicted > 0, stats
    digest.update(str(stats).encode())
    took = 0 if begin is None else time.monotonic() - begin
    print("took", took, "hash", digest.hexdigest(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
