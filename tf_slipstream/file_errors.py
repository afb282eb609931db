"""Errors of files that say which file it is."""

import contextlib
import os
import pathlib


@contextlib.contextmanager
def naming(path):
    """Has an `OSError` of the block name a file, if it names none, as that of an open file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def read_bytes(path):
    """Returns what is in a file."""
    with naming(path):
        return pathlib.Path(path).read_bytes()
