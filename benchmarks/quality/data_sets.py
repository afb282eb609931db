"""What is learned: examples in NumPy, made once, and the order in which a seed trains on them."""

import argparse
import collections
import dataclasses
import os
import typing

import numpy as np
import tqdm

import tf_slipstream as slipstream
from quality import models

# Ids, int32 `[num_examples, num_lookups]`; dense features `[num_examples, num_dense]`; labels
# `[num_examples]`, or `[num_examples, num_candidates]`.
Examples = collections.namedtuple("Examples", ["ids", "dense", "labels"])
# A table and how many columns of the ids, after those of the table before, are looked up in it.
Table = collections.namedtuple("Table", ["name", "num_rows", "num_columns"])

# Log order is kept but for this many examples, which a seed shuffles: hot sets drift as they do.
STRETCH = 8192
NUM_NEGATIVES = 4
NUM_RANKED_USERS = 2000
# Ids of each field: all Criteo's orders of magnitude that see enough batches in a short run.
CARDINALITIES = (100_000, 50_000, 20_000, 10_000, 5_000, 1_000, 300, 100, 30, 10)
NUM_DENSE = 4
# Of the log with a long tail.
LONG_TAIL = (100_000, 50_000, 50_000, 20_000, 20_000, 5_000, 1_000, 100)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set with its model.

    Attributes:
        tables: `Table`s, in the order of the ids' columns.
        make_model: Makes the model from the length of a row.
        epoch: Returns, by seed and epoch, the `Examples` to train on and their order, int
            `[num_examples]`.
        test: `Examples`.
        dim: Length of a row unless told otherwise.
        change: Index of the training example from which another teacher decides, or None. `test`
            is of the new one.
        ranking: `(users, known, wanted)` as `metrics.recall_at` needs them, or None.
    """

    tables: tuple
    make_model: typing.Callable
    epoch: typing.Callable
    test: Examples
    dim: int = 16
    change: int | None = None
    ranking: tuple | None = None


def for_tuning(data_set, share=0.1):
    """Returns a data set without its test part: a share of the examples is tested on instead."""
    examples, order = data_set.epoch(0, 0)
    is_held_out = _random(2).random(len(examples.ids)) < share

    def epoch(seed, number):
        examples, order = data_set.epoch(seed, number)
        return examples, order[~is_held_out[order]]

    held_out = Examples(*(part[is_held_out] for part in examples))
    return dataclasses.replace(data_set, epoch=epoch, test=held_out, ranking=None)


def criteo80k(args):
    log = slipstream.data.open_click_log(_path(args, "criteo80k"))
    num_test = log.num_examples // 5
    num_train = log.num_examples - num_test
    train, test = _read(log, 0, num_train), _read(log, num_train, num_test)
    return DataSet(
        _field_tables(log.cardinalities),
        lambda dim: models.Dlrm(dim, bottom=(64,), top=(128, 64)),
        lambda seed, epoch: (train, _order_in_stretches(num_train, seed, epoch)),
        test,
    )


def synthetic(args, changes=False, drifts=False, **moves):
    num_train, num_test = args.examples, args.test_examples
    change = num_train // 2 if changes else None
    log = slipstream.data.SyntheticClickLog(
        cardinalities=args.cardinalities or CARDINALITIES,
        num_dense=NUM_DENSE,
        click_rate=getattr(args, "click_rate", None) or 0.25,
        change_after=0 if drifts else change,
        change_over=num_train if drifts else 0,
        **moves,
    )
    train, test = _read(log, 0, num_train), _read(log, num_train, num_test)

    def epoch(seed, number):
        if moves or drifts:
            return train, _order_in_stretches(num_train, seed, number)
        # Examples are independent, so their order may change by blocks, which are read faster.
        parts = [(0, num_train)] if change is None else [(0, change), (change, num_train)]
        return train, np.concatenate([_order_of_blocks(*part, seed, number) for part in parts])

    return DataSet(
        _field_tables(log.cardinalities),
        lambda dim: models.Dlrm(dim, bottom=(16,), top=(64, 32)),
        epoch,
        test,
        change=change,
    )


def long_tail(args):
    """The synthetic log with most rows looked up fewer than 20 times."""
    cardinalities = args.cardinalities or LONG_TAIL
    return synthetic(argparse.Namespace(**vars(args) | {"cardinalities": cardinalities}))


def changing(args):
    """The synthetic log, whose teacher changes half-way."""
    return synthetic(args, changes=True)


def seasonal(args):
    """The synthetic log with four seasons, in whose middle half of the lookups go elsewhere."""
    return synthetic(args, season_period=args.examples // 4)


def trending(args):
    """The synthetic log whose ids come and go, one in ten while it is trained on."""
    return synthetic(args, trend_period=10 * args.examples)


def drifting(args):
    """The synthetic log, whose teacher becomes another one little by little, over all of it."""
    return synthetic(args, drifts=True)


def gowalla(args, num_negatives=NUM_NEGATIVES):
    users, items, is_test = _columns(args, "gowalla", ["user", "item", "is_test"])
    num_users, num_items = int(users.max()) + 1, int(items.max()) + 1
    train = np.stack([users, items], axis=1)[~is_test]

    def with_negatives(pairs, rng):
        negatives = rng.integers(num_items, size=(len(pairs), num_negatives), dtype=np.int32)
        return _candidates(np.concatenate([pairs, negatives], axis=1), num_queries=1)

    def epoch(seed, number):
        rng = _random(seed, number)
        order = rng.permutation(len(train))
        return with_negatives(train, rng), order

    test = np.stack([users, items], axis=1)[is_test]
    return DataSet(
        (Table("user", num_users, 1), Table("item", num_items, 1 + num_negatives)),
        lambda dim: models.TwoTower(dim, num_queries=1, has_tower=False),
        epoch,
        with_negatives(test, _random(0)),
        dim=32,
        ranking=_ranking(train, test),
    )


def diginetica(args, num_negatives=NUM_NEGATIVES, num_previous=3, window=10_000):
    """The next item of a session by the items before, among items clicked at about that time."""
    session, item, is_test = _columns(args, "diginetica", ["session", "item", "is_test"])
    num_items = int(item.max()) + 1
    previous = []
    for back in range(1, num_previous + 1):
        # A row of its own stands for no item.
        earlier = np.concatenate([np.full(back, num_items, np.int32), item[:-back]])
        is_same = np.concatenate([np.zeros(back, bool), session[back:] == session[:-back]])
        previous.append(np.where(is_same, earlier, num_items).astype(np.int32))
    clicks = np.stack([*previous, item], axis=1)
    has_previous = clicks[:, 0] < num_items

    def with_negatives(places, rng):
        shift = rng.integers(-window, window, size=(len(places), num_negatives))
        # Of the same part, so that no item of the test is a negative before.
        others = places[0] + np.abs(places[:, np.newaxis] + shift - places[0])
        negatives = item[places[-1] - np.abs(places[-1] - others)]
        return _candidates(np.concatenate([clicks[places], negatives], axis=1), num_previous)

    train = np.flatnonzero(has_previous & ~is_test)
    test = np.flatnonzero(has_previous & is_test)

    def epoch(seed, number):
        order = _order_in_stretches(len(train), seed, number)
        return with_negatives(train, _random(seed, number)), order

    return DataSet(
        (
            Table("previous", num_items + 1, num_previous),
            Table("item", num_items, 1 + num_negatives),
        ),
        lambda dim: models.TwoTower(dim, num_previous, has_tower=True),
        epoch,
        with_negatives(test, _random(0)),
        dim=32,
    )


def gowalla_clicks(args):
    """Each pair of a user and an item is an example of its own: a click or not."""
    return _as_clicks(gowalla(args, args.negatives), 1, has_tower=False)


def diginetica_clicks(args):
    return _as_clicks(diginetica(args, args.negatives), 3, has_tower=True)


def _as_clicks(data_set, num_queries, has_tower):
    """Gives every candidate an example, with its query; a query's examples come one by one."""
    num_candidates = data_set.test.labels.shape[1]

    def flat(examples):
        queries = np.repeat(examples.ids[:, :num_queries], num_candidates, axis=0)
        candidates = examples.ids[:, num_queries:].reshape(-1, 1)
        labels = examples.labels.reshape(-1)
        ids = np.concatenate([queries, candidates], axis=1)
        return Examples(ids, np.zeros((len(ids), 0), np.float32), labels)

    def epoch(seed, number):
        examples, order = data_set.epoch(seed, number)
        places = order[:, np.newaxis] * num_candidates + np.arange(num_candidates)
        # Within a stretch, so that a batch has queries as mixed as its candidates.
        places = places.reshape(-1)
        return flat(examples), places[_order_in_stretches(len(places), seed, number)]

    queries, items = data_set.tables
    return dataclasses.replace(
        data_set,
        tables=(queries, items._replace(num_columns=1)),
        make_model=lambda dim: models.Clicks(dim, num_queries, has_tower),
        epoch=epoch,
        test=flat(data_set.test),
        ranking=None,
    )


# Made by `SyntheticClickLog`, in the sizes of the command line.
SYNTHETIC = ("long_tail", "synthetic", "changing", "seasonal", "trending", "drifting")
# Of positives and sampled negatives.
OF_PAIRS = ("gowalla_clicks", "diginetica_clicks")
DATA_SETS = {
    "long_tail": long_tail,
    "criteo80k": criteo80k,
    "gowalla": gowalla,
    "diginetica": diginetica,
    "gowalla_clicks": gowalla_clicks,
    "diginetica_clicks": diginetica_clicks,
    "synthetic": synthetic,
    "changing": changing,
    "seasonal": seasonal,
    "trending": trending,
    "drifting": drifting,
}


def _path(args, name):
    if not args.data_dir:
        raise SystemExit(f"{name} needs the folder of {name}.parquet: --data-dir, SLIPSTREAM_DATA")
    return os.path.join(args.data_dir, f"{name}.parquet")


def _columns(args, name, columns):
    """Returns columns of a parquet file in its order: int32, the last one as bool."""
    import pyarrow.parquet  # an extra of the package

    table = pyarrow.parquet.read_table(_path(args, name), columns=columns)
    found = [table.column(column).to_numpy().astype(np.int32) for column in columns]
    return [*found[:-1], found[-1] != 0]


def _read(log, start, num_examples):
    """Reads `Examples` of a click log."""
    ids = np.empty((num_examples, len(log.cardinalities)), np.int32)
    dense = np.empty((num_examples, log.num_dense), np.float32)
    labels = np.empty(num_examples, np.float32)
    place = 0
    with tqdm.tqdm(total=num_examples, desc="examples", leave=False) as bar:
        for (dense_part, ids_part), labels_part in log.batches(num_examples, 65_536, start=start):
            end = place + len(labels_part)
            ids[place:end], dense[place:end], labels[place:end] = ids_part, dense_part, labels_part
            place = end
            bar.update(len(labels_part))
    return Examples(ids, dense, labels)


def _field_tables(cardinalities):
    return tuple(Table(f"C{i + 1}", num_rows, 1) for i, num_rows in enumerate(cardinalities))


def _candidates(ids, num_queries):
    """Returns `Examples` whose first candidate is the right one."""
    labels = np.zeros((len(ids), ids.shape[1] - num_queries), np.float32)
    labels[:, 0] = 1
    return Examples(ids.astype(np.int32), np.zeros((len(ids), 0), np.float32), labels)


def _ranking(train, test):
    users = _random(1).permutation(np.unique(test[:, 0]))[:NUM_RANKED_USERS]
    known, wanted = (_items_by_user(pairs, users) for pairs in (train, test))
    return users, known, wanted


def _items_by_user(pairs, users):
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    begins = np.searchsorted(pairs[:, 0], users)
    ends = np.searchsorted(pairs[:, 0], users, side="right")
    return [pairs[begin:end, 1] for begin, end in zip(begins, ends)]


def _order_in_stretches(num_examples, seed, epoch):
    keys = np.arange(num_examples) // STRETCH + _random(seed, epoch, 1).random(num_examples)
    return np.argsort(keys)


def _order_of_blocks(start, stop, seed, epoch, block=64):
    """Returns `[start, stop)` in blocks whose order is random."""
    begins = start + block * _random(seed, epoch, 1).permutation((stop - start) // block)
    return (begins[:, np.newaxis] + np.arange(block)).reshape(-1).astype(np.int32)


def _random(*stream):
    return np.random.default_rng(np.random.SeedSequence(stream))
