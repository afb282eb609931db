"""Checks what `tf-slipstream analyze` prints and writes, and what it refuses."""

import concurrent.futures
import errno
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tf_slipstream.analysis.report_page import page
from tf_slipstream.cli import main
from tf_slipstream.cli.failures import sentence_of

NUM = 30_000


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "clicks.csv"
    rng = np.random.default_rng(0)
    users, items = rng.zipf(1.3, NUM) % 3000, rng.zipf(1.6, NUM) % 200
    clicks = rng.random(NUM) < 0.05
    rows = [f"{u},{i},{int(c)}" for u, i, c in zip(users, items, clicks)]
    path.write_text("\n".join(["user,item,click", *rows]))
    return path


def analyze(capsys, *arguments):
    assert main(["analyze", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_it_prints_in_80_columns_what_the_json_has(log, capsys):
    found = json.loads(analyze(capsys, log, "--batch-size", 64, "--workers", 4, "--json"))
    printed = analyze(capsys, log, "--batch-size", 64, "--workers", 4)
    # A command may be as long as a path is.
    assert max(len(line) for line in printed.splitlines() if "next: " not in line) <= 80
    assert printed.startswith(found["verdict"]["answer"].upper())
    assert found["base_rate"] == pytest.approx(0.05, abs=0.01)
    assert found["inputs"]["kept"] == 0.5
    for field in found["fields"]:
        assert re.search(rf"{field['name']} +{field['distinct_ids']:,} ", printed)
    for name, one in found["policies"].items():
        share = f"{one['lookups_deferred']:.0%} / {one['row_updates_deferred']:.0%}"
        assert re.search(rf"{name} +{share}", printed)
        assert one["lookups_deferred"] <= one["most_lookups_deferred"]
    speeds = [found["costs"]["steps"][name]["speed"] for name in ("stock", "none", "aggressive")]
    assert speeds[0] < speeds[1] == 1 < speeds[2]


def test_the_page_has_the_numbers_and_nothing_from_elsewhere(log, capsys, tmp_path):
    path = tmp_path / "report.html"
    arguments = (log, "--batch-size", 64, "--workers", 4, "--json", "--html", path)
    found = json.loads(analyze(capsys, *arguments))
    text = path.read_text()
    assert "--html" in text and "analyze" in text  # the command that made it
    assert "<script" not in text and not re.search(r"(src|href|url\()\s*=?\s*[\"']?http", text)
    for field in found["fields"]:
        assert f"<td>{field['distinct_ids']:,}</td>" in text
        assert f">{field['hot_shares']['0.01']:.0%}</text>" in text
    for one in found["policies"].values():
        assert f">{one['lookups_deferred']:.0%}</text>" in text
    assert text.count("<svg") == text.count("</svg>") >= 2
    assert 'lang="ja"' in page(found, "", "ja")


def test_a_page_that_cannot_be_written_leaves_nothing(log, capsys, tmp_path):
    path = tmp_path / "no" / "report.html"
    assert main(["analyze", str(log), "--html", str(path)]) == 1
    assert "Make it first" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_full_disk_gets_a_sentence_and_leaves_what_was_there(log, capsys, monkeypatch, tmp_path):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "report.html"
    path.write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    assert main(["analyze", str(log), "--html", str(path)]) == 1
    assert f"no space is left for {path}. Free some" in capsys.readouterr().err
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"report.html": "before"}


def test_a_page_follows_no_link_that_waits_beside_it(log, capsys, tmp_path):
    path = tmp_path / "report.html"
    (tmp_path / "others").write_text("kept")
    (tmp_path / "report.html.part").symlink_to("others")
    assert main(["analyze", str(log), "--html", str(path)]) == 0
    assert (tmp_path / "others").read_text() == "kept" and path.stat().st_size > 1000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is Linux's")
def test_output_that_cannot_be_printed_gets_a_sentence(log):
    program = [sys.executable, "-m", "tf_slipstream.cli", "analyze", str(log)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "tf-slipstream analyze: error: no space is left for the output."
    )
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_pipe_is_written_to_and_not_replaced(log, tmp_path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_text)
        analyze(capsys, log, "--html", pipe)
        assert read.result(timeout=60).startswith("<!doctype html>")
    assert pipe.is_fifo()


def test_one_machine_needs_no_policy(log, capsys):
    found = json.loads(analyze(capsys, log, "--json"))
    assert found["verdict"]["policy"] is None and "stock" not in found["costs"]["steps"]
    assert {row["speed"] for row in found["costs"]["steps"].values()} == {1.0}


def test_the_dense_part_decides_whether_bytes_do(log, capsys):
    def answer(*more):
        arguments = (log, "--batch-size", 64, "--workers", 8, "--json", *more)
        return json.loads(analyze(capsys, *arguments))["verdict"]

    slow = answer("--bandwidth", 0.01, "--compute-ms", 1)
    fast = answer("--bandwidth", 100, "--compute-ms", 100)
    assert slow["answer"] in ("go", "try") and slow["policy"] in slow["next"]
    assert fast["answer"] == "not worth it" and fast["policy"] is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--fields", "user,shop"], "no column 'shop'"),
        (["--sample", "0"], "--sample to be above 0"),
        (["--batch-size", "0"], "--batch-size to be from 1"),
        (["--bandwidth", "0"], "--bandwidth to be above 0"),
        (["--workers", "0"], "--workers to be at least 1"),
        (["--fields", "user,user"], "names a column twice"),
        (["--label", "user"], ""),
    ],
)
def test_wrong_wishes_get_a_sentence(arguments, message, log, capsys):
    code = main(["analyze", str(log), *arguments])
    assert code == (1 if message else 0)
    assert message in capsys.readouterr().err


def test_no_such_file_gets_a_sentence(capsys):
    assert main(["analyze", "no such file"]) == 1
    assert "There is no no such file; expected a log: text" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty. Pass a log"),
        (b"user,item\n", "The log has no examples"),
        (b"\x01\x02\x03\x04 1,2\n", "neither text nor parquet"),
        (b"PAR1 and no more", "is parquet that is cut off"),
        (b"user,item\n1,2\n3\n", "line 3"),
        (b"\x1f\x8b cut off", "gzipped text that is cut off"),
    ],
)
def test_a_bad_file_gets_a_sentence(content, message, tmp_path, capsys):
    path = tmp_path / "log"
    path.write_bytes(content)
    assert main(["analyze", str(path)]) == 1
    error = capsys.readouterr().err
    assert message in error and "Errno" not in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "number, message",
    [
        (errno.EACCES, "a.csv may not be read or written. Change its permissions"),
        (errno.ENOSPC, "no space is left for a.csv. Free some"),
        (errno.EIO, "the disk failed at a.csv. Copy"),
        (errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)),
    ],
)
def test_what_the_system_refuses_gets_a_sentence(number, message):
    assert message in sentence_of(OSError(number, os.strerror(number), "a.csv"))
