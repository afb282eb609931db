"""What readers of logs have in common."""

import dataclasses

import numpy as np

# Columns that hold no ids, where nobody said which ones do.
LABELS = ("label", "click", "clicked", "is_click", "target", "y")
NOT_IDS = ("is_test", "split", "weight")


class LogError(ValueError):
    """A log that cannot be read, or has not what was asked for."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some successive examples of a log.

    Attributes:
        keys: uint64 `[num_examples, num_fields]`, equal where the values are.
        labels: Float64 `[num_examples]`, or None.
        times: Float64 `[num_examples]`, seconds since 1970, or None.
        done: How much of the log was read once this is, in [0, 1].
    """

    keys: np.ndarray
    labels: np.ndarray | None
    times: np.ndarray | None
    done: float


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of a log are what.

    Attributes:
        fields: Names of the columns that hold ids.
        label: Name of the label's column, or None.
        time: Name of the time's column, or None.
    """

    fields: tuple
    label: str | None
    time: str | None


def choose_columns(path, names, id_names, fields, label, time):
    """Returns the `Columns` of a log.

    Args:
        path: The log, for errors.
        names: All names of columns.
        id_names: Those that may hold ids.
        fields: Names that were asked for; None: all that may hold ids.
        label, time: Names that were asked for, or None; a label is then found by its name.

    Raises:
        LogError: If a name is not there, or twice.
    """
    wanted = [*(fields or ()), *filter(None, (label, time))]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise LogError(
            f"{path} has no column {', '.join(map(repr, missing))}. It has: "
            f"{_listed(names)}. Change --fields, --label or --time."
        )
    if len(set(fields or ())) < len(fields or ()):
        raise LogError(f"--fields names a column twice: {', '.join(fields)}. Name each once.")
    if label is None:
        label = next((name for name in names if name.lower() in LABELS), None)
        label = None if label in (fields or ()) else label
    if not fields:
        others = {label, time, *NOT_IDS}
        fields = [name for name in id_names if name not in others]
    if not fields:
        raise LogError(
            f"{path} has no column of ids, which are integers or text. It has: {_listed(names)}. "
            "Name them by --fields."
        )
    return Columns(tuple(fields), label, time)


def _listed(names):
    names = list(names)
    more = f" and {len(names) - 50} more" if len(names) > 50 else ""
    return ", ".join(map(str, names[:50])) + more


def mixed(keys):
    """Returns uint64 keys whose bits are all alike random: SplitMix64's output function."""
    z = np.asarray(keys).astype(np.uint64)
    z += np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def hashed_cells(text, starts, ends):
    """Returns keys of pieces of a text, eight bytes at a time.

    Args:
        text: uint8 `[num_bytes]`, with at least 8 bytes after the last piece.
        starts: Integers of any shape, where pieces start.
        ends: The same, where they end.

    Returns:
        uint64 of that shape; pieces with the same bytes have the same key.
    """
    words = np.ndarray(len(text) - 7, "<u8", text, strides=(1,))
    lengths = (ends - starts).astype(np.int64)
    keys = mixed(lengths)
    begins = starts.astype(np.int64)
    num_words = -(-int(lengths.max(initial=0)) // 8)
    for number in range(num_words):
        left = lengths - 8 * number
        part = words[np.minimum(begins + 8 * number, len(words) - 1)] & _MASKS[np.clip(left, 0, 8)]
        keys = np.where(left > 0, mixed(keys ^ part), keys)
    return keys


_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)


def as_seconds(values):
    """Returns times in seconds of numbers in seconds, milli-, micro- or nanoseconds."""
    values = np.asarray(values, np.float64)
    largest = np.nanmax(np.abs(values), initial=0)
    # 2e11 seconds would be in the year 8300.
    for factor in (1e9, 1e6, 1e3):
        if largest > 2e8 * factor:
            return values / factor
    return values
