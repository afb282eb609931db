"""Files and folders appear whole or not at all, and never in the place of others."""

import errno
import fcntl
import os
import pathlib
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from tf_slipstream.delta import atomic
from tf_slipstream.delta.errors import ExportError

ROOT = pathlib.Path(__file__).parents[2]
DAY = 24 * 3600


def write_file(path, content="new"):
    with atomic.new_file(path) as file:
        file.write(content.encode())


def write_folder(path, content="new"):
    with atomic.new_folder(path) as folder:
        (folder / "file").write_text(content)


def content_of(path):
    return (path / "file" if path.is_dir() else path).read_text()


def make_old(path):
    seconds = time.time() - 2 * DAY
    os.utime(path, (seconds, seconds))


writers = pytest.mark.parametrize("write", [write_file, write_folder])


@writers
def test_what_is_complete_appears_and_nothing_else(write, tmp_path):
    write(tmp_path / "7")
    assert content_of(tmp_path / "7") == "new"
    assert os.listdir(tmp_path) == ["7"]


@writers
def test_a_failure_leaves_nothing(write, tmp_path):
    new = atomic.new_file if write is write_file else atomic.new_folder
    with pytest.raises(KeyboardInterrupt), new(tmp_path / "7"):
        (left,) = os.listdir(tmp_path)
        assert left.startswith(".7.partial-")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


@writers
def test_permissions_follow_the_umask_which_is_not_touched(write, tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("it is the whole process's"))
        write(tmp_path / "7")
    finally:
        monkeypatch.undo()
        os.umask(before)
    mode = stat.S_IMODE((tmp_path / "7").stat().st_mode)
    assert mode == (0o640 if write is write_file else 0o750)


@writers
@pytest.mark.parametrize("exists", ["file", "folder", "link to nothing"])
def test_what_exists_is_left_alone(write, exists, tmp_path):
    path = tmp_path / "7"
    if exists == "file":
        path.write_text("old")
    elif exists == "folder":
        path.mkdir()
    else:
        path.symlink_to("nothing")
    before = os.lstat(path)
    with pytest.raises(ExportError, match="exists already"):
        write(path)
    assert os.path.samestat(os.lstat(path), before)
    assert os.listdir(tmp_path) == ["7"]


@writers
@pytest.mark.parametrize("other", [write_file, write_folder])
def test_of_two_writers_the_second_replaces_nothing(write, other, tmp_path):
    new = atomic.new_file if write is write_file else atomic.new_folder
    with pytest.raises(ExportError, match="exists already"), new(tmp_path / "7") as made:
        if write is write_folder:
            (made / "file").write_text("second")
        other(tmp_path / "7", "first")
    assert content_of(tmp_path / "7") == "first"
    assert os.listdir(tmp_path) == ["7"]


def test_a_folder_made_at_the_last_moment_is_not_replaced(tmp_path, monkeypatch):
    rename = os.rename

    def beaten(source, target):
        target.mkdir()
        (target / "file").write_text("first")
        rename(source, target)

    monkeypatch.setattr(os, "rename", beaten)
    with pytest.raises(ExportError, match="exists already"):
        write_folder(tmp_path / "7")
    assert content_of(tmp_path / "7") == "first"


@writers
def test_of_many_writers_one_wins(write, tmp_path):
    outcomes, barrier = [], threading.Barrier(8)

    def compete(number):
        barrier.wait()
        try:
            write(tmp_path / "7", str(number))
            outcomes.append(str(number))
        except ExportError:
            outcomes.append(None)

    threads = [threading.Thread(target=compete, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = set(outcomes) - {None}
    assert len(outcomes) == 8 and content_of(tmp_path / "7") == winner
    assert os.listdir(tmp_path) == ["7"]


def test_without_hard_links_nothing_is_replaced_either(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", link)
    write_file(tmp_path / "7")
    assert content_of(tmp_path / "7") == "new"
    with pytest.raises(ExportError, match="exists already"), atomic.new_file(tmp_path / "8"):
        (tmp_path / "8").write_text("first")
    assert content_of(tmp_path / "8") == "first"
    assert sorted(os.listdir(tmp_path)) == ["7", "8"]


KILLED = """
import os, sys
from tf_slipstream.delta import atomic
with getattr(atomic, sys.argv[1])(sys.argv[2]) as made:
    os.kill(os.getpid(), 9)
"""


def leave(write, path):
    """Leaves what a killed process does; returns its path."""
    name = "new_file" if write is write_file else "new_folder"
    before = set(path.parent.iterdir())
    killed = subprocess.run([sys.executable, "-c", KILLED, name, str(path)], cwd=ROOT, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    (left,) = set(path.parent.iterdir()) - before
    return left


@writers
@pytest.mark.parametrize("killed", [write_file, write_folder])
def test_what_a_killed_process_left_is_removed_by_the_next(write, killed, tmp_path):
    leave(killed, tmp_path / "7")
    write(tmp_path / "7")
    assert os.listdir(tmp_path) == ["7"]


def test_what_was_left_of_another_is_removed_a_day_later(tmp_path):
    lefts = [leave(write_file, tmp_path / "5"), leave(write_folder, tmp_path / "6")]
    write_file(tmp_path / "7")
    assert all(left.exists() for left in lefts)
    for left in lefts:
        make_old(left)
    write_file(tmp_path / "8")
    assert sorted(os.listdir(tmp_path)) == ["7", "8"]


@writers
def test_what_is_being_written_is_not_removed(write, tmp_path):
    with atomic.new_folder(tmp_path / "7") as folder, atomic.new_file(tmp_path / "7.delta"):
        for left in tmp_path.iterdir():
            make_old(left)
        (folder / "file").write_text("slow")
        write(tmp_path / "8")
    assert sorted(os.listdir(tmp_path)) == ["7", "7.delta", "8"]


@writers
def test_files_of_other_names_are_not_removed(write, tmp_path):
    kept = [".7.partial", "7.partial-0", ".7.partial-X", ".7.partial-0~"]
    for name in kept:
        (tmp_path / name).write_text("of the user")
        make_old(tmp_path / name)
    write(tmp_path / "7")
    assert sorted(os.listdir(tmp_path)) == sorted(["7", *kept])


@writers
def test_a_link_is_not_followed(write, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / ".7.partial-0").symlink_to("kept")
    write(tmp_path / "7")
    assert (tmp_path / "kept").is_dir()


@writers
def test_who_is_taken_for_abandoned_before_it_locks_begins_again(write, tmp_path, monkeypatch):
    flock, removed = fcntl.flock, []

    def beaten(descriptor, operation):
        if not removed:
            (left,) = tmp_path.iterdir()
            removed.append(left)
            left.rmdir() if left.is_dir() else left.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", beaten)
    write(tmp_path / "7")
    assert removed and content_of(tmp_path / "7") == "new"


@writers
def test_it_works_where_nothing_can_be_locked(write, tmp_path, monkeypatch):
    left = leave(write, tmp_path / "7")

    def flock(descriptor, operation):
        raise OSError(errno.EBADF, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    write(tmp_path / "7")
    assert content_of(tmp_path / "7") == "new"
    assert left.exists()  # nobody can tell whether somebody is writing it


@writers
def test_descriptors_are_closed(write, tmp_path):
    def num_open():
        return len(os.listdir("/proc/self/fd"))

    write(tmp_path / "1")
    before = num_open()
    for number in range(2, 7):
        write(tmp_path / str(number))
        with pytest.raises(ExportError):
            write(tmp_path / str(number))
    assert num_open() == before
