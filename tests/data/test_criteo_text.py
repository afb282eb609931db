"""Criteo's text, as it publishes it and as other programs write it, and where it is broken."""

import gzip
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.batches import join
from tests.data.criteo_files import NUM_EXAMPLES, assert_same, expected_of_text
from tf_slipstream.data import open_click_log, text_lines


def write_with(path, text, changes):
    """Writes `text` with `{(line, column): value}` changed, lines counted from 1."""
    lines = [line.split("\t") for line in text.splitlines()]
    for (line, column), value in changes.items():
        lines[line - 1][column] = value
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    return path


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


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    line_ends=st.lists(
        st.sampled_from(["\n", "\r\n", "\n\n", "\r\n\r\n\n", "\n\n\n\n"]), min_size=1, max_size=9
    ),
    prefix=st.sampled_from(["", "\ufeff", "\n", "\ufeff\r\n\n"]),
    has_last_end=st.booleans(),
    is_gzipped=st.booleans(),
    bad_line=st.none() | st.integers(0, NUM_EXAMPLES - 1),
)
def test_marks_line_ends_and_empty_lines_change_nothing_but_line_numbers(
    text, table, tmp_path_factory, line_ends, prefix, has_last_end, is_gzipped, bad_line
):
    lines = text.splitlines()
    if bad_line is not None:
        lines[bad_line] = "2" + lines[bad_line][1:]
    ends = [line_ends[i % len(line_ends)] for i in range(len(lines))]
    if not has_last_end:
        ends[-1] = ""
    data = prefix + "".join(map("".join, zip(lines, ends, strict=True)))
    path = tmp_path_factory.mktemp("lines") / "train.txt"
    path.write_bytes(gzip.compress(data.encode()) if is_gzipped else data.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_lines, "_BLOCK_BYTES", 1000)
        log = open_click_log(path)
        assert log.num_examples == NUM_EXAMPLES
        if bad_line is None:
            assert_same(join(log.batches(None, 64)), expected_of_text(table, 100_000))
            return
        number = 1 + prefix.count("\n") + "".join(ends[:bad_line]).count("\n")
        with pytest.raises(ValueError, match=f"train.txt, line {number}: expected label 0 or 1"):
            list(log.batches(None, 64))
    assert_same(
        join([*log.batches(bad_line, 64), *log.batches(None, 64, start=bad_line + 1)]),
        [np.delete(column, bad_line, axis=0) for column in expected_of_text(table, 100_000)],
    )


def test_counts_and_labels_may_have_a_fraction(text, tmp_path):
    values = {"3.0": 3, "3.": 3, "12.75": 12.75, ".5": 0.5, "-2.50": 0, "007.000": 7, "0.0": 0}
    changes = {(5, 1 + i): value for i, value in enumerate(values)}
    path = write_with(tmp_path / "train.txt", text, {**changes, (5, 0): "1.0"})
    dense, _, label = join(open_click_log(path).batches(1, 1, start=4))
    np.testing.assert_allclose(dense[0, : len(values)], np.log1p(list(values.values())), rtol=1e-6)
    assert label[0] == 1


def test_values_may_have_16_digits(text, tmp_path):
    path = write_with(tmp_path / "train.txt", text, {(5, 14): "f" * 16, (5, 15): "0" * 15 + "a"})
    _, ids, _ = join(open_click_log(path, hash_size=1000).batches(1, 1, start=4))
    assert ids[0, :2].tolist() == [1 + (2**64 - 1) % 999, 1 + 10]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, "2", "label 0 or 1; got '2'"),
        (0, "", "label 0 or 1; got ''"),
        (0, "-1", "label 0 or 1; got '-1'"),
        (0, "0.5", "label 0 or 1; got '0.5'"),
        (1, "1.5.2", "I1 to be nothing or a number of up to 15 digits; got '1.5.2'"),
        (13, "-", "I13 .*; got '-'"),
        (13, ".", "I13 .*; got '.'"),
        (3, "12a", "I3 .*; got '12a'"),
        (3, "inf", "I3 .*; got 'inf'"),
        (3, "9" * 16, "I3 .*; got '9{16}'"),
        (14, "xyz", "C1 to be nothing or up to 16 hexadecimal digits; got 'xyz'"),
        (39, "-1", "C26 .*; got '-1'"),
        (39, "1.0", "C26 .*; got '1.0'"),
        (20, "0" * 17, "C7 .*; got '0{17}'"),
        (5, "1\t2", "40 values separated by tabs; got 41"),
        (5, "1\r2", r"I5 .*; got '1\\r2'"),
    ],
)
def test_a_bad_line_is_named_with_what_was_expected(text, tmp_path, column, value, message):
    path = tmp_path / "train.tsv"
    lines = [line.split("\t") for line in text.split("\n")]
    lines[200][column] = value
    path.write_bytes("\n".join(map("\t".join, lines)).encode())
    log = open_click_log(path)
    with pytest.raises(ValueError, match=rf"train\.tsv, line 201: expected .*{message}\. Correct"):
        list(log.batches(100, 32, start=150))
    assert len(join(log.batches(200, 32))[2]) == 200


@pytest.mark.parametrize("value", ["x", "1\t2"])
def test_other_bad_lines_are_counted(text, tmp_path, value):
    changes = {(line, 3): value for line in (7, 8, 250)}
    path = write_with(tmp_path / "train.txt", text, changes)
    message = "line 7: .*So are at least 2 more of the 300 lines that were read with it"
    with pytest.raises(ValueError, match=message):
        list(open_click_log(path).batches(None, 32))


def test_a_file_without_line_ends_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_lines, "_BLOCK_BYTES", 100)
    path = tmp_path / "noise"
    path.write_bytes(b"x" * 1000)
    with pytest.raises(
        ValueError, match="line 1 or later: expected lines of text; got one of over"
    ):
        open_click_log(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-4],
        lambda data: data[:-8] + bytes(8),
        lambda data: data + b"more",
    ],
    ids=["cut", "end_missing", "other_checksum", "more_behind"],
)
def test_damaged_gzip_is_named_after_what_can_be_read(text, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(text_lines, "_BLOCK_BYTES", 1000)
    path = tmp_path / "train.txt.gz"
    path.write_bytes(damage(gzip.compress(text.encode())))
    log = open_click_log(path)
    message = (
        r"train\.txt\.gz, line (\d+) or later: .*cut off or damaged \(.+\)\. Get the file anew"
    )
    with pytest.raises(ValueError, match=message):
        _ = log.num_examples
    num_read = 0
    with pytest.raises(ValueError, match=message) as caught:
        for _ in log.batches(None, 1):
            num_read += 1
    assert int(re.search(message, str(caught.value))[1]) == num_read + 1 > 50


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_a_changed_byte_of_gzip_is_an_error_that_names_the_file(text, tmp_path_factory, data):
    raw = bytearray(gzip.compress(text.encode()))
    position = data.draw(st.integers(10, len(raw) - 1))  # The header has a time, which is not read.
    raw[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("gzip") / "train.txt.gz"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"train\.txt\.gz, line \d+"):
        list(open_click_log(path).batches(None, 64))


def test_an_error_of_the_disk_names_the_file(text_path, monkeypatch):
    log = open_click_log(text_path)

    def broken(stream, path, line):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(text_lines, "_read_lines", broken)
    with pytest.raises(OSError, match=f"Input/output error: '{text_path}'"):
        list(log.batches(None, 32))
