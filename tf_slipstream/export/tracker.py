"""Which rows changed since a version was published."""

import contextlib
import secrets

import numpy as np
import tensorflow as tf

from tf_slipstream.delta.errors import ExportError
from tf_slipstream.export.marks import Mark, MarkStore, pack_bitmap
from tf_slipstream.model_tables import maps_of, optimizers_of, tables_of
from tf_slipstream.ops.mark_rows import mark_all_changed, mark_rows
from tf_slipstream.state.table import bits_as, counters_of, set_counter

# Where an optimizer has its tracker.
_ATTRIBUTE = "_delta_tracker"
_MAX_VERSIONS = 200


class TrackedTable:
    """A table, with the bits of every optimizer that trains it.

    Args:
        name: The table's name.
        states: Its `TableState` in each of these optimizers.
    """

    def __init__(self, name, states):
        self.name, self.states = name, states

    @property
    def table(self):
        """The `tf.Variable`."""
        return self.states[0].table

    @property
    def num_rows(self):
        return self.states[0].num_rows

    def mark_id(self):
        """Returns the id of the mark that bits count from, 0 where there was none; None: unknown.

        An optimizer that came later has no mark, but bits of all that it did.
        """
        ids = {counters["publication"] for counters in counters_of(self.states)} - {0}
        return None if len(ids) > 1 else max(ids, default=0)

    def set_mark_id(self, mark_id):
        for state in self.states:
            set_counter(state, "publication", mark_id)

    def read(self):
        """Returns the words of each optimizer's bits, int32."""
        return [_words(state) for state in self.states]

    def clear(self, words):
        """Clears bits that were read, and no other, whatever trains meanwhile."""
        for state, read in zip(self.states, words, strict=True):
            mark_rows(state, read, clear=True)

    def add(self, words):
        """Sets bits and clears none, whatever trains meanwhile."""
        mark_rows(self.states[0], words)


class DeltaTracker:
    """Knows which rows of a model's tables changed since any version that was published with it.

    The training step itself notes every row that it writes, 1 bit a row, whether or not there is a
    tracker. `save_version` and `save_delta` put a mark when they publish. A model has one tracker:
    the latest made.

    The answer holds every row that training changed, and after a crash or a return to an older
    checkpoint as well: the mark that bits count from is part of the optimizer's state, so save and
    restore model and optimizer together, in any way (`tf.train.Checkpoint`, `model.save`), and make
    the tracker on the same `directory` again. It may then hold rows that were written and have
    their old value again; never too few. With native ops training may go on in another thread while
    rows are marked by hand or versions published.

    Only training steps are seen. After other changes (`set_weights`, `load_weights`, `assign`) call
    `mark_rows` or `mark_all`, or give `save_delta` the folder of its base: it then compares every
    row.

    Args:
        model: A model whose tables a `SlipstreamOptimizer` trains, or several; or that optimizer.
        directory: Folder that keeps the marks, a small file for each, so that a later process can
            go on. None: this process only.
        max_versions: How many of the latest publications are known. When there are more, marks of
            the earliest are removed: a delta from one of these, or after a return to a checkpoint
            from its time, needs the folder of its base.

    Raises:
        ValueError: If there is no `SlipstreamOptimizer`, or `max_versions` is not positive.
        ExportError: If a mark in `directory` was altered.

    Example:

    ```python
    tracker = slipstream.export.DeltaTracker(model, "marks")
    slipstream.export.save_version(model, "models/m/1")
    model.fit(...)
    tracker.changed_rows(1)                     # {"user": array([...]), "item": array([...])}
    slipstream.export.save_delta(model, 1, "deltas/2")
    ```
    """

    def __init__(self, model, directory=None, *, max_versions=_MAX_VERSIONS):
        tables_of(model, "DeltaTracker")
        if not isinstance(max_versions, int) or max_versions < 1:
            raise ValueError(f"`max_versions` must be a positive integer, got {max_versions!r}.")
        self._model = model
        self._store = MarkStore(directory, max_versions)
        for optimizer in optimizers_of(model):
            setattr(optimizer, _ATTRIBUTE, self)

    @property
    def versions(self):
        """Numbers of the versions that are marked, ascending."""
        return self._store.versions

    @property
    def tables(self):
        """The tables that are tracked: dict from name to `TrackedTable`."""
        states = {}
        for trained in tables_of(self._model, "DeltaTracker"):
            for state in trained.states:
                states.setdefault(id(state.table), []).append(state)
        for state in maps_of(self._model):
            states[id(state.table)] = [state]
        return {group[0].name: TrackedTable(group[0].name, group) for group in states.values()}

    def mark_of(self, version):
        """Returns the `Mark` of a version.

        Raises:
            ExportError: If it was not published with this tracker.
        """
        mark = self._store.of_version(version)
        if mark is None:
            raise ExportError(
                f"version {version} was not published with this tracker, or too long ago for its "
                f"`max_versions`; it knows {self.versions}: name one of these, or give the folder "
                "of the base instead of its number"
            )
        return mark

    def changed_rows(self, version):
        """Returns the rows that changed since a version was published.

        Args:
            version: Its number.

        Returns:
            Dict from a table's name to int64 `[num_changed]`, ascending.

        Raises:
            ExportError: If the version is not known, or the weights were trained under marks that
                this tracker does not have.
        """
        mark = self.mark_of(version)
        changed = {}
        for name, table in self.tables.items():
            bits = self._bits_between(mark, table.mark_id(), table)
            for words in table.read():
                bits = bits | _as_bytes(words)
            changed[name] = _rows_of_bits(bits, table.num_rows)
        return changed

    def rows_between(self, base, mark):
        """Returns the rows that may differ between two marks, as `changed_rows` does."""
        return {
            name: _rows_of_bits(self._bits_between(base, mark.id, table), table.num_rows)
            for name, table in self.tables.items()
        }

    def _bits_between(self, base, mark_id, table):
        known, num_bytes = None, 4 * -(-table.num_rows // 32)
        if mark_id is not None:
            known = self._store.changed_between(table.name, mark_id, base.id, num_bytes)
        if known is None:
            raise ExportError(
                f"table '{table.name}' was trained from a state that this tracker has no mark of, "
                f"so what changed since version {base.version} is not known: give the folder of "
                "the base instead of its number, or publish a full version"
            )
        bits = np.zeros(num_bytes, np.uint8)
        for bitmap in known:
            if bitmap.size != bits.size:
                raise ExportError(
                    f"table '{table.name}' has {table.num_rows} rows, and had another number when "
                    f"version {base.version} or a later one was published: publish a full version"
                )
            bits = bits | bitmap
        return bits

    def mark_all(self, table=None):
        """Notes that every row may have changed.

        Args:
            table: The table's name, which is its layer's; None: all tables.
        """
        if table is not None:
            self._check_table(table)
        for name, tracked in self.tables.items():
            if table in (None, name):
                mark_all_changed(tracked.states[0])

    def mark_rows(self, table, ids):
        """Notes that some rows may have changed.

        Args:
            table: The table's name, which is its layer's.
            ids: Integers `[num_ids]`, the rows; may repeat.
        """
        self._check_table(table)
        tracked, ids = self.tables[table], np.asarray(ids, np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < tracked.num_rows:
            raise ValueError(
                f"`ids` of table '{table}' must be in [0, {tracked.num_rows}), got {ids.min()} to "
                f"{ids.max()}."
            )
        bits = np.zeros(tracked.num_rows, bool)
        bits[ids] = True
        tracked.add(_as_words(bits))

    def _check_table(self, table):
        if table not in self.tables:
            raise ValueError(f"`table` must be one of {sorted(self.tables)}, got {table!r}.")

    @contextlib.contextmanager
    def publication(self, version, tensors, digests):
        """Puts a mark around the publication of a version; gives the mark.

        The mark is on the disk before the bits are cleared, and these are cleared before any value
        is read: whatever fails in between, and whatever trains meanwhile, no change is lost.
        """
        tables = self.tables
        read = {name: table.read() for name, table in tables.items()}
        parents = {name: table.mark_id() for name, table in tables.items()}
        mark = Mark(
            id=1 + secrets.randbelow((1 << 63) - 1),
            version=version,
            sequence=self._store.next_sequence,
            tensors=tensors,
            digests=digests,
            # Of an unknown one nothing is known here either.
            parents={name: parent or 0 for name, parent in parents.items()},
            bitmaps={
                name: pack_bitmap(np.bitwise_or.reduce(words)) for name, words in read.items()
            },
        )
        self._store.add(mark)
        try:
            for name, table in tables.items():
                table.clear(read[name])
                table.set_mark_id(mark.id)
            yield mark
        except BaseException:
            for name, table in tables.items():
                table.add(np.bitwise_or.reduce(read[name]))
                table.set_mark_id(parents[name] or 0)
            self._store.discard(mark)
            raise
        # The version is out: a mark that cannot be removed is no reason to fail.
        with contextlib.suppress(OSError):
            self._store.prune()


def tracker_of(model):
    """Returns the tracker of a model or optimizer; None where there is none."""
    trackers = (getattr(one, _ATTRIBUTE, None) for one in optimizers_of(model))
    return next((tracker for tracker in trackers if tracker is not None), None)


def _words(state):
    return bits_as(tf.convert_to_tensor(state.changed_rows), tf.int32).numpy()


def _as_bytes(words):
    return words.astype("<i4").view(np.uint8)


def _rows_of_bits(bits, num_rows):
    """Returns the places of set bits, int64 `[num_set]`, ascending, of uint8 `[bytes]`."""
    # Most bytes are 0, and are not unpacked.
    places = np.flatnonzero(bits)
    within = np.unpackbits(bits[places, np.newaxis], axis=1, bitorder="little").astype(bool)
    rows = (8 * places[:, np.newaxis] + np.arange(8))[within]
    return rows[rows < num_rows]  # `mark_all` sets the bits after the last row as well


def _as_words(bits):
    """Returns int32 words of booleans `[num_rows]`, as in `TableState.changed_rows`."""
    packed = np.packbits(bits, bitorder="little")
    return np.pad(packed, (0, -len(packed) % 4)).view("<i4")
