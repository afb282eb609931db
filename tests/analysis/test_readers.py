"""Checks that logs of every format give the same keys, and that bad ones get a sentence."""

import csv
import gzip
import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tf_slipstream.analysis.chunk import LogError, hashed_cells
from tf_slipstream.analysis.open_log import open_log

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

RNG = np.random.default_rng(0)
NUM = 500
USERS = RNG.zipf(1.5, NUM) % 50
ITEMS = np.array([f"item {number}, of 'many'" for number in RNG.integers(0, 30, NUM)])
LABELS = RNG.integers(0, 2, NUM)
TIMES = 1_700_000_000 + 3600 * np.arange(NUM)


def write_csv(path, delimiter=",", quoting=csv.QUOTE_MINIMAL, end="\n"):
    text = io.StringIO()
    rows = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end)
    rows.writerow(["user", "item", "label", "when"])
    rows.writerows(zip(USERS, ITEMS, LABELS, TIMES))
    path.write_bytes(text.getvalue().encode())
    return path


def write_parquet(path):
    item = pa.array(ITEMS.tolist()).dictionary_encode()
    when = pa.array(TIMES, pa.timestamp("s"))
    table = pa.table({"user": USERS, "item": item, "label": LABELS, "when": when})
    pq.write_table(table, path, row_group_size=100)
    return path


def write_records(path):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for user, item, label, time in zip(USERS, ITEMS, LABELS, TIMES):
            features = {
                "user": tf.train.Feature(int64_list=tf.train.Int64List(value=[user])),
                "item": tf.train.Feature(bytes_list=tf.train.BytesList(value=[item.encode()])),
                "label": tf.train.Feature(float_list=tf.train.FloatList(value=[label])),
                "when": tf.train.Feature(int64_list=tf.train.Int64List(value=[time])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())
    return path


def write_gzip(path):
    plain = write_csv(path.with_suffix(".csv"))
    path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


LOGS = {
    "csv": lambda folder: write_csv(folder / "log.csv"),
    "tsv": lambda folder: write_csv(folder / "log.tsv", "\t"),
    "quoted": lambda folder: write_csv(folder / "log.csv", quoting=csv.QUOTE_ALL),
    "windows": lambda folder: write_csv(folder / "log.csv", "\t", end="\r\n"),
    "gzip": lambda folder: write_gzip(folder / "log.gz"),
    "parquet": lambda folder: write_parquet(folder / "log.parquet"),
    "records": lambda folder: write_records(folder / "log.tfrecord"),
}


def read(log):
    chunks = list(log.chunks())
    assert [chunk.done for chunk in chunks] == sorted(chunk.done for chunk in chunks)
    assert chunks[-1].done == pytest.approx(1, abs=0.01)
    keys, labels, times = (
        np.concatenate([getattr(chunk, name) for chunk in chunks])
        for name in ("keys", "labels", "times")
    )
    return keys, labels, times


def partition(values):
    """Returns for each value the place of the first that is equal."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse]


@pytest.mark.parametrize("kind", LOGS)
def test_equal_values_have_equal_keys(kind, tmp_path):
    log = open_log(LOGS[kind](tmp_path), time="when")
    assert sorted(log.columns.fields) == ["item", "user"] and log.columns.label == "label"
    keys, labels, times = read(log)
    for place, name in enumerate(log.columns.fields):
        expected = {"user": USERS, "item": ITEMS}[name]
        np.testing.assert_array_equal(partition(keys[:, place]), partition(expected))
    np.testing.assert_array_equal(labels, LABELS)
    np.testing.assert_array_equal(times, TIMES)


def test_criteo_text_is_known_by_its_columns(tmp_path):
    row = ["1", *map(str, range(13)), *(f"{n:08x}" for n in range(25)), ""]
    (tmp_path / "train.txt").write_text("\t".join(row) + "\n" + "\t".join(["0", *row[1:]]) + "\n\n")
    log = open_log(tmp_path / "train.txt")
    assert log.columns.fields == tuple(f"C{n}" for n in range(1, 27))
    (chunk,) = log.chunks()
    assert chunk.keys.shape == (2, 26) and chunk.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(chunk.keys[0], chunk.keys[1])
    assert len(np.unique(chunk.keys[0])) == 26


def test_a_log_without_names_has_numbers_and_dates(tmp_path):
    lines = ["7,a,2026-01-01", "8,b,2026-01-01T06:00:00Z", "7,b,2026-01-02"]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    log = open_log(tmp_path / "log.csv", fields=["1", "2"], time="3")
    (chunk,) = log.chunks()
    np.testing.assert_array_equal(np.diff(chunk.times), [6 * 3600, 18 * 3600])
    assert chunk.keys[0, 0] == chunk.keys[2, 0] != chunk.keys[1, 0]


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 16, 17])
def test_a_key_is_of_all_bytes_and_of_no_others(length):
    rng = np.random.default_rng(length)
    cell = rng.integers(1, 256, length, np.uint8).tobytes()
    others = [cell[:i] + bytes([cell[i] ^ 1]) + cell[i + 1 :] for i in range(length)]
    others += [cell + b"\0", cell + b"x"]

    def key(one, before=b"", after=b""):
        text = np.frombuffer(before + one + after + bytes(8), np.uint8)
        start = np.array([len(before)])
        return int(hashed_cells(text, start, start + len(one))[0])

    assert key(cell) == key(cell, b"before", b"after")
    assert len({key(cell), *map(key, others)}) == 1 + len(others)


@pytest.mark.parametrize("kind", ["csv", "parquet", "records"])
def test_a_column_that_is_not_there_is_named_with_those_that_are(kind, tmp_path):
    path = LOGS[kind](tmp_path)
    with pytest.raises(LogError, match=r"no column 'shop'.* It has: .*item.*"):
        open_log(path, fields=["user", "shop"])
    with pytest.raises(LogError, match="no column 'day'"):
        open_log(path, time="day")


@pytest.mark.parametrize("name", ["log.csv", "log.parquet", "log.tfrecord"])
def test_an_empty_log_gets_a_sentence(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(LogError, match="is empty"):
        open_log(tmp_path / name)


def test_a_log_without_rows_gets_a_sentence(tmp_path):
    pq.write_table(pa.table({"user": pa.array([], pa.int64())}), tmp_path / "log.parquet")
    with pytest.raises(LogError, match="no rows"):
        open_log(tmp_path / "log.parquet")


@pytest.mark.parametrize("kind", ["gzip", "parquet", "records"])
def test_a_file_that_was_cut_off_gets_a_sentence(kind, tmp_path):
    path = LOGS[kind](tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 20])
    with pytest.raises(LogError, match="cut off"):
        read(open_log(path, time="when"))


def test_a_line_with_too_few_values_is_told(tmp_path):
    (tmp_path / "log.csv").write_text("user,item\na,b\na\n")
    with pytest.raises(LogError, match=r"line 3 or soon after: expected 2 values.*; got 1"):
        list(open_log(tmp_path / "log.csv").chunks())


def test_a_column_of_floats_holds_no_ids(tmp_path):
    pq.write_table(pa.table({"x": [0.5]}), tmp_path / "log.parquet")
    with pytest.raises(LogError, match="no column of ids"):
        open_log(tmp_path / "log.parquet")
    with pytest.raises(LogError, match="expected integers or text in column 'x'"):
        open_log(tmp_path / "log.parquet", fields=["x"])


def test_text_and_parquet_need_no_tensorflow(tmp_path):
    paths = [str(write_csv(tmp_path / "log.csv")), str(write_parquet(tmp_path / "log.parquet"))]
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from tf_slipstream.cli import main\n"
        f"for path in {paths!r}: assert main(['analyze', path, '--json']) == 0"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
