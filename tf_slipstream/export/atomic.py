"""Files and folders that are there whole or not at all, a crash or a full disk notwithstanding."""

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import tempfile

from tf_slipstream.export.errors import ExportError

_COPY_BYTES = 64 << 20
# What copy_file_range says where a file system, or a pair of them, does not have it.
_CANNOT_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def new_file(path):
    """Gives a binary file to write, which appears at `path` when the block ends well.

    Raises:
        ExportError: If `path` exists.
    """
    path = pathlib.Path(path)
    _check_absent(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.partial-")
    try:
        with os.fdopen(descriptor, "w+b") as file:
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync(path.parent)


@contextlib.contextmanager
def new_folder(path):
    """Gives an empty folder to fill, which appears at `path` when the block ends well.

    Until then it is `.NAME.partial-...` beside `path`; TensorFlow Serving looks only at folders
    whose name is a number. What an earlier process left there because it was killed is removed.

    Raises:
        ExportError: If `path` exists, or its parent does not.
    """
    path = pathlib.Path(path)
    _check_absent(path)
    prefix = f".{path.name}.partial-"
    _remove_abandoned(path.parent, prefix)
    temporary = tempfile.mkdtemp(dir=path.parent, prefix=prefix)
    lock = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.chmod(temporary, 0o777 & ~_umask())
        yield pathlib.Path(temporary)
        for folder, _, files in os.walk(temporary):
            for name in files:
                sync(os.path.join(folder, name))
            sync(folder)
        _check_absent(path)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(lock)
    sync(path.parent)


def copy_range(old, new, start, end, progress=lambda num_bytes: None):
    """Copies bytes `[start, end)` of an open file to the same place of another.

    Args:
        old: The file to read.
        new: The file to write.
        start: The first byte.
        end: The byte after the last.
        progress: Called with the number of bytes copied since its last call.
    """
    while start < end:
        size = min(end - start, _COPY_BYTES)
        try:
            copied = os.copy_file_range(old.fileno(), new.fileno(), size, start, start)
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
            data = os.pread(old.fileno(), size, start)
            write_at(new, data, start)
            copied = len(data)
        if copied == 0:
            raise _too_short(old)
        start += copied
        progress(copied)


def read_at(file, buffer, offset):
    """Fills a buffer, uint8 `[size]`, from a place in an open file."""
    done = 0
    while done < len(buffer):
        read = os.preadv(file.fileno(), [buffer[done:]], offset + done)
        if read == 0:
            raise _too_short(file)
        done += read


def write_at(file, data, offset):
    """Writes bytes to a place in an open file."""
    data, done = memoryview(data), 0
    while done < len(data):
        done += os.pwrite(file.fileno(), data[done:], offset + done)


def link_file(source, target):
    """Makes `target` another name of a file, or a copy where that is not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sync(path):
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _too_short(file):
    return ExportError(f"{file.name} became shorter while it was read: it must not be altered")


def _check_absent(path):
    if os.path.lexists(path):
        raise ExportError(f"{path} exists already: nothing is overwritten; choose another path")
    if not path.parent.is_dir():
        raise ExportError(f"there is no folder {path.parent}: make it first")


def _remove_abandoned(parent, prefix):
    for folder in parent.glob(f"{prefix}*"):
        try:
            lock = os.open(folder, os.O_RDONLY)
        except OSError:
            continue
        try:
            # Who works in it holds the lock, and whoever is killed loses it.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
