"""Criteo files that the tests write, and what reading them has to give."""

import numpy as np

NUM_EXAMPLES = 300
DENSE_NAMES = [f"I{number}" for number in range(1, 14)]
ID_NAMES = [f"C{number}" for number in range(1, 27)]


def make_table():
    """Raw columns: label, counts with NaN for missing ones, values with -1 for missing ones."""
    generator = np.random.default_rng(0)
    label = generator.integers(2, size=NUM_EXAMPLES)
    counts = np.floor(generator.lognormal(2, 2, (NUM_EXAMPLES, 13))) - 2
    counts[generator.random(counts.shape) < 0.2] = np.nan
    values = generator.integers(2**32, size=(NUM_EXAMPLES, 26))
    values[generator.random(values.shape) < 0.2] = -1
    values[0] = -1
    values[1, :2] = [0, 2**32 - 1]
    return label, counts, values


def text_of(table):
    """The table as Criteo writes it."""
    lines = []
    for label, counts, values in zip(*table, strict=True):
        decimals = ["" if np.isnan(count) else str(int(count)) for count in counts]
        hexadecimals = ["" if value < 0 else f"{value:08x}" for value in values]
        lines.append("\t".join([str(label), *decimals, *hexadecimals]) + "\n")
    return "".join(lines)


def features_of(counts):
    return np.log1p(np.maximum(np.nan_to_num(counts), 0))


def expected_of_text(table, hash_size):
    label, counts, values = table
    ids = np.where(values < 0, 0, 1 + values % (hash_size - 1))
    return features_of(counts), ids, label


def columns_of(table, ids):
    """The table's label and counts, and `ids`, as a dict of the columns of a parquet file."""
    label, counts, _ = table
    columns = {"label": label.astype(np.int8)}
    columns |= {name: counts[:, i].astype(np.float32) for i, name in enumerate(DENSE_NAMES)}
    return columns | {name: ids[:, i] for i, name in enumerate(ID_NAMES)}


def write_parquet(path, columns, **options):
    """Writes a dict of arrays, or a `pyarrow.Table`."""
    # Here, because pyarrow is optional.
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def assert_same(columns, expected):
    dense, ids, label = columns
    # log1p in float32 is within 2 units in the last place.
    np.testing.assert_allclose(dense, expected[0], rtol=4 * 2.0**-24)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_array_equal(label, expected[2])
    assert [column.dtype for column in columns] == [np.float32, np.int32, np.float32]
