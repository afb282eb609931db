"""Readers of Criteo files, against files that the tests write."""

import gzip
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.batches import join
from tf_slipstream.data import criteo_text, open_click_log

REASON = "pyarrow writes the parquet files of these tests"
pyarrow = pytest.importorskip("pyarrow", reason=REASON)
parquet = pytest.importorskip("pyarrow.parquet", reason=REASON)

NUM_EXAMPLES = 300
DENSE_NAMES = [f"I{number}" for number in range(1, 14)]
ID_NAMES = [f"C{number}" for number in range(1, 27)]


def assert_same(columns, expected):
    dense, ids, label = columns
    # log1p in float32 is within 2 units in the last place.
    np.testing.assert_allclose(dense, expected[0], rtol=4 * 2.0**-24)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_array_equal(label, expected[2])
    assert [column.dtype for column in columns] == [np.float32, np.int32, np.float32]


@pytest.fixture(scope="module")
def table():
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


@pytest.fixture(scope="module")
def text(table):
    """The table as Criteo writes it."""
    lines = []
    for label, counts, values in zip(*table, strict=True):
        decimals = ["" if np.isnan(count) else str(int(count)) for count in counts]
        hexadecimals = ["" if value < 0 else f"{value:08x}" for value in values]
        lines.append("\t".join([str(label), *decimals, *hexadecimals]) + "\n")
    return "".join(lines)


@pytest.fixture(scope="module")
def text_path(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "day_0"
    path.write_text(text)
    return path


def expected_of_text(table, hash_size):
    label, counts, values = table
    ids = np.where(values < 0, 0, 1 + values % (hash_size - 1))
    return np.log1p(np.maximum(np.nan_to_num(counts), 0)), ids, label


def write_parquet(path, table, ids, **options):
    label, counts, _ = table
    columns = {"label": label.astype(np.int8)}
    columns |= {name: counts[:, i].astype(np.float32) for i, name in enumerate(DENSE_NAMES)}
    columns |= {name: ids[:, i] for i, name in enumerate(ID_NAMES)}
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


@pytest.fixture(scope="module")
def small_ids():
    return np.random.default_rng(1).integers(1, 5000, (NUM_EXAMPLES, 26)).astype(np.int32)


@pytest.fixture(scope="module")
def parquet_path(table, small_ids, tmp_path_factory):
    path = tmp_path_factory.mktemp("parquet") / "log.parquet"
    return write_parquet(path, table, small_ids, row_group_size=70)


@pytest.mark.parametrize("hash_size", [None, 2, 1000, 2**31 - 1])
def test_text_is_hashed_and_logged(text_path, table, hash_size):
    log = open_click_log(text_path, hash_size)
    cardinality = 100_000 if hash_size is None else hash_size
    assert log.cardinalities == (cardinality,) * 26
    assert log.num_dense == 13
    assert log.num_examples == NUM_EXAMPLES
    assert_same(join(log.batches(None, 64)), expected_of_text(table, cardinality))


def test_gzipped_text_is_told_by_its_content(text, table, tmp_path):
    path = tmp_path / "renamed.log"
    path.write_bytes(gzip.compress(text.encode()))
    log = open_click_log(path)
    assert log.num_examples == NUM_EXAMPLES
    assert_same(join(log.batches(None, 64)), expected_of_text(table, 100_000))


def test_upper_case_and_a_last_line_without_end_are_read(text, table, tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(text.upper().removesuffix("\n"))
    log = open_click_log(str(path))
    assert log.num_examples == NUM_EXAMPLES
    assert_same(join(log.batches(None, 64)), expected_of_text(table, 100_000))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    start=st.integers(0, NUM_EXAMPLES - 1),
    num_examples=st.none() | st.integers(1, NUM_EXAMPLES + 10),
    batch_size=st.integers(1, NUM_EXAMPLES + 10),
    is_parquet=st.booleans(),
)
def test_examples_do_not_depend_on_batch_size_or_start(
    text_path, parquet_path, start, num_examples, batch_size, is_parquet
):
    path = parquet_path if is_parquet else text_path
    expected = join(open_click_log(path).batches(None, NUM_EXAMPLES))
    stop = None if num_examples is None else start + num_examples
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(criteo_text, "_BLOCK_BYTES", 1000)  # A few lines, so that there are many.
        batches = list(open_click_log(path).batches(num_examples, batch_size, start))
    assert all(len(label) == batch_size for _, label in batches[:-1])
    for column, whole in zip(join(batches), expected, strict=True):
        np.testing.assert_array_equal(column, whole[start:stop])


def test_reading_past_the_end_gives_no_batches(text_path, parquet_path):
    for path in (text_path, parquet_path):
        assert list(open_click_log(path).batches(10, 5, start=NUM_EXAMPLES)) == []


@pytest.mark.parametrize("has_statistics", [True, False])
def test_parquet_ids_are_kept_without_a_hash_size(table, small_ids, tmp_path, has_statistics):
    path = write_parquet(
        tmp_path / "log.parquet",
        table,
        small_ids,
        row_group_size=70,
        write_statistics=has_statistics,
    )
    log = open_click_log(path)
    assert log.cardinalities == tuple(small_ids.max(axis=0) + 1)
    assert (log.num_dense, log.num_examples) == (13, NUM_EXAMPLES)
    dense, _, label = expected_of_text(table, 2)
    assert_same(join(log.batches(None, 64)), (dense, small_ids, label))


def test_parquet_ids_past_the_hash_size_are_reduced(parquet_path, small_ids):
    log = open_click_log(parquet_path, hash_size=1000)
    assert log.cardinalities == (1000,) * 26
    _, ids, _ = join(log.batches(None, 64))
    np.testing.assert_array_equal(ids, small_ids % 1000)


def test_missing_parquet_ids_become_id_0(table, tmp_path):
    _, _, values = table
    ids = np.ma.masked_less(values, 0)
    columns = {"label": table[0]}
    columns |= {name: np.zeros(NUM_EXAMPLES) for name in DENSE_NAMES}
    columns |= {
        name: pyarrow.array(ids.data[:, i], mask=ids.mask[:, i]) for i, name in enumerate(ID_NAMES)
    }
    path = tmp_path / "log.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    _, hashed, _ = join(open_click_log(path, hash_size=1000).batches(None, 64))
    np.testing.assert_array_equal(hashed, ids.filled(0) % 1000)
    with pytest.raises(ValueError, match="column C1; .*Pass `hash_size`"):
        open_click_log(path)


def test_dataset_gives_the_batches(text_path, parquet_path):
    for path in (text_path, parquet_path):
        log = open_click_log(path)
        dataset = log.dataset(None, 64)
        for column, whole in zip(
            join(dataset.as_numpy_iterator()), join(log.batches(None, 64)), strict=True
        ):
            np.testing.assert_array_equal(column, whole)
        assert dataset.element_spec[0][1] == tf.TensorSpec([None, 26], tf.int32)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, "2", "label 0 or 1; got '2'"),
        (0, "", "label 0 or 1; got ''"),
        (0, "-1", "label 0 or 1; got '-1'"),
        (1, "1.5", "I1 to be nothing or up to 15 decimal digits; got '1.5'"),
        (13, "-", "I13 .*; got '-'"),
        (3, "12a", "I3 .*; got '12a'"),
        (14, "xyz", "C1 to be nothing or up to 15 hexadecimal digits; got 'xyz'"),
        (39, "-1", "C26 .*; got '-1'"),
        (20, "0" * 16, "C7 .*; got '0{16}'"),
        (5, "1\t2", "40 values separated by tabs; got 41"),
    ],
)
def test_a_bad_line_is_named_with_what_was_expected(text, tmp_path, column, value, message):
    lines = text.splitlines()
    values = lines[200].split("\t")
    values[column] = value
    lines[200] = "\t".join(values)
    path = tmp_path / "train.tsv"
    path.write_text("\n".join(lines))
    log = open_click_log(path)
    with pytest.raises(ValueError, match=rf"train\.tsv, line 201: expected .*{message}"):
        list(log.batches(100, 32, start=150))
    assert len(join(log.batches(200, 32))[2]) == 200


def test_an_empty_line_is_a_bad_line(text, tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text(text + "\n")
    with pytest.raises(ValueError, match="line 301: expected 40 values.*; got 1"):
        list(open_click_log(path).batches(None, 32))


def test_a_file_without_line_ends_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(criteo_text, "_BLOCK_BYTES", 100)
    path = tmp_path / "noise"
    path.write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match="Expected lines of text"):
        list(open_click_log(path).batches(None, 32))


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("absent.txt", None, FileNotFoundError, "there is no file"),
        ("empty.txt", b"", ValueError, "is empty"),
        ("empty.gz", gzip.compress(b"", mtime=0), ValueError, "has no lines"),
        ("image.png", b"\x89PNG\r\n", ValueError, "Expected parquet, gzipped text"),
        ("not.parquet", b"label\tI1\n", ValueError, "Expected parquet, gzipped text"),
        ("cut.parquet", b"PAR1 and no more", ValueError, "is damaged"),
    ],
)
def test_a_file_of_no_known_format_is_refused(tmp_path, name, content, error, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message):
        open_click_log(path)


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected a file"):
        open_click_log(tmp_path)


@pytest.mark.parametrize("hash_size", [1, -3, 2.0, 2**31])
def test_a_bad_hash_size_is_refused(text_path, parquet_path, hash_size):
    for path in (text_path, parquet_path):
        with pytest.raises(ValueError, match="Expected `hash_size`"):
            open_click_log(path, hash_size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.drop_columns(["C3", "I2"]), "lacks I2, C3"),
        (lambda data: data.slice(0, 0), "has no rows"),
        (
            lambda data: data.set_column(20, "C7", [["a"] * NUM_EXAMPLES]),
            "Expected integers in column C7; .* has string",
        ),
    ],
)
def test_parquet_with_other_columns_is_refused(parquet_path, tmp_path, change, message):
    path = tmp_path / "log.parquet"
    parquet.write_table(change(parquet.read_table(parquet_path)), path)
    with pytest.raises(ValueError, match=message):
        open_click_log(path)


@pytest.mark.parametrize(("name", "value"), [("label", 2), ("C5", -7)])
def test_a_bad_parquet_value_is_named(parquet_path, tmp_path, name, value):
    data = parquet.read_table(parquet_path)
    column = data[name].to_numpy().copy()
    column[123] = value
    path = tmp_path / "log.parquet"
    parquet.write_table(data.set_column(data.schema.names.index(name), name, [column]), path)
    with pytest.raises(ValueError, match=f"example 123: expected {name} to be .*; got {value}"):
        list(open_click_log(path).batches(None, 32, start=100))


def test_only_parquet_needs_pyarrow(text_path, parquet_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "tf_slipstream.data.criteo_parquet", raising=False)
    assert open_click_log(text_path).num_examples == NUM_EXAMPLES
    with pytest.raises(ImportError, match=r"pip install \"tf_slipstream\[data\]\""):
        open_click_log(parquet_path)
