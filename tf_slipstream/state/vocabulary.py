"""What a vocabulary carries: which id has which row of a table, and when it was last looked up.

`custom_ops/kernels/vocabulary.h` says what the arrays mean, and has the same hash.
"""

import dataclasses

import numpy as np

from tf_slipstream.state import schema

# Slots of a bucket, buckets a row, and what a block of the sketch has: as vocabulary.h.
SLOTS = 8
ROWS_PER_BUCKET = 4
SKETCH_BYTES = 16
STEP_BITS = 27
_LEAST_BLOCKS = 1024
_MOST_COUNTED = 1 << 61
MAX_COUNT = (1 << (32 - STEP_BITS)) - 1
# As the last byte of a string's id: it ends there, or is too long to be kept.
END, TOO_LONG = 1, 2

# The variables, in the order in which they are saved, with what has to be known to find a row in
# front. The native op takes the first eight.
NAMES = (
    "index",
    "row_ids",
    "last_seen",
    "free_rows",
    "sketch",
    "counters",
    "changed_index",
    "changed_ids",
    "index_publication",
    "ids_publication",
)
# Those that serving needs.
SERVED = NAMES[:2]
# Those that a step reads and writes.
OF_STEP = NAMES[:8]


@dataclasses.dataclass(frozen=True)
class VocabularySettings:
    """What of a vocabulary does not change, as `VocabularySettings` of vocabulary.h.

    Attributes:
        num_words: int64 words of an id.
        padding: Tuple of the words of the id that is padding; empty: there is none.
        num_oov: Rows for ids without one of their own.
        is_string: Whether ids are the bytes of strings.
        admit_after: Lookups after which an id gets a row.
        forget_after: Steps without a lookup after which it loses it; 0: never.
    """

    num_words: int
    padding: tuple
    num_oov: int
    is_string: bool
    admit_after: int
    forget_after: int

    @property
    def first_oov(self):
        """The first row of ids without one of their own; row 0 is padding's, if there is any."""
        return 1 if self.padding else 0

    @property
    def first_row(self):
        """The first row that an id may have."""
        return self.first_oov + self.num_oov

    def shapes(self, capacity):
        """Returns a dict from the name of each array to its shape and dtype."""
        num_buckets = -(-capacity // ROWS_PER_BUCKET)
        num_blocks = max(_LEAST_BLOCKS, num_buckets) if self.admit_after > 1 else 1
        shapes = (
            ((num_buckets, SLOTS), "int64"),
            ((capacity, self.num_words), "int64"),
            ((capacity,), "int64"),
            ((capacity,), "int32"),
            ((num_blocks, SKETCH_BYTES), "uint8"),
            ((len(schema.VOCABULARY_COUNTERS),), "int64"),
            ((-(-num_buckets // 32),), "int32"),
            ((-(-capacity // 32),), "int32"),
            ((len(schema.COUNTERS),), "int64"),
            ((len(schema.COUNTERS),), "int64"),
        )
        return dict(zip(NAMES, shapes, strict=True))

    def zeros(self, capacity):
        """Returns the arrays of a vocabulary without ids, a dict by name."""
        return {name: np.zeros(*one) for name, one in self.shapes(capacity).items()}


def counter(counters, name):
    """Returns one of a vocabulary's counters, an int."""
    return int(counters[schema.VOCABULARY_COUNTERS.index(name)])


def is_whole(settings, arrays):
    """Returns whether counters and the stack of free rows make sense, as `IsWhole` there."""
    counters, free_rows = arrays["counters"], arrays["free_rows"]
    if counters.min() < 0 or counters.max() >= _MOST_COUNTED:
        return False
    num_given, num_free, hand = (counter(counters, n) for n in ("num_given", "num_free", "hand"))
    capacity = len(free_rows)
    num_rows = capacity - settings.first_row
    if not (num_given <= num_rows and num_free <= num_given and hand < num_rows):
        return False
    free = free_rows[:num_free]
    return bool(np.all((settings.first_row <= free) & (free < capacity)))


def hash_ids(words):
    """Returns the hashes of ids, uint64 `[num]`.

    Args:
        words: int64 `[num, num_words]`.
    """
    hashes = np.full(len(words), 0x9E3779B97F4A7C15, np.uint64)
    for column in np.asarray(words, np.int64).view(np.uint64).T:
        hashes ^= column
        hashes *= np.uint64(0xFF51AFD7ED558CCD)
        hashes ^= hashes >> np.uint64(32)
        hashes *= np.uint64(0xC4CEB9FE1A85EC53)
        hashes ^= hashes >> np.uint64(29)
    return hashes


def scaled(hashes, num):
    """Returns numbers in `[0, num)` of the upper halves of hashes, int64."""
    return (((hashes >> np.uint64(32)) * np.uint64(num)) >> np.uint64(32)).astype(np.int64)


def slots_of(hashes, rows):
    """Returns what the index has of rows."""
    return ((hashes << np.uint64(32)) | (rows + 1).astype(np.uint64)).view(np.int64)


def seen_at(hashes, step, count=1):
    """Returns what `last_seen` has of rows whose ids have these hashes, int64 `[num]`.

    Args:
        hashes: uint64 `[num]`.
        step: The step that looked them up last.
        count: How many have, at most `MAX_COUNT`.
    """
    step_and_count = np.uint64(count << STEP_BITS | step % (1 << STEP_BITS))
    return ((hashes >> np.uint64(32) << np.uint64(32)) | step_and_count).view(np.int64)


def counts_of(last_seen):
    """Returns how many steps have looked up rows, by what `last_seen` has of them."""
    return last_seen >> STEP_BITS & MAX_COUNT


def ages_of(last_seen, step):
    """Returns how many steps before this one rows were looked up, by what `last_seen` has."""
    return (step - last_seen) & ((1 << STEP_BITS) - 1)


def filled_index(words, rows, num_buckets):
    """Returns an index int64 `[num_buckets, SLOTS]` that has distinct ids with their rows.

    Args:
        words: int64 `[num, num_words]`.
        rows: int64 `[num]`.
        num_buckets: Number of buckets, with more slots than ids.
    """
    index = np.zeros([num_buckets, SLOTS], np.int64)
    hashes = hash_ids(words)
    slots, buckets = slots_of(hashes, rows), scaled(hashes, num_buckets)
    num_used = np.zeros(num_buckets, np.int64)
    while len(slots):
        order = np.argsort(buckets, kind="stable")
        slots, buckets = slots[order], buckets[order]
        starts = np.flatnonzero(np.diff(buckets, prepend=-1))
        counts = np.diff(starts, append=len(buckets))
        places = num_used[buckets] + np.arange(len(buckets)) - np.repeat(starts, counts)
        fits = places < SLOTS
        index[buckets[fits], places[fits]] = slots[fits]
        num_used[buckets[starts]] = np.minimum(SLOTS, num_used[buckets[starts]] + counts)
        # An id goes on only where a bucket is full.
        slots, buckets = slots[~fits], (buckets[~fits] + 1) % num_buckets
    return index


def with_ids(settings, capacity, words, rows, step):
    """Returns the arrays of a vocabulary that has ids in rows, a dict by name.

    Args:
        settings: `VocabularySettings`.
        capacity: Rows of the table.
        words: int64 `[num, num_words]`, distinct.
        rows: int64 `[num]`, distinct, in `[first_row, capacity)`.
        step: The step that is said to have looked them up last.
    """
    arrays = settings.zeros(capacity)
    arrays["index"] = filled_index(words, rows, len(arrays["index"]))
    arrays["row_ids"][rows] = words
    arrays["last_seen"][rows] = seen_at(hash_ids(words), max(1, step))
    num_given = int(rows.max(initial=settings.first_row - 1)) + 1 - settings.first_row
    is_free = arrays["last_seen"][settings.first_row :][:num_given] == 0
    # The lowest are the first to be given.
    free = settings.first_row + np.flatnonzero(is_free)[::-1]
    arrays["free_rows"][: len(free)] = free
    for name, value in {"step": step, "num_given": num_given, "num_free": len(free)}.items():
        arrays["counters"][schema.VOCABULARY_COUNTERS.index(name)] = value
    return arrays


def grown(settings, old, capacity):
    """Returns the arrays of a vocabulary with more rows, which keeps its ids and their rows.

    What the sketch has counted begins anew, and no delta leads from one size to another.

    Args:
        settings: `VocabularySettings`.
        old: Dict of arrays by name.
        capacity: Rows from now on, not fewer.
    """
    new = settings.zeros(capacity)
    for name in ("row_ids", "last_seen", "free_rows"):
        new[name][: len(old[name])] = old[name]
    new["counters"][:] = old["counters"]
    new["counters"][schema.VOCABULARY_COUNTERS.index("num_sketched")] = 0
    rows = np.flatnonzero(old["last_seen"])
    new["index"] = filled_index(old["row_ids"][rows], rows, len(new["index"]))
    for name in ("changed_index", "changed_ids"):
        new[name][:] = -1
    return new
