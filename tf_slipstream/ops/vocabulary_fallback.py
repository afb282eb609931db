"""A step of a vocabulary in NumPy, as `custom_ops/kernels/vocabulary.cc` does it, to the bit."""

import numpy as np

from tf_slipstream.state import schema
from tf_slipstream.state.vocabulary import (
    MAX_COUNT,
    SLOTS,
    TOO_LONG,
    ages_of,
    counts_of,
    hash_ids,
    scaled,
    seen_at,
    slots_of,
)

_EVICTED_PART = 128
_LOWER = 0xFFFFFFFF


def look_up_and_admit(settings, arrays, words):
    """Does a training step, in the arrays.

    Args:
        settings: `VocabularySettings`.
        arrays: Dict of the arrays of a step by name, which are written.
        words: int64 `[num, num_words]`.

    Returns:
        Rows int64 `[num]`, and the rows taken back, int64.
    """
    step = _Step(settings, arrays)
    rows = step.run(words)
    step.write_counters()
    return rows, np.array(step.taken_back, np.int64)


class _Step:
    def __init__(self, settings, arrays):
        self.settings, self.arrays, self.taken_back = settings, arrays, []
        values = map(int, arrays["counters"])
        self.counters = dict(zip(schema.VOCABULARY_COUNTERS, values, strict=True))
        self.index, self.row_ids = arrays["index"], arrays["row_ids"]
        self.last_seen, self.free_rows = arrays["last_seen"], arrays["free_rows"]
        self.num_rows = len(self.last_seen) - settings.first_row
        self.has_evicted_all = False

    def write_counters(self):
        self.arrays["counters"][:] = [*self.counters.values()]

    def run(self, words):
        counters = self.counters
        counters["step"] += 1
        hashes = hash_ids(words)
        homes = scaled(hashes, len(self.index))
        rows = np.full(len(words), -1, np.int64)
        for i, word in enumerate(words):
            if tuple(word) == self.settings.padding:
                rows[i] = 0
                counters["num_padding_lookups"] += 1
                continue
            rows[i] = self.find(word, hashes[i], homes[i])
            if rows[i] >= 0:
                self.see(rows[i], hashes[i])
                counters["num_known_lookups"] += 1
        self.forget()
        counters["num_lookups"] += len(words)
        for i in np.flatnonzero(rows < 0):
            rows[i] = self.admit(words[i], hashes[i], homes[i])
        return rows

    def find(self, word, hash_, home):
        tag = int(hash_) & _LOWER
        for bucket in self.buckets_from(home):
            slots = self.index[bucket]
            for slot in slots[slots != 0]:
                row = (int(slot) & _LOWER) - 1
                if int(slot) >> 32 & _LOWER != tag or not self.is_in_table(row):
                    continue
                if np.array_equal(self.row_ids[row], word):
                    return row
            if not slots.all():
                break
        return -1

    def is_in_table(self, row):
        """A slot may say anything, of a checkpoint that somebody damaged."""
        return 0 <= row < len(self.row_ids)

    def see(self, row, hash_):
        seen, step = int(self.last_seen[row]), self.counters["step"]
        if ages_of(seen, step):
            count = min(counts_of(seen) + 1, MAX_COUNT)
            self.last_seen[row] = seen_at(np.array([hash_]), step, count)[0]

    def buckets_from(self, home):
        return ((home + n) % len(self.index) for n in range(len(self.index)))

    def admit(self, word, hash_, home):
        settings, counters = self.settings, self.counters
        row = self.find(word, hash_, home)
        if row >= 0:
            counters["num_known_lookups"] += 1
            return row
        oov = settings.first_oov + ((int(hash_) & _LOWER) * settings.num_oov >> 32)
        if settings.is_string and int(word[-1]) >> 56 == TOO_LONG:
            counters["num_too_long_lookups"] += 1
            return oov
        if settings.admit_after > 1 and self.count(hash_) < settings.admit_after:
            return oov
        row = self.free_row()
        if row < 0:
            return oov
        self.insert(hash_, home, row)
        self.row_ids[row] = word
        self.mark("changed_ids", row)
        self.last_seen[row] = seen_at(np.array([hash_]), counters["step"])[0]
        counters["num_admitted"] += 1
        counters["num_known_lookups"] += 1
        return row

    def insert(self, hash_, home, row):
        for bucket in self.buckets_from(home):
            free = np.flatnonzero(self.index[bucket] == 0)
            if len(free):
                self.index[bucket, free[0]] = slots_of(np.array([hash_]), np.array([row]))[0]
                self.mark("changed_index", bucket)
                return

    def count(self, hash_):
        sketch, counters = self.arrays["sketch"], self.counters
        product = np.array([hash_]) * np.uint64(0x9E3779B97F4A7C15)
        block = sketch[scaled(product, len(sketch))[0]]
        places = [4 * i + (int(hash_) >> (2 * i) & 3) for i in range(4)]
        count = min(255, int(block[places].min()) + 1)
        block[places] = np.maximum(block[places], count)
        counters["num_sketched"] += 1
        if counters["num_sketched"] >= 4 * len(sketch) * (self.settings.admit_after - 1) // 2:
            sketch //= 2
            counters["num_sketched"] //= 2
        return count

    def free_row(self):
        counters = self.counters
        if counters["num_free"] == 0 and counters["num_given"] == self.num_rows:
            self.evict()
        if counters["num_free"]:
            counters["num_free"] -= 1
            return int(self.free_rows[counters["num_free"]])
        if counters["num_given"] == self.num_rows:
            return -1
        counters["num_given"] += 1
        return self.settings.first_row + counters["num_given"] - 1

    def forget(self):
        limit, counters = self.settings.forget_after, self.counters
        if not limit:
            return
        for _ in range(-(-self.num_rows // max(1, limit // 8))):
            row = self.settings.first_row + counters["hand"]
            counters["hand"] = (counters["hand"] + 1) % self.num_rows
            seen = int(self.last_seen[row])
            if seen and ages_of(seen, counters["step"]) > limit:
                self.take_back(row)
                counters["num_forgotten"] += 1

    def evict(self):
        if self.has_evicted_all:
            return
        seen = self.last_seen
        ages = ages_of(seen, self.counters["step"])
        cold = np.flatnonzero((seen != 0) & (ages > 0))
        num = min(len(cold), max(1, len(seen) // _EVICTED_PART))
        self.has_evicted_all = num == len(cold)
        # The least bits make quotients differ that do.
        counts = np.maximum(counts_of(seen[cold]), 1)
        steps_each = (ages[cold] << 12) // counts
        for row in cold[np.argsort(-steps_each, kind="stable")][:num][::-1]:
            self.take_back(int(row))
        self.counters["num_evicted"] += num

    def take_back(self, row):
        self.erase(row)
        self.row_ids[row] = 0
        self.mark("changed_ids", row)
        self.last_seen[row] = 0
        # There is always room, unless a row that has an id is among the free ones.
        if self.counters["num_free"] < self.counters["num_given"]:
            self.free_rows[self.counters["num_free"]] = row
            self.counters["num_free"] += 1
        self.taken_back.append(row)

    def home_of(self, row):
        return int(scaled(hash_ids(self.row_ids[row : row + 1]), len(self.index))[0])

    def erase(self, row):
        hole = None
        for bucket in self.buckets_from(self.home_of(row)):
            (places,) = np.nonzero((self.index[bucket] & _LOWER) == row + 1)
            if len(places):
                hole = (bucket, int(places[-1]))
                break
            if not self.index[bucket].all():
                return  # of a damaged index
        while hole is not None:
            was_full = self.index[hole[0]].all()
            self.index[hole] = 0
            self.mark("changed_index", hole[0])
            hole = self.refill(hole) if was_full else None

    def refill(self, hole):
        num_buckets = len(self.index)
        for gone in range(1, num_buckets):
            later = (hole[0] + gone) % num_buckets
            for slot in range(SLOTS):
                value = int(self.index[later, slot])
                row = (value & _LOWER) - 1
                if not value or not self.is_in_table(row):
                    continue
                moved = (later - self.home_of(row)) % num_buckets
                if moved >= gone:
                    self.index[hole] = value
                    return later, slot
            if not self.index[later].all():
                break
        return None

    def mark(self, name, place):
        self.arrays[name].view(np.uint32)[place // 32] |= np.uint32(1 << (place % 32))
