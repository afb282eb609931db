"""Which rows changed since a version was published."""

import contextlib
import secrets

import numpy as np

from tf_slipstream.export.errors import ExportError
from tf_slipstream.export.marks import Mark, MarkStore, pack_bitmap
from tf_slipstream.optimizer import find_slipstream_optimizer

# The place in a table's counters where the id of the mark is kept.
_MARK_COUNTER = 7

# Where an optimizer has its tracker.
_ATTRIBUTE = "_delta_tracker"


class DeltaTracker:
    """Knows which rows of a model's tables changed since any version that was published with it.

    The training step itself notes every row that it writes, 1 bit a row, whether or not there is a
    tracker. `save_version` and `save_delta` put a mark when they publish. A model has one tracker:
    the latest made.

    The answer holds every row that training changed, and after a crash or a return to an older
    checkpoint as well: the mark that bits count from is part of the optimizer's state, so save and
    restore model and optimizer together, in any way (`tf.train.Checkpoint`, `model.save`), and make
    the tracker on the same `directory` again. It may then hold rows that were written and have
    their old value again; never too few.

    Only training steps are seen. After other changes (`set_weights`, `load_weights`, `assign`) call
    `mark_rows` or `mark_all`, or give `save_delta` the folder of its base: it then compares every
    row.

    Args:
        model: A compiled model whose optimizer is a `SlipstreamOptimizer`, or that optimizer.
        directory: Folder that keeps the marks, a small file for each, so that a later process can
            go on. None: this process only.

    Raises:
        ValueError: If there is no `SlipstreamOptimizer`.
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

    def __init__(self, model, directory=None):
        self._optimizer = find_slipstream_optimizer(model, "DeltaTracker")
        self._model = model
        self._store = MarkStore(directory)
        setattr(self._optimizer, _ATTRIBUTE, self)

    @property
    def versions(self):
        """Numbers of the versions that are marked, ascending."""
        return self._store.versions

    @property
    def tables(self):
        """The tables that are tracked: dict from name to the optimizer's `TableState`."""
        variables = getattr(self._model, "trainable_variables", None)
        if not self._optimizer.tables and variables:
            self._optimizer.build(variables)
        return self._optimizer.tables

    def mark_of(self, version):
        """Returns the `Mark` of a version.

        Raises:
            ExportError: If it was not published with this tracker.
        """
        mark = self._store.of_version(version)
        if mark is None:
            raise ExportError(
                f"version {version} was not published with this tracker, which knows "
                f"{self.versions}: name one of these, or give the folder of the base instead of "
                "its number"
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
        return {name: self._changed_since(mark, state) for name, state in self.tables.items()}

    def mark_all(self, table=None):
        """Notes that every row may have changed.

        Args:
            table: The table's name, which is its layer's; None: all tables.
        """
        if table is not None:
            self._check_table(table)
        for name, state in self.tables.items():
            if table in (None, name):
                _assign_words(state, np.full(state.changed_rows.shape, -1, np.int32))

    def mark_rows(self, table, ids):
        """Notes that some rows may have changed.

        Args:
            table: The table's name, which is its layer's.
            ids: Integers `[num_ids]`, the rows; may repeat.
        """
        self._check_table(table)
        state, ids = self.tables[table], np.asarray(ids, np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < state.num_rows:
            raise ValueError(
                f"`ids` of table '{table}' must be in [0, {state.num_rows}), got {ids.min()} to "
                f"{ids.max()}."
            )
        bits = np.zeros(state.num_rows, bool)
        bits[ids] = True
        words = state.changed_rows.numpy().view(np.int32)
        _assign_words(state, words | _as_words(bits))

    def _check_table(self, table):
        if table not in self.tables:
            raise ValueError(f"`table` must be one of {sorted(self.tables)}, got {table!r}.")

    @contextlib.contextmanager
    def publication(self, version, tensors, digests):
        """Puts a mark around the publication of a version; gives the mark.

        The mark is on the disk before the version appears, and the bits are cleared after: whatever
        fails in between, no change is lost.
        """
        tables = self.tables
        mark = Mark(
            id=1 + secrets.randbelow((1 << 63) - 1),
            version=version,
            sequence=self._store.next_sequence,
            tensors=tensors,
            digests=digests,
            parents={name: _mark_id(state) for name, state in tables.items()},
            bitmaps={name: pack_bitmap(s.changed_rows.numpy()) for name, s in tables.items()},
        )
        self._store.add(mark)
        try:
            yield mark
        except BaseException:
            self._store.discard(mark)
            raise
        for state in tables.values():
            # In this order: bits that are attributed to two marks do no harm, lost ones would.
            counters = state.counters.numpy()
            counters[_MARK_COUNTER] = mark.id
            state.counters.assign(counters)
            _assign_words(state, np.zeros(state.changed_rows.shape, np.int32))

    def _changed_since(self, mark, state):
        known = self._store.changed_between(state.name, _mark_id(state), mark.id)
        if known is None:
            raise ExportError(
                f"table '{state.name}' was trained from a state that this tracker has no mark of, "
                f"so what changed since version {mark.version} is not known: give the folder of "
                "the base instead of its number, or publish a full version"
            )
        bits = state.changed_rows.numpy().astype("<i4").view(np.uint8)
        for bitmap in known:
            bits = bits | bitmap
        return _rows_of_bits(bits, state.num_rows)


def tracker_of(model):
    """Returns the tracker of a model or optimizer; None where there is none."""
    try:
        return getattr(find_slipstream_optimizer(model, "DeltaTracker"), _ATTRIBUTE, None)
    except ValueError:
        return None


def _mark_id(state):
    return int(state.counters.numpy()[_MARK_COUNTER])


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


def _assign_words(state, words):
    # The variable may have another type of the same bits, see `TableState`.
    state.changed_rows.assign(words.view(state.changed_rows.dtype.as_numpy_dtype))
