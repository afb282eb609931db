"""Criteo's columns in parquet, in every type that users' files have them, and damaged files."""

import numpy as np
import pytest

from tests.data.batches import join
from tests.data.criteo_files import (
    NUM_EXAMPLES,
    assert_same,
    columns_of,
    features_of,
    write_parquet,
)
from tf_slipstream.data import open_click_log

REASON = "pyarrow writes the parquet files of these tests"
pyarrow = pytest.importorskip("pyarrow", reason=REASON)
parquet = pytest.importorskip("pyarrow.parquet", reason=REASON)

ID_DTYPES = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


@pytest.fixture
def columns(table, small_ids):
    return columns_of(table, small_ids)


def ids_of(path, hash_size):
    return join(open_click_log(path, hash_size).batches(None, 64))[1]


@pytest.mark.parametrize("has_statistics", [True, False])
def test_ids_are_kept_without_a_hash_size(table, columns, small_ids, tmp_path, has_statistics):
    path = tmp_path / "log.parquet"
    write_parquet(path, columns, row_group_size=70, write_statistics=has_statistics)
    log = open_click_log(path)
    assert log.cardinalities == tuple(small_ids.max(axis=0) + 1)
    assert (log.num_dense, log.num_examples) == (13, NUM_EXAMPLES)
    label, counts, _ = table
    assert_same(join(log.batches(None, 64)), (features_of(counts), small_ids, label))


@pytest.mark.parametrize("dtype", ID_DTYPES)
@pytest.mark.parametrize("has_statistics", [True, False])
def test_ids_of_every_type_are_kept_or_reduced(columns, tmp_path, dtype, has_statistics):
    limits = np.iinfo(dtype)
    values = np.arange(NUM_EXAMPLES) % 100
    wide = values.astype(dtype)
    wide[:4] = limits.max, limits.max - 1, limits.min, limits.min // 2
    path = write_parquet(
        tmp_path / "log.parquet",
        {**columns, "C1": values.astype(dtype), "C2": wide},
        write_statistics=has_statistics,
    )
    for hash_size in (2, 1000, 2**31 - 1):
        ids = ids_of(path, hash_size)
        assert ids[:, 0].tolist() == [value % hash_size for value in values.tolist()]
        assert ids[:, 1].tolist() == [value % hash_size for value in wide.tolist()]
    path = write_parquet(path, {**columns, "C1": values.astype(dtype)})
    assert ids_of(path, None)[:, 0].tolist() == values.tolist()


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.uint64])
def test_values_past_int32_need_a_hash_size(columns, tmp_path, dtype):
    wide = np.full(NUM_EXAMPLES, np.iinfo(dtype).max)
    path = write_parquet(tmp_path / "log.parquet", {**columns, "C2": wide})
    with pytest.raises(ValueError, match=rf"column C2; .* has {wide[0]}\. Pass `hash_size`"):
        open_click_log(path)


@pytest.mark.parametrize(
    "value_type", [pyarrow.int32(), pyarrow.uint64(), pyarrow.dictionary("int8", "int64")]
)
@pytest.mark.parametrize("has_statistics", [True, False])
def test_missing_ids_become_id_0(columns, tmp_path, value_type, has_statistics):
    values = [None if row % 5 == 0 else row % 90 for row in range(NUM_EXAMPLES)]
    columns["C1"] = pyarrow.array(values).cast(getattr(value_type, "value_type", value_type))
    if pyarrow.types.is_dictionary(value_type):
        columns["C1"] = columns["C1"].dictionary_encode()
    columns["C2"] = pyarrow.nulls(NUM_EXAMPLES, pyarrow.int16())
    columns["C3"] = pyarrow.nulls(NUM_EXAMPLES)
    path = write_parquet(
        tmp_path / "log.parquet", columns, row_group_size=70, write_statistics=has_statistics
    )
    log = open_click_log(path)
    assert log.cardinalities[:3] == (90, 1, 1)
    for hash_size in (None, 1000):
        ids = ids_of(path, hash_size)
        assert ids[:, 0].tolist() == [value or 0 for value in values]
        assert not ids[:, 1:3].any()


def test_counts_and_labels_of_every_type_are_read(table, columns, tmp_path):
    label, counts, _ = table
    integers = pyarrow.array(counts[:, 0], from_pandas=True).cast(pyarrow.int32())
    columns |= {
        "label": label.astype(bool),
        "I1": integers,
        "I2": integers.cast(pyarrow.int8(), safe=False).dictionary_encode(),
        "I3": pyarrow.nulls(NUM_EXAMPLES),
        "I4": counts[:, 0].astype(np.float16),
        "I5": np.full(NUM_EXAMPLES, 2**64 - 1, np.uint64),
        "I6": np.full(NUM_EXAMPLES, -128, np.int8),
    }
    path = write_parquet(tmp_path / "log.parquet", columns)
    dense, _, read_label = join(open_click_log(path).batches(None, 64))
    np.testing.assert_array_equal(read_label, label)
    small = np.where(np.isnan(counts[:, 0]), 0, counts[:, 0]).astype(np.int64).astype(np.int8)
    expected = [counts[:, 0], small, np.zeros(NUM_EXAMPLES), counts[:, 0].astype(np.float16)]
    expected += [np.full(NUM_EXAMPLES, 2.0**64), np.zeros(NUM_EXAMPLES)]
    with np.errstate(all="ignore"):
        features = features_of(np.stack(expected, axis=1).astype(np.float64))
    np.testing.assert_allclose(dense[:, :6], features, rtol=4 * 2.0**-24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.drop_columns(["C3", "I2"]), "lacks I2, C3"),
        (lambda data: data.append_column("C3", data["C4"]), "has two of C3"),
        (lambda data: data.slice(0, 0), "has no rows"),
        (
            lambda data: data.set_column(20, "C7", [["a"] * NUM_EXAMPLES]),
            "Expected integers in column C7; .* has string",
        ),
        (
            lambda data: data.set_column(
                20, "C7", pyarrow.array(["a"] * NUM_EXAMPLES).dictionary_encode()
            ),
            "Expected integers in column C7; .* has string",
        ),
        (
            lambda data: data.set_column(20, "C7", data["I1"]),
            "Expected integers in column C7; .* has float",
        ),
    ],
)
def test_other_columns_are_refused(parquet_path, tmp_path, change, message):
    path = write_parquet(tmp_path / "log.parquet", change(parquet.read_table(parquet_path)))
    with pytest.raises(ValueError, match=message):
        open_click_log(path)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("label", 2, "0 or 1"),
        ("C5", -7, r"in \[0, \d+\), or `hash_size` to be passed"),
        ("I3", np.inf, "finite in float32"),
        ("I3", -np.inf, "finite in float32"),
    ],
)
def test_a_bad_value_is_named(columns, tmp_path, name, value, expected):
    columns[name] = columns[name].copy()
    columns[name][[123, 130, 131]] = value
    path = write_parquet(tmp_path / "log.parquet", columns)
    log = open_click_log(path)
    message = (
        f"example 123: expected {name} to be {expected}; got {value}. So are 2 more of the 200"
    )
    with pytest.raises(ValueError, match=message):
        list(log.batches(None, 32, start=100))
    assert len(join(log.batches(123, 32))[2]) == 123


def test_a_count_past_float32_is_refused(columns, tmp_path):
    columns["I3"] = np.full(NUM_EXAMPLES, 1e39)
    path = write_parquet(tmp_path / "log.parquet", columns)
    with pytest.raises(ValueError, match="example 0: expected I3 to be finite in float32"):
        list(open_click_log(path).batches(None, 32))


def test_a_missing_label_is_named(columns, tmp_path):
    columns["label"] = pyarrow.array([1, None] * (NUM_EXAMPLES // 2))
    path = write_parquet(tmp_path / "log.parquet", columns)
    with pytest.raises(ValueError, match="example 1: expected label to be 0 or 1; got nan"):
        list(open_click_log(path).batches(None, 32))


def test_a_damaged_page_is_named_after_what_can_be_read(columns, tmp_path):
    path = tmp_path / "log.parquet"
    write_parquet(path, columns, row_group_size=100, write_page_checksum=True)
    group = parquet.ParquetFile(path).metadata.row_group(1)
    column = group.column(group.num_columns - 1)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    log = open_click_log(path)
    assert len(join(log.batches(100, 32))[2]) == 100
    with pytest.raises(ValueError, match=rf"{path}, example 100 or later: .*damaged"):
        list(log.batches(None, 32, start=100))


def test_a_file_that_was_cut_off_is_named(parquet_path, tmp_path):
    path = tmp_path / "cut.parquet"
    path.write_bytes(parquet_path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=f"{path}: expected parquet; it is cut off, damaged"):
        open_click_log(path)


def test_a_file_that_is_cut_off_after_it_was_opened_is_named(parquet_path, tmp_path):
    path = tmp_path / "log.parquet"
    path.write_bytes(parquet_path.read_bytes())
    log = open_click_log(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{path}: expected parquet; it is cut off, damaged"):
        list(log.batches(None, 32))
