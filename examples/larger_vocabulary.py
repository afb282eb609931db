"""Moves a trained table into a larger vocabulary: new users and items came,
training goes on.

    python examples/larger_vocabulary.py                   # synthetic
    python examples/larger_vocabulary.py --data ratings.csv

New names go behind the old ones, so that each row stays where it is, and
`slipstream.resize` gives the table more rows: values, the optimizer's slots and
what sleeps stay. The table at the end compares this with what else one can do,
on the last fifth of the new log: was an item chosen, or drawn at random?
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import interactions
import numpy as np
import running
import tensorflow as tf

import tf_slipstream as slipstream

keras = tf.keras


def choice_model(num_users, num_items, args):
    """Returns the compiled model: does this user choose this item? Row 0 of each is the unknown."""
    keras.utils.set_random_seed(args.seed)
    inputs, rows = [], []
    for name, num_rows in (("user", num_users), ("item", num_items)):
        number = keras.Input((), dtype="int64", name=name)
        inputs.append(number)
        rows.append(slipstream.SlipstreamEmbedding(num_rows, args.dim, name=f"{name}s")(number))
    x = keras.layers.Concatenate()([keras.layers.Multiply()(rows), *rows])
    x = keras.layers.Dense(32, activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(x))
    optimizer = slipstream.SlipstreamOptimizer(keras.optimizers.Adagrad(args.learning_rate))
    model.compile(optimizer, loss="binary_crossentropy")
    return model


def lookups(vocabularies):
    """Returns a layer for users and one for items, from names to numbers; 0 is the unknown."""
    return [keras.layers.StringLookup(vocabulary=vocabulary) for vocabulary in vocabularies]


def grown(vocabularies, found):
    """Returns vocabularies with the new names of `found` behind those that they had."""
    columns = (found.users, found.items)
    return [
        np.append(old, np.setdiff1d(column, old))
        for old, column in zip(vocabularies, columns, strict=True)
    ]


def grow(model, vocabularies):
    """Gives a model's tables a row for each name of larger vocabularies."""
    for name, vocabulary in zip(("users", "items"), vocabularies, strict=True):
        slipstream.resize(model.get_layer(name), model.optimizer, len(vocabulary) + 1)
    model.compile(model.optimizer, loss="binary_crossentropy")  # again: the tables are new


def served(model, vocabularies):
    """Returns a model from names to probabilities, to be published."""
    names = [keras.Input((), dtype="string", name=name) for name in ("user", "item")]
    numbers = [look_up(name) for look_up, name in zip(lookups(vocabularies), names, strict=True)]
    return keras.Model(names, model(numbers))


def with_drawn(found, seed):
    """Returns users, items and labels: what was chosen, and as much with an item drawn."""
    rng = np.random.default_rng(seed)
    users = np.tile(found.users, 2)
    items = np.append(found.items, rng.choice(np.unique(found.items), len(found)))
    labels = np.repeat(np.float32([1, 0]), len(found))
    order = rng.permutation(len(labels))
    return users[order], items[order], labels[order]


def fit(name, model, vocabularies, examples, args):
    *names, labels = examples
    numbers = [
        look_up(column).numpy()
        for look_up, column in zip(lookups(vocabularies), names, strict=True)
    ]
    progress = running.Progress(name, -(-len(labels) // args.batch_size))
    model.fit(numbers, labels, args.batch_size, verbose=0, shuffle=False, callbacks=[progress])


def measured(model, vocabularies, examples, old_items):
    """Returns the AUC of examples of old items, and of those of new ones."""
    users, items, labels = examples
    numbers = [
        look_up(column).numpy()
        for look_up, column in zip(lookups(vocabularies), (users, items), strict=True)
    ]
    scores = np.asarray(model(numbers))[:, 0]
    is_old = np.isin(items, old_items)
    return [running.area_under_curve(labels[part], scores[part]) for part in (is_old, ~is_old)]


def two_parts(args):
    """Returns the log before the new items came, the one after, and the last fifth of that."""
    found = interactions.load(args, args.users, args.items, args.interactions).by_time()
    found = interactions.as_named(found)
    half = len(found) // 2
    first, second = found[:half], found[half:]
    if args.data is None:
        # Every item was there from the start: leave a quarter of them out of the first half.
        names = np.unique(found.items)
        first = first[~np.isin(first.items, names[::4])]
    cut = len(second) * 4 // 5
    return first, second[:cut], second[cut:]


def compared(first, second, test, old, new, args):
    """Returns a row of the table for each way to go on after the first half, and the grown model.

    Args:
        first: Users, items and labels of the first half; the next two of the second.
        second: To train on.
        test: To measure.
        old: Vocabularies of users and of items at first.
        new: Larger ones.
        args: The command line's.
    """

    def made(vocabularies):
        return choice_model(*(len(vocabulary) + 1 for vocabulary in vocabularies), args)

    def trained_before():
        model = made(old)
        fit("first half", model, old, first, args)
        return model

    rows = []

    def go_on(name, model, vocabularies):
        fit(name, model, vocabularies, second, args)
        aucs = measured(model, vocabularies, test, old[1])
        rows.append((name, *(f"{auc:.4f}" for auc in aucs)))

    go_on("start anew", made(new), new)
    model = trained_before()
    with_rows = made(new)
    copy_rows(model, with_rows)
    go_on("rows copied, optimizer new", with_rows, new)
    go_on("new names are unknown", model, old)
    model = trained_before()
    grow(model, new)
    go_on("slipstream.resize", model, new)
    return rows, model


def copy_rows(model, new_model):
    """Copies weights, and rows to the first rows of larger tables: the optimizer starts anew."""
    pairs = zip(model.get_weights(), new_model.get_weights(), strict=True)
    new_model.set_weights([np.concatenate([old, new[len(old) :]]) for old, new in pairs])


def main(argv=None):
    parser = running.parser_of(__doc__)
    interactions.add_arguments(parser)
    parser.add_argument("--users", type=running.count, default=20_000, help="of synthetic ones")
    parser.add_argument("--items", type=running.count, default=5_000, help="of synthetic ones")
    parser.add_argument(
        "--interactions", type=running.count, default=600_000, help="synthetic ones"
    )
    parser.add_argument("--batch-size", type=running.count, default=1024)
    parser.add_argument("--dim", type=running.count, default=16, help="length of a row")
    parser.add_argument("--learning-rate", type=running.rate, default=0.1)
    parser.add_argument(
        "--publish", type=running.new_folder, help="folder for the grown model, which takes names"
    )
    args = parser.parse_args(argv)

    parts = two_parts(args)
    first, second, test = [with_drawn(part, args.seed + i) for i, part in enumerate(parts)]
    old = [np.unique(first[0]), np.unique(first[1])]
    new = grown(old, parts[1])
    print(
        f"{len(old[0]):,} users and {len(old[1]):,} items at first, "
        f"{len(new[0]):,} and {len(new[1]):,} later"
    )

    rows, model = compared(first, second, test, old, new, args)
    running.print_table(("", "AUC, old items", "AUC, new items"), rows)
    if args.publish:
        version = slipstream.export.save_version(served(model, new), args.publish / "1")
        print(f"\n{version.path} takes names of users and items.")


if __name__ == "__main__":
    main()
