"""Reads, writes and copies ranges of open files, whatever the file system does piecemeal."""

import errno
import os
import shutil

from tf_slipstream.delta.errors import ExportError
from tf_slipstream.file_errors import naming

_COPY_BYTES = 64 << 20
# What copy_file_range says where a file system, or a pair of them, does not have it.
_CANNOT_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


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
                raise OSError(error.errno, error.strerror, old.name, None, new.name) from error
            with naming(old.name):
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
        with naming(file.name):
            num_read = os.preadv(file.fileno(), [buffer[done:]], offset + done)
        if num_read == 0:
            raise _too_short(file)
        done += num_read


def write_at(file, data, offset):
    """Writes bytes to a place in an open file."""
    data, done = memoryview(data), 0
    with naming(file.name):
        while done < len(data):
            done += os.pwrite(file.fileno(), data[done:], offset + done)


def link_file(source, target):
    """Makes `target` another name of a file, or a copy where that is not possible."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def _too_short(file):
    return ExportError(f"{file.name} became shorter while it was read: it must not be altered")
