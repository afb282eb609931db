"""Next items of sequences (SASRec), with stock Keras and with tf_slipstream.

    python examples/sequences.py                           # synthetic sequences
    python examples/sequences.py --data ratings.csv        # MovieLens, say

Self-attention reads what a user chose and predicts what is next, at every place
of a sequence (Kang and McAuley 2018). Sequences are padded on the left by item
0: `mask_zero=True` keeps padding out of attention and out of the loss. Output
weights are tied: one table has the rows of the items that are read and of those
that are predicted. A training step scores the next item against one drawn at
random; `recommender` scores all items.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import interactions
import numpy as np
import running
import tensorflow as tf

import tf_slipstream as slipstream

keras = tf.keras


class AddPositions(keras.layers.Layer):
    """Adds to each place of `[batch, length, dim]` what it learns of that place."""

    supports_masking = True

    def build(self, input_shape):
        self.positions = self.add_weight(
            name="positions", shape=tuple(input_shape[1:]), initializer="uniform"
        )

    def call(self, rows):
        return rows + self.positions

    def compute_mask(self, inputs, mask=None):
        return mask


class Scores(keras.layers.Layer):
    """Dot products of states `[batch, length, dim]` with rows `[batch, length, num, dim]`.

    Its mask is that of the states, so that the loss leaves places without an item out.
    """

    supports_masking = True

    def call(self, inputs):
        states, rows = inputs
        return tf.einsum("bld,blnd->bln", states, rows)

    def compute_mask(self, inputs, mask=None):
        return None if mask is None else mask[0]

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[1][:-1])


class ScoresOfAll(keras.layers.Layer):
    """Dot products of the last of states `[batch, length, dim]` with all rows of a table."""

    supports_masking = True

    def __init__(self, table, **kwargs):
        super().__init__(**kwargs)
        self.table = table

    def call(self, states):
        return tf.matmul(states[:, -1], self.table.embeddings, transpose_b=True)

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.table.input_dim)


def block(x, num_heads, dropout):
    """Self-attention that sees no later place, and two dense layers on each place."""
    dim = x.shape[-1]
    attention = keras.layers.MultiHeadAttention(num_heads, dim // num_heads, dropout=dropout)
    normed = keras.layers.LayerNormalization()(x)
    x = keras.layers.Add()([x, attention(normed, normed, use_causal_mask=True)])
    y = keras.layers.Dense(dim, activation="relu")(keras.layers.LayerNormalization()(x))
    y = keras.layers.Dropout(dropout)(keras.layers.Dense(dim)(y))
    return keras.layers.Add()([x, y])


def sasrec(num_items, length, args, embedding):
    """Returns the model to train, and the one that recommends, on the same layers.

    Args:
        num_items: Integer. Items are numbered from 1.
        length: Integer, places of a sequence.
        args: `dim`, `blocks`, `heads` and `dropout`.
        embedding: `slipstream.SlipstreamEmbedding` or `keras.layers.Embedding`.

    Returns:
        `(trained, recommender)`: from `(items [batch, length], candidates [batch, length, num])` to
        logits `[batch, length, num]`; and from `items` to a score of each item `[batch, num_items +
        1]`.
    """
    items = keras.Input((length,), dtype="int32", name="items")
    candidates = keras.Input((length, None), dtype="int32", name="candidates")
    table = embedding(num_items + 1, args.dim, mask_zero=True, name="item_rows")
    x = keras.layers.Dropout(args.dropout)(AddPositions()(table(items)))
    for _ in range(args.blocks):
        x = block(x, args.heads, args.dropout)
    states = keras.layers.LayerNormalization()(x)
    trained = keras.Model((items, candidates), Scores()([states, table(candidates)]))
    return trained, keras.Model(items, ScoresOfAll(table)(states))


def sequences_of(found, length):
    """Returns sequences to train on, and those to test with, as arrays of items from 1.

    The last item of each user is the test's; users with fewer than 3 items are left out.

    Returns:
        `(train, test, num_items)`: both `[num_users, length + 1]`, padded on the left by 0. The
        last column is what follows the others.
    """
    found = found.by_user()
    names, items = interactions.numbered(found.items)
    starts = np.flatnonzero(np.append(True, found.users[1:] != found.users[:-1]))
    ends = np.append(starts[1:], len(found))
    is_long = ends - starts >= 3
    starts, ends = starts[is_long, np.newaxis], ends[is_long, np.newaxis]
    places = ends + np.arange(-length - 1, 0)  # [num_users, length + 1]
    test = np.where(places >= starts, items[places] + 1, 0)
    train = np.where(places - 1 >= starts, items[places - 1] + 1, 0)
    return train.astype(np.int32), test.astype(np.int32), len(names)


def dataset(train, num_items, args):
    """Yields `((items, candidates), labels)`: of each place the next item, and one drawn anew."""
    data = tf.data.Dataset.from_tensor_slices(train)
    data = data.shuffle(len(train), seed=args.seed).batch(args.batch_size)
    seeds = tf.data.Dataset.random(seed=args.seed, rerandomize_each_iteration=True)

    def with_drawn(sequences, seed):
        items, following = sequences[:, :-1], sequences[:, 1:]
        drawn = tf.random.stateless_uniform(
            tf.shape(items), [seed, 0], 1, num_items + 1, dtype=tf.int32
        )
        candidates = tf.stack([following, drawn], axis=-1)
        labels = tf.concat([tf.ones_like(candidates[..., :1]), tf.zeros_like(items)[..., None]], -1)
        return (items, candidates), labels

    return tf.data.Dataset.zip((data, seeds)).map(with_drawn).prefetch(2)


def measured(recommender, test, top=10):
    """Returns the hit rate and the NDCG at `top`, of all items that a user had not chosen."""
    ranks = []
    for start in range(0, len(test), 256):
        items, following = test[start : start + 256, :-1], test[start : start + 256, -1]
        scores = np.array(recommender.predict_on_batch(items))
        users = np.arange(len(items))
        score = scores[users, following]
        scores[users[:, np.newaxis], items] = -np.inf
        scores[:, 0] = -np.inf
        ranks.append((scores > score[:, np.newaxis]).sum(axis=1))
    ranks = np.concatenate(ranks)
    return np.mean(ranks < top), np.mean(np.where(ranks < top, 1 / np.log2(ranks + 2), 0))


def train(name, data, args):
    """Trains one way and returns its row of the table."""
    sequences, test, num_items = data
    keras.utils.set_random_seed(args.seed)
    is_ours = name == "tf_slipstream"
    embedding = slipstream.SlipstreamEmbedding if is_ours else keras.layers.Embedding
    trained, recommender = sasrec(num_items, args.length, args, embedding)
    optimizer = keras.optimizers.Adam(args.learning_rate)
    if is_ours:
        optimizer = slipstream.SlipstreamOptimizer(optimizer, policy=args.policy)
    trained.compile(optimizer, loss=keras.losses.BinaryCrossentropy(from_logits=True))
    num_steps = args.epochs * -(-len(sequences) // args.batch_size)
    progress = running.Progress(name, num_steps)
    batches = dataset(sequences, num_items, args)
    trained.fit(batches, epochs=args.epochs, shuffle=False, verbose=0, callbacks=[progress])
    hit_rate, ndcg = measured(recommender, test[: args.test_users])
    return name, f"{progress.ms_per_step:.1f}", f"{hit_rate:.4f}", f"{ndcg:.4f}"


def main(argv=None):
    parser = running.parser_of(__doc__)
    interactions.add_arguments(parser)
    parser.add_argument("--items", type=running.count, default=5_000, help="of synthetic ones")
    parser.add_argument("--users", type=running.count, default=5_000, help="of synthetic ones")
    parser.add_argument("--length", type=running.count, default=30, help="places of a sequence")
    parser.add_argument("--epochs", type=running.count, default=4)
    parser.add_argument("--batch-size", type=running.count, default=128, help="sequences")
    parser.add_argument("--dim", type=running.count, default=48, help="length of a row")
    parser.add_argument("--blocks", type=running.count, default=2)
    parser.add_argument("--heads", type=running.count, default=1)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--learning-rate", type=running.rate, default=0.004)
    parser.add_argument("--policy", choices=["conservative", "balanced", "aggressive"])
    parser.add_argument("--test-users", type=running.count, default=5_000, help="at most")
    args = parser.parse_args(argv)
    if args.dim % args.heads:
        parser.error(f"--dim must be a multiple of --heads; got {args.dim} and {args.heads}")
    if not 0 <= args.dropout < 1:
        parser.error(f"--dropout must be in [0, 1), got {args.dropout}")

    found = interactions.load(args, args.users, args.items, args.users * args.length)
    data = sequences_of(found, args.length)
    if not len(data[0]):
        sys.exit(f"{args.data} has no user with 3 items or more")
    print(f"{len(data[0]):,} sequences, {data[2]:,} items, places: {args.length}")
    rows = [train(name, data, args) for name in ("stock Keras", "tf_slipstream")]
    running.print_table(("", "ms a step", "hit rate@10", "NDCG@10"), rows)


if __name__ == "__main__":
    main()
