"""Two-tower retrieval with TensorFlow Recommenders: names of users in, names of
items out.

    python examples/tfrs_retrieval.py --publish published
    python examples/tfrs_retrieval.py --data ratings.csv

The towers are those of TFRS' tutorial: a `StringLookup`, an embedding, a dense
layer. With tf_slipstream the layer and the optimizer are replaced, and nothing
else. What is published holds the vocabularies and an index of all items, in
stock TensorFlow ops.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_USE_LEGACY_KERAS"] = "1"  # TFRS refuses Keras 3

import interactions
import numpy as np
import running
import tensorflow as tf

try:
    import tensorflow_recommenders as tfrs
except ImportError:
    sys.exit("this needs TensorFlow Recommenders: pip install 'tf-slipstream[recommenders]'")

import tf_slipstream as slipstream

keras = tf.keras
TOP = 100


class TwoTowers(tfrs.Model):
    """Scores of users and items are dot products of what their towers make of their names.

    Args:
        users: Array of the users' names.
        items: Array of the items' names.
        dim: Length of a row.
        embedding: `slipstream.SlipstreamEmbedding` or `keras.layers.Embedding`.
    """

    def __init__(self, users, items, dim, embedding):
        super().__init__()
        self.user_tower = tower("users", users, dim, embedding)
        self.item_tower = tower("items", items, dim, embedding)
        self.task = tfrs.tasks.Retrieval()

    def compute_loss(self, names, training=False):
        users = self.user_tower(names["user"])
        return self.task(users, self.item_tower(names["item"]), compute_metrics=False)


def tower(name, vocabulary, dim, embedding):
    """Returns a model from names `[batch]` to `[batch, dim]`; an unknown name has row 0."""
    return keras.Sequential(
        [
            keras.layers.StringLookup(vocabulary=vocabulary),
            embedding(len(vocabulary) + 1, dim, name=name),
            keras.layers.Dense(dim),
        ]
    )


def index_of(model, items):
    """Returns a layer from names of users to the scores and names of the best items."""
    index = tfrs.layers.factorized_top_k.BruteForce(model.user_tower, k=TOP)
    names = tf.data.Dataset.from_tensor_slices(items).batch(4096)
    index.index_from_dataset(tf.data.Dataset.zip((names, names.map(model.item_tower))))
    return index


def recall(index, test):
    """Returns how often the item that a user chose is among the best for that user."""
    hits = []
    for start in range(0, len(test), 1024):
        part = test[start : start + 1024]
        _, best = index(tf.constant(part.users))
        hits.append((best.numpy() == part.items.astype(bytes)[:, np.newaxis]).any(axis=1))
    return np.concatenate(hits).mean()


def train(name, train_part, test, args):
    """Trains one way; returns its row of the table, and the index."""
    keras.utils.set_random_seed(args.seed)
    is_ours = name == "tf_slipstream"
    embedding = slipstream.SlipstreamEmbedding if is_ours else keras.layers.Embedding
    users, items = np.unique(train_part.users), np.unique(train_part.items)
    model = TwoTowers(users, items, args.dim, embedding)
    optimizer = getattr(keras.optimizers, args.optimizer)(args.learning_rate)
    if is_ours:
        optimizer = slipstream.SlipstreamOptimizer(optimizer, policy=args.policy)
    model.compile(optimizer)
    data = tf.data.Dataset.from_tensor_slices({"user": train_part.users, "item": train_part.items})
    data = data.batch(args.batch_size).prefetch(2)
    progress = running.Progress(name, args.epochs * len(data))
    model.fit(data, epochs=args.epochs, verbose=0, callbacks=[progress])
    index = index_of(model, items)
    return (name, f"{progress.ms_per_step:.1f}", f"{recall(index, test):.4f}"), index


def publish(index, folder, user):
    """Publishes an index, and asks it for a user's items as a client would."""
    names = tf.TensorSpec([None], tf.string, name="user")
    version = slipstream.export.save_version(index, folder / "1", inputs=names)
    serve = tf.saved_model.load(version.path).signatures["serving_default"]
    best = serve(user=tf.constant([user]))["output_1"][0, :3].numpy()
    print(f"\n{version.path} answers for {user}: {', '.join(map(bytes.decode, best))}, ...")


def main(argv=None):
    parser = running.parser_of(__doc__)
    interactions.add_arguments(parser)
    parser.add_argument("--users", type=running.count, default=50_000, help="of synthetic ones")
    parser.add_argument("--items", type=running.count, default=20_000, help="of synthetic ones")
    parser.add_argument(
        "--interactions", type=running.count, default=300_000, help="synthetic ones"
    )
    parser.add_argument("--epochs", type=running.count, default=1)
    parser.add_argument("--batch-size", type=running.count, default=1024)
    parser.add_argument("--dim", type=running.count, default=32, help="length of a row")
    parser.add_argument("--optimizer", default="Adagrad", choices=["SGD", "Adagrad", "Adam"])
    parser.add_argument("--learning-rate", type=running.rate, default=0.1)
    parser.add_argument("--policy", choices=["conservative", "balanced", "aggressive"])
    parser.add_argument("--test-examples", type=running.count, default=5_000, help="at most")
    parser.add_argument(
        "--publish", type=running.new_folder, help="folder to publish the model of tf_slipstream in"
    )
    args = parser.parse_args(argv)

    found = interactions.load(args, args.users, args.items, args.interactions)
    found = interactions.as_named(found.shuffled(args.seed))
    num_test = min(args.test_examples, len(found) // 5)
    test, train_part = found[:num_test], found[num_test:]
    print(f"{len(train_part):,} interactions to train on, {num_test:,} to test")
    rows = []
    for name in ("stock tf_keras", "tf_slipstream"):
        row, index = train(name, train_part, test, args)
        rows.append(row)
    running.print_table(("", "ms a step", f"recall@{TOP}"), rows)
    if args.publish:
        publish(index, args.publish, str(test.users[0]))


if __name__ == "__main__":
    main()
