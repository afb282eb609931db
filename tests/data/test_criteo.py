"""What readers of both of Criteo's formats have in common, and how a file is opened."""

import gzip
import os
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.batches import join
from tests.data.criteo_files import NUM_EXAMPLES
from tf_slipstream.data import open_click_log, text_lines


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
        patch.setattr(text_lines, "_BLOCK_BYTES", 1000)  # A few lines, so that there are many.
        batches = list(open_click_log(path).batches(num_examples, batch_size, start))
    assert all(len(label) == batch_size for _, label in batches[:-1])
    for column, whole in zip(join(batches), expected, strict=True):
        np.testing.assert_array_equal(column, whole[start:stop])


def test_reading_past_the_end_gives_no_batches(text_path, parquet_path):
    for path in (text_path, parquet_path):
        assert list(open_click_log(path).batches(10, 5, start=NUM_EXAMPLES)) == []


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
    ("name", "content", "error", "message"),
    [
        ("absent.txt", None, FileNotFoundError, "there is no file"),
        ("empty.txt", b"", ValueError, "is empty"),
        ("empty.gz", gzip.compress(b"", mtime=0), ValueError, "has no lines"),
        ("blank.txt", b"\xef\xbb\xbf\r\n\n", ValueError, "has no lines"),
        (
            "cut.gz",
            gzip.compress(b"1\t2", mtime=0)[:8],
            ValueError,
            "line 1 or later: .*cut off or damaged",
        ),
        ("train.txt.gz", b"0\t1\t5\n", ValueError, "is not gzipped, despite its name"),
        ("image.png", b"\x89PNG\r\n", ValueError, "Expected parquet, gzipped text"),
        ("not.parquet", b"label\tI1\n", ValueError, "Expected parquet, gzipped text"),
        ("cut.parquet", b"PAR1 and no more", ValueError, "expected parquet; it is cut off"),
    ],
)
def test_a_file_of_no_known_format_is_refused(tmp_path, name, content, error, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        open_click_log(path)
    assert str(path) in str(caught.value)


def test_a_directory_or_a_pipe_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder. Pass one of the files in it"):
        open_click_log(tmp_path)
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ValueError, match="Expected a regular file; .*pipe.txt is none"):
        open_click_log(tmp_path / "pipe.txt")


def test_a_file_that_may_not_be_read_is_named(text_path, monkeypatch):
    def forbidden(path, mode):
        raise PermissionError(13, "Permission denied")

    # By hand, because root may read everything.
    monkeypatch.setattr(pathlib.Path, "open", forbidden)
    with pytest.raises(PermissionError, match=rf"{text_path} is none .Permission denied.\. Change"):
        open_click_log(text_path)


@pytest.mark.parametrize("hash_size", [1, -3, 2.0, 2**31])
def test_a_bad_hash_size_is_refused(text_path, parquet_path, hash_size):
    for path in (text_path, parquet_path):
        with pytest.raises(ValueError, match="Expected `hash_size`"):
            open_click_log(path, hash_size)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64])
def test_a_numpy_integer_may_be_the_hash_size(text_path, parquet_path, dtype):
    for path in (text_path, parquet_path):
        log = open_click_log(path, dtype(100))
        expected = open_click_log(path, 100)
        assert log.cardinalities == (100,) * 26
        for column, whole in zip(
            join(log.batches(None, 64)), join(expected.batches(None, 64)), strict=True
        ):
            np.testing.assert_array_equal(column, whole)


def test_only_parquet_needs_pyarrow(text_path, parquet_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "tf_slipstream.data.criteo_parquet", raising=False)
    assert open_click_log(text_path).num_examples == NUM_EXAMPLES
    with pytest.raises(ImportError, match=r"pip install \"tf_slipstream\[data\]\""):
        open_click_log(parquet_path)
