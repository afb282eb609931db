"""DeepFM and DCN, with stock Keras and with tf_slipstream.

    python examples/click_models.py                     # on a synthetic log
    python examples/click_models.py --data train.txt    # Criteo's own format

The models are plain Keras. What differs is `look_up`: a
`keras.layers.Embedding` for each field, or one `SlipstreamEmbeddingCollection`
for all, and the optimizer that is wrapped. Both start from the same weights and
see the same examples.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click_logs
import numpy as np
import running
import tensorflow as tf

import tf_slipstream as slipstream

keras = tf.keras


def slipstream_rows(cardinalities, dim, ids, name):
    """Looks all fields up at once: `[batch, num_fields]` to `[batch, num_fields, dim]`."""
    fields = {f"C{field + 1}": cardinality for field, cardinality in enumerate(cardinalities)}
    first = {name: first_values(field) for field, name in enumerate(fields)}
    return slipstream.SlipstreamEmbeddingCollection(
        fields, dim, embeddings_initializer=first, name=name
    )(ids)


def stock_rows(cardinalities, dim, ids, name):
    """The same with a layer for each field."""
    rows = [
        keras.layers.Embedding(cardinality, dim, first_values(field), name=f"{name}_C{field + 1}")(
            ids[:, field : field + 1]
        )
        for field, cardinality in enumerate(cardinalities)
    ]
    return keras.layers.Concatenate(axis=1)(rows)


def first_values(field):
    """Returns a field's initializer: both ways of training start from the same rows."""
    return keras.initializers.RandomUniform(-0.05, 0.05, seed=field)


class PairProducts(keras.layers.Layer):
    """Sum of the dot products of all pairs of rows: `[batch, num_fields, dim]` to `[batch, 1]`."""

    def call(self, rows):
        square_of_sum = tf.square(tf.reduce_sum(rows, axis=1))
        sum_of_squares = tf.reduce_sum(tf.square(rows), axis=1)
        return tf.reduce_sum(square_of_sum - sum_of_squares, axis=1, keepdims=True) / 2

    def compute_output_shape(self, input_shape):
        return (input_shape[0], 1)


def deepfm(dense, ids, cardinalities, dim, hidden, look_up):
    """DeepFM (Guo et al. 2017): a factorization machine beside a deep network, on the same rows.

    Args:
        dense: Keras input `[batch, num_dense]`.
        ids: Keras input `[batch, num_fields]`.
        cardinalities: Number of ids of each field.
        dim: Length of a row.
        hidden: Units of the hidden layers.
        look_up: `slipstream_rows` or `stock_rows`.

    Returns:
        Logits `[batch, 1]`.
    """
    weights = look_up(cardinalities, 1, ids, "first_order")  # a number for each id
    rows = look_up(cardinalities, dim, ids, "rows")
    linear = keras.layers.Dense(1)(
        keras.layers.Concatenate()([dense, keras.layers.Flatten()(weights)])
    )
    x = keras.layers.Concatenate()([dense, keras.layers.Flatten()(rows)])
    for units in hidden:
        x = keras.layers.Dense(units, activation="relu")(x)
    deep = keras.layers.Dense(1, use_bias=False)(x)
    return keras.layers.Add()([linear, PairProducts()(rows), deep])


def dcn(dense, ids, cardinalities, dim, hidden, look_up, num_crosses=3):
    """DCN-V2 (Wang et al. 2021): layers of explicit feature crosses, and a deep network after them.

    Takes what `deepfm` takes. A cross layer is `x0 * (W x + b) + x`.
    """
    rows = look_up(cardinalities, dim, ids, "rows")
    x = first = keras.layers.Concatenate()([dense, keras.layers.Flatten()(rows)])
    for _ in range(num_crosses):
        crossed = keras.layers.Multiply()([first, keras.layers.Dense(first.shape[-1])(x)])
        x = keras.layers.Add()([crossed, x])
    for units in hidden:
        x = keras.layers.Dense(units, activation="relu")(x)
    return keras.layers.Dense(1)(x)


MODELS = {"deepfm": deepfm, "dcn": dcn}


def compiled(name, log, args, is_ours):
    """Returns the compiled model of one name, ours or stock."""
    keras.utils.set_random_seed(args.seed)
    dense = keras.Input((log.num_dense,), name="dense_features")
    ids = keras.Input((len(log.cardinalities),), dtype="int32", name="ids")
    look_up = slipstream_rows if is_ours else stock_rows
    logits = MODELS[name](dense, ids, log.cardinalities, args.dim, args.hidden, look_up)
    model = keras.Model((dense, ids), logits, name=name)
    optimizer = getattr(keras.optimizers, args.optimizer)(args.learning_rate)
    if is_ours:
        optimizer = slipstream.SlipstreamOptimizer(optimizer, policy=args.policy)
    model.compile(optimizer, loss=keras.losses.BinaryCrossentropy(from_logits=True))
    return model


def train(name, log, args, is_ours):
    """Trains one model and returns its row of the table."""
    model = compiled(name, log, args, is_ours)
    num_train, num_test = split(log, args)
    label = f"{name}, {'tf_slipstream' if is_ours else 'stock Keras'}"
    data = click_logs.dataset(log, num_train, args.batch_size)
    progress = running.Progress(label, len(data))
    model.fit(data, shuffle=False, verbose=0, callbacks=[progress])
    test = list(log.batches(num_test, 4096, start=num_train))
    scores = np.concatenate([model.predict_on_batch(inputs)[:, 0] for inputs, _ in test])
    auc = running.area_under_curve(np.concatenate([clicks for _, clicks in test]), scores)
    return label, f"{progress.ms_per_step:.1f}", f"{auc:.4f}"


def split(log, args):
    """Returns the numbers of examples to train on and, after them in the log, to test on."""
    if log.num_examples is None:
        return args.examples, args.test_examples
    num_test = min(args.test_examples, log.num_examples // 5)
    return min(args.examples, log.num_examples - num_test), num_test


def main(argv=None):
    parser = running.parser_of(__doc__)
    click_logs.add_arguments(parser)
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=MODELS)
    parser.add_argument("--examples", type=running.count, default=100_000, help="at most")
    parser.add_argument("--test-examples", type=running.count, default=50_000, help="at most")
    parser.add_argument("--batch-size", type=running.count, default=512)
    parser.add_argument("--dim", type=running.count, default=16, help="length of a row")
    parser.add_argument("--hidden", type=running.count, nargs="+", default=[128, 64])
    parser.add_argument("--optimizer", default="Adam", choices=["SGD", "Adagrad", "Adam"])
    parser.add_argument("--learning-rate", type=running.rate, default=0.003)
    parser.add_argument("--policy", choices=["conservative", "balanced", "aggressive"])
    args = parser.parse_args(argv)

    log = click_logs.load(args)
    num_train, num_test = split(log, args)
    print(
        f"{num_train:,} examples to train on, {num_test:,} to test; "
        f"{sum(log.cardinalities):,} rows of {args.dim}; {args.optimizer}"
    )
    rows = [train(name, log, args, is_ours) for name in args.models for is_ours in (False, True)]
    running.print_table(("model", "ms a step", "test AUC"), rows)


if __name__ == "__main__":
    main()
