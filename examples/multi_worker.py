"""One worker of a training on several machines. The same program runs on each of them:

    TF_CONFIG='{"cluster": {"worker": ["host1:5000", "host2:5000"]}, "task": {"type": "worker",
    "index": 0}}' python examples/multi_worker.py

`examples/multi_worker.sh` starts all of them on this machine. Under tf_keras it trains by
`model.fit`; Keras 3's fails under this strategy (Keras issues 20585, 20329), and takes the loop
below. See docs/guide/replicas.md.
"""

import argparse
import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import tf_slipstream as slipstream

keras = tf.keras
IS_KERAS_3 = os.environ.get("TF_USE_LEGACY_KERAS") != "1"
# Of a long run; the longer it is, the more rows may sleep. Here they may after 20 updates.
POLICY = slipstream.StalenessPolicy(min_updates=20, updates_per_sleep=20)


def click_model(num_rows, dim):
    """Returns a model of 13 dense features and one field."""
    features = keras.Input((13,), name="features")
    item = keras.Input((1,), dtype="int32", name="item")
    row = keras.layers.Flatten()(slipstream.SlipstreamEmbedding(num_rows, dim, name="items")(item))
    x = keras.layers.Dense(32, activation="relu")(keras.layers.Concatenate()([features, row]))
    return keras.Model((features, item), keras.layers.Dense(1, activation="sigmoid")(x))


def train_by_loop(strategy, model, optimizer, dataset, steps):
    """Trains as `fit` would; returns the mean loss of the last 10 steps."""
    with strategy.scope():
        optimizer.build(model.trainable_variables)
    num_workers = strategy.num_replicas_in_sync

    @tf.function
    def train_step(inputs, labels):
        def replica_step(inputs, labels):
            with tf.GradientTape() as tape:
                outputs = model(inputs, training=True)
                losses = keras.losses.binary_crossentropy(labels[:, tf.newaxis], outputs)
                # Gradients are summed over replicas: of a mean over all of them.
                loss = tf.reduce_mean(losses) / num_workers
            variables = model.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
            return loss

        losses = strategy.run(replica_step, args=(inputs, labels))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    losses = []
    for _, (inputs, labels) in zip(range(steps), dataset):
        losses.append(float(train_step(inputs, labels)))
    # `fit` does this at its end: applies what is held of sleeping rows.
    optimizer.finalize_variable_values(model.trainable_variables)
    return np.mean(losses[-10:])


def train_by_fit(strategy, model, optimizer, dataset, steps):
    """Trains by `model.fit`; returns the mean loss."""
    with strategy.scope():
        model.compile(optimizer, loss="binary_crossentropy")
    return model.fit(dataset, steps_per_epoch=steps, verbose=0).history["loss"][0]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=512, help="of a worker")
    parser.add_argument("--save", help="file for the model, which the first worker writes")
    args = parser.parse_args()

    # Before anything else of TensorFlow: it connects the workers.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    task = strategy.cluster_resolver.task_id
    with strategy.scope():
        model = click_model(args.rows, args.dim)
        inner = keras.optimizers.Adagrad(0.05)
        optimizer = slipstream.SlipstreamOptimizer(inner, policy=POLICY)
    log = slipstream.data.SyntheticClickLog(cardinalities=(args.rows,))
    # Each worker reads examples of its own.
    num = args.steps * args.batch_size
    dataset = strategy.distribute_datasets_from_function(
        lambda context: log.dataset(num, args.batch_size, start=task * num).repeat()
    )
    train = train_by_loop if IS_KERAS_3 else train_by_fit
    loss = train(strategy, model, optimizer, dataset, args.steps)

    # All workers, as saving applies what they hold; elsewhere than the first's where it is shared.
    if args.save:
        model.save(args.save if task == 0 else f"{args.save}.worker{task}.keras")
    stats = optimizer.skip_stats()["items"]
    table = tf.convert_to_tensor(optimizer.tables["items"].table).numpy()
    report = {
        "worker": task,
        "loss": float(loss),
        "lookups": stats.num_lookups,
        "deferred": stats.num_deferred_lookups,
        "table": int(np.sum(table.view(np.int32), dtype=np.int64)),
    }
    # In one piece: other workers print to the same terminal.
    print(json.dumps(report) + "\n", end="", flush=True)


if __name__ == "__main__":
    main()
