"""Ranking with TensorFlow Recommenders: which rating will a user give an item?

    python examples/tfrs_ranking.py                        # synthetic ratings
    python examples/tfrs_ranking.py --data ratings.csv     # MovieLens

The model is that of TFRS' tutorial. With tf_slipstream the layer and the
optimizer are replaced, and nothing else.
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


class RatingModel(tfrs.Model):
    """Predicts ratings from numbers of users and items.

    Args:
        num_users: Integer.
        num_items: Integer.
        dim: Length of a row.
        mean: Float, what is predicted at first.
        embedding: `slipstream.SlipstreamEmbedding` or `keras.layers.Embedding`.
    """

    def __init__(self, num_users, num_items, dim, mean, embedding):
        super().__init__()
        self.user_rows = embedding(num_users, dim, name="users")
        self.item_rows = embedding(num_items, dim, name="items")
        self.ratings = keras.Sequential(
            [
                keras.layers.Dense(64, activation="relu"),
                keras.layers.Dense(32, activation="relu"),
                keras.layers.Dense(1, bias_initializer=keras.initializers.Constant(mean)),
            ]
        )
        self.task = tfrs.tasks.Ranking(
            loss=keras.losses.MeanSquaredError(),
            metrics=[keras.metrics.RootMeanSquaredError(name="rmse")],
        )

    def call(self, features):
        rows = [self.user_rows(features["user"]), self.item_rows(features["item"])]
        return self.ratings(tf.concat(rows, axis=1))

    def compute_loss(self, features, training=False):
        features = dict(features)
        ratings = features.pop("rating")
        return self.task(labels=ratings, predictions=self(features))


def dataset(users, items, ratings, batch_size):
    features = {"user": users, "item": items, "rating": ratings.astype(np.float32)[:, np.newaxis]}
    return tf.data.Dataset.from_tensor_slices(features).batch(batch_size).prefetch(2)


def train(name, sizes, data, test, mean, args):
    """Trains one way and returns its row of the table."""
    keras.utils.set_random_seed(args.seed)
    is_ours = name == "tf_slipstream"
    embedding = slipstream.SlipstreamEmbedding if is_ours else keras.layers.Embedding
    model = RatingModel(*sizes, args.dim, mean, embedding)
    optimizer = getattr(keras.optimizers, args.optimizer)(args.learning_rate)
    if is_ours:
        optimizer = slipstream.SlipstreamOptimizer(optimizer, policy=args.policy)
    model.compile(optimizer)
    progress = running.Progress(name, args.epochs * len(data))
    model.fit(data, epochs=args.epochs, verbose=0, callbacks=[progress])
    rmse = model.evaluate(test, verbose=0, return_dict=True)["rmse"]
    return name, f"{progress.ms_per_step:.1f}", f"{rmse:.4f}"


def main(argv=None):
    parser = running.parser_of(__doc__)
    interactions.add_arguments(parser)
    parser.add_argument("--users", type=running.count, default=100_000, help="of synthetic ones")
    parser.add_argument("--items", type=running.count, default=50_000, help="of synthetic ones")
    parser.add_argument(
        "--interactions", type=running.count, default=400_000, help="synthetic ones"
    )
    parser.add_argument("--epochs", type=running.count, default=1)
    parser.add_argument("--batch-size", type=running.count, default=1024)
    parser.add_argument("--dim", type=running.count, default=32, help="length of a row")
    parser.add_argument("--optimizer", default="Adam", choices=["SGD", "Adagrad", "Adam"])
    parser.add_argument("--learning-rate", type=running.rate, default=0.002)
    parser.add_argument("--policy", choices=["conservative", "balanced", "aggressive"])
    args = parser.parse_args(argv)

    found = interactions.load(
        args, args.users, args.items, args.interactions, needs=["ratings"]
    ).shuffled(args.seed)
    (user_names, users), (item_names, items) = map(
        interactions.numbered, (found.users, found.items)
    )
    sizes = len(user_names), len(item_names)
    cut = len(found) * 9 // 10
    data, test = (
        dataset(users[part], items[part], found.ratings[part], args.batch_size)
        for part in (slice(cut), slice(cut, None))
    )
    mean = float(found.ratings[:cut].mean())
    print(
        f"{cut:,} ratings to train on, {len(found) - cut:,} to test; "
        f"{sizes[0]:,} users, {sizes[1]:,} items; {args.optimizer}"
    )
    rows = [
        train(name, sizes, data, test, mean, args) for name in ("stock tf_keras", "tf_slipstream")
    ]
    of_mean = np.sqrt(np.mean((found.ratings[cut:] - mean) ** 2))
    rows.append(("(the mean rating)", "", f"{of_mean:.4f}"))
    running.print_table(("", "ms a step", "test RMSE"), rows)


if __name__ == "__main__":
    main()
