"""Files and folders that are there whole or not at all, whatever crashes, fills up or runs beside.

What is being written has a name of its own, `.NAME.partial-...`, and a lock, which whoever is
killed loses. What is complete gets its name only if nothing has that name. So nothing is replaced,
and what was abandoned can be told from what is being written.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import secrets
import shutil
import time

from tf_slipstream.delta.errors import ExportError
from tf_slipstream.file_errors import naming

_PARTIAL = re.compile(r"\.(?P<name>.+)\.partial-[a-z0-9_]+", re.DOTALL)
# File systems exist whose locks do nothing. There, only the leftovers of others are this old.
_SECONDS_UNTIL_ABANDONED = 24 * 3600
# What `os.link` says where a file system has no hard links.
_CANNOT_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
# What `os.rename` says of a folder where there is something already.
_IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


@contextlib.contextmanager
def new_file(path):
    """Gives a binary file to write, which appears at `path` when the block ends well.

    Raises:
        ExportError: If `path` exists, when the block begins or when it ends, or if there is no
            folder to make it in.
    """
    path = pathlib.Path(path)
    _check_absent(path)
    _remove_abandoned(path)
    temporary, descriptor = _new_temporary(path, _make_file)
    try:
        with naming(path), os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            _name_file(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    try:
        sync(path.parent)
    except OSError:
        # Who is told that it failed must not find it, and must be able to try again.
        os.unlink(path)
        raise


@contextlib.contextmanager
def new_folder(path):
    """Gives an empty folder to fill, which appears at `path` when the block ends well.

    TensorFlow Serving does not see it before, because it looks only at folders whose name is a
    number.

    Raises:
        ExportError: If `path` exists, when the block begins or when it ends, or if there is no
            folder to make it in.
    """
    path = pathlib.Path(path)
    _check_absent(path)
    _remove_abandoned(path)
    temporary, descriptor = _new_temporary(path, _make_folder)
    try:
        with naming(path):
            yield temporary
        for folder, _, files in os.walk(temporary):
            for name in files:
                sync(os.path.join(folder, name))
            sync(folder)
        _name_folder(temporary, path)
        try:
            sync(path.parent)
        except OSError:
            os.rename(path, temporary)
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)


def sync(path):
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exists(path):
    return ExportError(f"{path} exists already: nothing is overwritten; choose another path")


def _check_absent(path):
    if os.path.lexists(path):
        raise _exists(path)
    if not path.parent.is_dir():
        raise ExportError(f"there is no folder {path.parent}: make it first")


# Both give what they make the permissions that the process's umask leaves.
def _make_file(path):
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _make_folder(path):
    os.mkdir(path, 0o777)
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError:
        os.rmdir(path)
        raise


def _new_temporary(path, make):
    """Makes a file or folder beside `path`; returns its path, and a descriptor that locks it."""
    while True:
        temporary = path.with_name(f".{path.name}.partial-{secrets.token_hex(8)}")
        descriptor = make(temporary)
        # Until it is locked somebody may take it for abandoned and remove it.
        if descriptor is None:
            continue
        # Without locks, as on some network file systems, nobody removes it either.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_at(descriptor, temporary):
            return temporary, descriptor
        os.close(descriptor)


def _is_at(descriptor, path):
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _name_file(temporary, path):
    try:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            # Takes the name with an empty file, which readers refuse, and replaces that.
            os.close(_make_file(path))
            os.replace(temporary, path)
    except FileExistsError:
        raise _exists(path) from None


def _name_folder(temporary, path):
    # A rename would replace an empty folder; one that is not empty, or a file, it does not.
    _check_absent(path)
    try:
        os.rename(temporary, path)
    except OSError as error:
        if error.errno in _IN_THE_WAY:
            raise _exists(path) from None
        raise


def _remove_abandoned(path):
    """Removes what killed processes left where `path` is to be made."""
    for temporary in path.parent.glob(".*.partial-*"):
        match = _PARTIAL.fullmatch(temporary.name)
        # Gone meanwhile, being written, not ours to remove, or on a file system without locks.
        with contextlib.suppress(OSError):
            age = time.time() - temporary.lstat().st_mtime
            if match and (match["name"] == path.name or age > _SECONDS_UNTIL_ABANDONED):
                _remove_unless_locked(temporary)


def _remove_unless_locked(temporary):
    is_folder = temporary.is_dir() and not temporary.is_symlink()
    flags = os.O_RDONLY if is_folder else os.O_RDWR
    descriptor = os.open(temporary, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_folder:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink()
    finally:
        os.close(descriptor)
