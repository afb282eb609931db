"""One pass over a log: all that `tf-slipstream analyze` counts."""

import dataclasses
import queue
import threading

import numpy as np

from tf_slipstream.analysis.chunk import LogError
from tf_slipstream.analysis.movement import hottest, movement, overlap_of_halves
from tf_slipstream.analysis.popularity import Popularity
from tf_slipstream.analysis.row_space import RowSpace
from tf_slipstream.analysis.skew import skew

# Bytes of a row of `RowSpace` here: key, lookups, batches, lookups of the period and of a half of
# it, slot, flag.
_BYTES_PER_BUCKET = 29
_NUM_TENTHS, _MOST_PERIODS = 10, 400
_DAY = 86_400.0
_TRAINING_SHARE = 0.8
_HEAD_EXAMPLES = 2**18
# Batches of each size that are looked at for the share of distinct ids, at least.
_MIN_SAMPLES = 64
# In how many directions rows of a model walk, by what its optimizer makes of gradients: found on
# Criteo's log (docs/guide/deciding.md has how well it fits there and on others).
WALK_DIMS = {"sgd": 4, "momentum": 2, "adagrad": 4, "rmsprop": 3, "adam": 3, "ftrl": 4}
BATCH_SIZES = (256, 1024, 2048, 8192, 32_768)


@dataclasses.dataclass(frozen=True)
class Options:
    """How a log is surveyed.

    Attributes:
        batch_size: Examples of a step.
        policies: Dict from a name to a `StalenessPolicy` to forecast.
        optimizer: A key of `WALK_DIMS`.
        sample: Share of the log that is read, in (0, 1].
        shuffle: Examples of a buffer within which they are shuffled for the forecast; 0: none.
        max_bytes: Memory for counts, about.
    """

    batch_size: int = 2048
    policies: dict = dataclasses.field(default_factory=dict)
    optimizer: str = "adagrad"
    sample: float = 1.0
    shuffle: int = 0
    max_bytes: int = 800_000_000


class Survey:
    """Counts what is in a log.

    Args:
        log: What `open_log` gives.
        options: `Options`.

    Attributes:
        num_examples, num_steps: Read so far.
        num_positive, num_labelled: Of the labels.
    """

    def __init__(self, log, options):
        self._log, self._options = log, options
        self.fields = log.columns.fields
        self.num_examples = self.num_steps = 0
        self.num_positive = self.num_labelled = 0
        num_fields = len(self.fields)
        walk_dim = WALK_DIMS[options.optimizer]
        self._policies = {
            name: (Popularity(policy, num_fields, walk_dim), Popularity(policy, num_fields))
            for name, policy in options.policies.items()
        }
        needed = [policy.min_updates for policy in options.policies.values()]
        self._min_updates = min(needed, default=None)
        self._num_row_updates = np.zeros(num_fields, np.int64)
        self._num_lookups = np.zeros(num_fields, np.int64)
        self._num_unseen = np.zeros(num_fields, np.int64)
        self._num_late = 0
        self._new = np.zeros(num_fields, np.int64)  # ids of this period
        self._periods, self._period = [], None
        self._distinct_shares = {size: [] for size in BATCH_SIZES}
        self._stride, self._num_blocks = 1, 0
        self._is_seen = None
        self._num_slots = 0
        self._is_time_ordered = True
        self._space = None

    def run(self, progress=None):
        """Reads the log; returns a dict of all that was found, see docs/guide/deciding.md.

        Args:
            progress: Called with the share of the log that is read.
        """
        for columns, begin, done in _ahead(self._blocks()):
            self._take(columns, begin, done)
            if progress is not None:
                progress(done)
        if not self.num_examples:
            raise LogError("The log has no examples. Pass one that has.")
        self._end_period()
        return self._found()

    def _blocks(self):
        """Yields columns of a whole number of steps, and how much was read before and with them."""
        options = self._options
        size = max(options.shuffle, 2**15)
        size = -(-size // options.batch_size) * options.batch_size
        parts, num, begin, done = [], 0, 0.0, 0.0
        rng = np.random.default_rng(0)
        for chunk in self._log.chunks(_takes(options.sample)):
            read_before, done = done, chunk.done
            parts.append((chunk.keys, chunk.labels, chunk.times))
            num += len(chunk.keys)
            while num >= size:
                columns = _joined(parts)
                num -= size
                # As if examples were spread evenly over the chunk that ends the block.
                end = done - (done - read_before) * min(1.0, num / len(chunk.keys))
                yield _shuffled(_cut(columns, 0, size), options.shuffle, rng), begin, end
                parts, begin = [_cut(columns, size, None)], end
        if num:
            yield _shuffled(_joined(parts), options.shuffle, rng), begin, done

    def _take(self, columns, begin_done, end_done):
        keys, labels, times = columns
        if self._space is None:
            head = keys[:_HEAD_EXAMPLES]
            distinct = [len(np.unique(head[:, field])) for field in range(head.shape[1])]
            self._space = RowSpace(distinct, self._options.max_bytes // _BYTES_PER_BUCKET)
            self._lookups = np.zeros(self._space.size, np.int32)
            self._batches = np.zeros(self._space.size, np.int32)
            self._in_period = np.zeros(self._space.size, np.int32)
            self._in_half = np.zeros(self._space.size, np.int32)
            self._slots = np.full(self._space.size, -1, np.int32)
        if labels is not None:
            known = labels[~np.isnan(labels)]
            self.num_labelled += len(known)
            self.num_positive += int((known > 0).sum())
        rows = self._space.rows_of(keys)
        self._sample_batches(rows)
        size = self._options.batch_size
        for begin in range(0, len(rows), size):
            done = begin_done + (end_done - begin_done) * begin / len(rows)
            if times is None:
                self._to_period(min(_NUM_TENTHS - 1, int(_NUM_TENTHS * done)))
            else:
                self._to_day(times[begin : begin + size])
            if self._is_seen is None and done >= _TRAINING_SHARE:
                self._is_seen = self._lookups > 0
            self._step(rows[begin : begin + size])

    def _to_day(self, times):
        known = times[~np.isnan(times)]
        if known.size:
            day = int(np.median(known) // _DAY)
            if self._period is not None and day < self._period:
                self._is_time_ordered = False
                return
            self._to_period(day)

    def _to_period(self, period):
        if self._period is not None and period != self._period:
            self._end_period()
        self._period = period

    def _end_period(self):
        if len(self._periods) < _MOST_PERIODS and self._in_period.any():
            starts = self._space.starts
            parts = [slice(low, high) for low, high in zip(starts[:-1], starts[1:])]
            hot = [hottest(self._in_period[part]) for part in parts]
            halves = [
                overlap_of_halves(self._in_period[part], self._in_half[part]) for part in parts
            ]
            self._periods.append((hot, halves, self._new.copy()))
        self._in_half[:] = 0
        self._in_period[:] = 0
        self._new[:] = 0

    def _step(self, batch):
        """Does a step with rows `[num_examples, num_fields]`."""
        self.num_steps += 1
        self.num_examples += len(batch)
        self._num_lookups += len(batch)
        flat = batch.ravel()
        shift = max(1, int(flat.size - 1).bit_length())
        # One sort gives distinct rows and where each is first.
        packed = np.sort((flat << shift) | np.arange(flat.size))
        sorted_rows = packed >> shift
        is_first = np.empty(len(packed), bool)
        is_first[0] = True
        np.not_equal(sorted_rows[1:], sorted_rows[:-1], out=is_first[1:])
        firsts = np.flatnonzero(is_first)
        rows, order = sorted_rows[firsts], packed[firsts] & ((1 << shift) - 1)
        num_lookups = np.diff(firsts, append=len(packed))
        # Rows are sorted, and so are fields.
        bounds = np.searchsorted(rows, self._space.starts)
        num_distinct = np.diff(bounds)
        self._num_row_updates += num_distinct
        fields = np.repeat(np.arange(len(num_distinct)), num_distinct)
        num_before = self._lookups[rows]
        self._new += np.bincount(fields[num_before == 0], minlength=len(num_distinct))
        if self._is_seen is not None:
            unseen = ~self._is_seen[rows]
            sums = np.bincount(fields[unseen], num_lookups[unseen], len(num_distinct))
            self._num_unseen += sums.astype(np.int64)
            self._num_late += len(batch)
        self._lookups[rows] = num_before + num_lookups
        self._in_period[rows] += num_lookups.astype(np.int32)
        if self.num_steps % 2:
            self._in_half[rows] += num_lookups.astype(np.int32)
        num_batches = self._batches[rows] + 1
        self._batches[rows] = num_batches
        if self._policies:
            self._forecast(rows, fields, num_batches, num_lookups, order)

    def _forecast(self, rows, fields, num_batches, num_lookups, order):
        slots = self._slots[rows]
        new = np.flatnonzero((slots < 0) & (num_batches >= self._min_updates))
        if new.size:
            slots[new] = np.arange(self._num_slots, self._num_slots + new.size)
            self._slots[rows[new]] = slots[new]
            self._num_slots += new.size
        slotted = np.flatnonzero(slots >= 0)
        arguments = [a[slotted].astype(np.int64) for a in (slots, fields, num_batches)]
        arguments += [num_lookups[slotted], order[slotted]]
        for pair in self._policies.values():
            for popularity in pair:
                popularity.step(self.num_steps, *arguments, self._space.num_keys)

    def _sample_batches(self, rows):
        """Notes the share of distinct ids in some batches of each size."""
        self._num_blocks += 1
        if (self._num_blocks - 1) % self._stride:
            return
        for size, found in self._distinct_shares.items():
            num = min(len(rows) // size, 4)
            for part in range(num):
                begin = part * (len(rows) // num // size) * size
                batch = np.sort(rows[begin : begin + size], axis=0)
                found.append(((np.diff(batch, axis=0) != 0).sum(axis=0) + 1) / size)
        if len(self._distinct_shares[BATCH_SIZES[-1]]) >= _MIN_SAMPLES * self._stride:
            self._stride *= 2

    def _found(self):
        starts, space = self._space.starts, self._space
        by_day = self._log.columns.time is not None and self._is_time_ordered
        by_day = by_day and len(self._periods) >= 2
        fields = []
        for field, name in enumerate(self.fields):
            low, high = starts[field], starts[field + 1]
            counts = self._lookups[low:high]
            counts = counts[counts > 0]
            found = {
                "name": name,
                "num_lookups": int(self._num_lookups[field]),
                "num_row_updates": int(self._num_row_updates[field]),
                "distinct_ids": int(space.num_keys[field]),
                "is_distinct_bound": bool(space.is_full[field]),
                "seen_once": float((counts == 1).sum() / len(counts)),
                **skew(counts),
                "distinct_per_batch": {
                    str(size): float(np.mean([one[field] for one in shares]))
                    for size, shares in self._distinct_shares.items()
                    if shares
                },
                "movement": movement(
                    [hot[field] for hot, _, _ in self._periods],
                    [halves[field] for _, halves, _ in self._periods],
                ),
                "new_ids": [int(new[field]) for _, _, new in self._periods],
                "unseen_share": (
                    float(self._num_unseen[field] / self._num_late) if self._num_late else None
                ),
            }
            mine = slice(field, field + 1)
            found["policies"] = {name: self._shares(name, mine) for name in self._policies}
            fields.append(found)
        return {
            "num_examples": self.num_examples,
            "num_steps": self.num_steps,
            "batch_size": self._options.batch_size,
            "sample": self._options.sample,
            "base_rate": self.num_positive / self.num_labelled if self.num_labelled else None,
            "periods": "days" if by_day else "tenths",
            "is_time_ordered": self._is_time_ordered,
            "num_periods": len(self._periods),
            "fields": fields,
            "policies": {name: self._shares(name, slice(None)) for name in self._policies},
        }

    def _shares(self, name, fields):
        """Returns the shares that a policy is expected to defer or skip, and the most it may."""
        shares = {}
        for prefix, popularity in zip(("", "most_"), self._policies[name], strict=True):
            for what, num in (
                ("lookups", self._num_lookups),
                ("row_updates", self._num_row_updates),
            ):
                for kind in ("deferred", "skipped"):
                    counts = getattr(popularity, f"num_{kind}_{what}")
                    share = counts[fields].sum() / max(1, num[fields].sum())
                    shares[f"{prefix}{what}_{kind}"] = float(share)
        shares["num_popular"] = int(self._policies[name][0].num_popular[fields].sum())
        return shares


def _takes(sample):
    """Returns what says of successive parts whether they are in the sample, the first one is."""
    credit = 1.0

    def takes():
        nonlocal credit
        taken = credit >= 1
        credit += sample - taken
        return taken

    return takes


def _ahead(items):
    """Yields items that another thread makes meanwhile, one ahead: NumPy's work needs no lock."""
    made, is_over = queue.Queue(1), threading.Event()

    def put(item):
        while not is_over.is_set():
            try:
                return made.put(item, timeout=0.1)
            except queue.Full:
                continue

    def make():
        try:
            for item in items:
                put((item, None))
                if is_over.is_set():
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        is_over.set()
        thread.join()


def _joined(parts):
    if len(parts) == 1:
        return parts[0]
    return tuple(
        None if column[0] is None else np.concatenate(column) for column in zip(*parts, strict=True)
    )


def _cut(columns, begin, end):
    return tuple(None if column is None else column[begin:end] for column in columns)


def _shuffled(columns, size, rng):
    if not size:
        return columns
    places = rng.permutation(len(columns[0]))
    return tuple(None if column is None else column[places] for column in columns)
