"""Who chose what: files of users and items, as MovieLens has them, and synthetic ones."""

import dataclasses
import io
import pathlib
import sys

import numpy as np

# Names that public data sets give their columns.
_NAMES = {
    "users": ("user", "user_id", "userid", "session", "session_id", "sessionid"),
    "items": ("item", "item_id", "itemid", "movie_id", "movieid"),
    "ratings": ("rating",),
    "times": ("timestamp", "time"),
    "places": ("pos", "position"),
}
# Of files without a first line of names: MovieLens' `u.data` and `ratings.dat`.
_MOVIELENS = ("user", "item", "rating", "timestamp")
_SEPARATORS = (b"::", b"\t", b",")

# Of the synthetic ones: how many items a user may like, and how often the next one follows from the
# last, is of the user's own group, or is of any.
_GROUP_SIZE = 100
_SHARES = (0.5, 0.35, 0.15)


@dataclasses.dataclass(frozen=True)
class Interactions:
    """Users, and the items that they chose, each an array `[num_interactions]`.

    Users and items are integers or texts. `times` are of the whole log, `places` within a user's
    part of it. The last three are None where a file has none.
    """

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray | None
    times: np.ndarray | None
    places: np.ndarray | None

    def __len__(self):
        return len(self.users)

    def __getitem__(self, index):
        """Returns those of a slice or an array of places."""
        parts = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Interactions(*(None if part is None else part[index] for part in parts))

    def shuffled(self, seed=0):
        return self[np.random.default_rng(seed).permutation(len(self))]

    def by_user(self):
        """Returns those of each user together, in time, or by place, or as they were."""
        order = next((o for o in (self.times, self.places) if o is not None), np.arange(len(self)))
        return self[np.lexsort((order, self.users))]

    def by_time(self):
        """Returns them in time, or as they were."""
        return self if self.times is None else self[np.argsort(self.times, kind="stable")]


def add_arguments(parser):
    """Adds the arguments that `load` reads."""
    parser.add_argument(
        "--data", help="users and items: .csv, .tsv, .dat or .parquet; default: synthetic"
    )
    parser.add_argument("--seed", type=int, default=0)


def load(args, num_users, num_items, num_interactions, needs=()):
    """Returns the `Interactions` that the command line asks for; ends the program if it cannot.

    Args:
        args: Parsed arguments of `add_arguments`.
        num_users: Of synthetic ones; so are the next two.
        num_items: Integer.
        num_interactions: Integer.
        needs: Columns beside users and items that must be there, such as `("ratings",)`.
    """
    if args.data is None:
        return synthetic(num_users, num_items, num_interactions, args.seed)
    try:
        found = read(args.data)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"Cannot read {args.data}: {error}")
    for column in needs:
        if getattr(found, column) is None:
            names = " or ".join(_NAMES[column])
            sys.exit(f"{args.data} has no {column}: expected a column called {names}")
    return found


def read(path):
    """Reads a file with a line per interaction.

    Parquet or text, separated by commas, tabs or `::`. Columns are known by name, such as `userId`
    and `movieId`; a text without names has MovieLens' order: user, item, rating, time.

    Raises:
        ValueError: If it is neither, or has no users or items.
        OSError: If it cannot be read.
        ImportError: If pyarrow is not there.
    """
    path = pathlib.Path(path)
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("files need pyarrow: pip install 'tf-slipstream[data]'") from error
    with path.open("rb") as stream:
        is_parquet = stream.read(4) == b"PAR1"
    try:
        table = parquet.read_table(path) if is_parquet else _read_text(path)
    except pa.ArrowInvalid as error:
        raise ValueError(str(error).splitlines()[0]) from error
    columns = {name.lower(): name for name in table.column_names}
    found = {
        field: next((columns[name] for name in names if name in columns), None)
        for field, names in _NAMES.items()
    }
    for field in ("users", "items"):
        if found[field] is None:
            raise ValueError(
                f"expected a column of {field}, called {' or '.join(_NAMES[field])}; there are "
                f"{', '.join(table.column_names)}"
            )
    return Interactions(
        *(None if name is None else table[name].to_numpy() for name in found.values())
    )


def _read_text(path):
    from pyarrow import csv

    text = path.read_bytes()
    first = text.partition(b"\n")[0]
    separator = next((one for one in _SEPARATORS if one in first), None)
    if separator is None:
        raise ValueError("expected columns separated by commas, tabs or `::`")
    fields = first.strip().split(separator)
    known = {name for names in _NAMES.values() for name in names}
    has_names = any(field.decode(errors="replace").lower() in known for field in fields)
    if not has_names and len(fields) != len(_MOVIELENS):
        raise ValueError(
            f"expected a first line with names of columns, or {len(_MOVIELENS)} columns: "
            f"{', '.join(_MOVIELENS)}; got {first[:60].decode(errors='replace')!r}"
        )
    if separator == b"::":
        text, separator = text.replace(b"::", b"\t"), b"\t"
    return csv.read_csv(
        io.BytesIO(text),
        csv.ReadOptions(column_names=None if has_names else list(_MOVIELENS)),
        csv.ParseOptions(delimiter=separator.decode()),
    )


def synthetic(num_users, num_items, num_interactions, seed=0):
    """Draws interactions that a model can learn from.

    Each user likes one group of items; in a group few items are popular. An item often leads to the
    one after it. A rating is high for items of the user's group and for good ones.

    Returns:
        `Interactions`, those of each user in time. Items that were never chosen have no place in
        them, so that there may be fewer than `num_items`.
    """
    rng = np.random.default_rng(seed)
    length = -(-num_interactions // num_users)
    group_size = min(_GROUP_SIZE, num_items)
    num_groups = num_items // group_size
    start = rng.integers(num_groups, size=num_users) * group_size
    items = np.empty((num_users, length), np.int64)
    last = start + _popular(rng, num_users, group_size)
    for place in range(length):
        how = rng.random(num_users)
        following = last + 1 - group_size * ((last + 1) % group_size == 0)
        liked = start + _popular(rng, num_users, group_size)
        # Of any group, and of those more often the first.
        other = _popular(rng, num_users, num_groups) * group_size + liked % group_size
        last = np.select([how < _SHARES[0], how < 1 - _SHARES[2]], [following, liked], other)
        items[:, place] = last
    users = np.repeat(np.arange(num_users), length)
    is_liked = items // group_size == start[:, np.newaxis] // group_size
    quality, mildness = rng.normal(0, 0.7, num_items), rng.normal(0, 0.5, (num_users, 1))
    ratings = 3 + is_liked + quality[items] + mildness + rng.normal(0, 0.7, items.shape)
    ratings = np.clip(np.rint(ratings), 1, 5).astype(np.float32)
    names = rng.permutation(num_items)  # popular ones are anywhere
    times = np.tile(np.arange(length), num_users)
    return Interactions(users, names[items].ravel(), ratings.ravel(), times, None)


def _popular(rng, size, num):
    """Draws numbers below `num`, small ones more often."""
    return (num * rng.random(size) ** 3).astype(np.int64)


def numbered(values):
    """Returns the distinct values, sorted, and the number of each value among them."""
    return np.unique(values, return_inverse=True)


def as_named(found):
    """Returns interactions whose users and items are texts: "u7" for a number."""
    named = {}
    for column, letter in (("users", "u"), ("items", "i")):
        ids = getattr(found, column)
        is_number = np.issubdtype(ids.dtype, np.number)
        named[column] = np.char.add(letter, ids.astype(str)) if is_number else ids.astype(str)
    return dataclasses.replace(found, **named)
