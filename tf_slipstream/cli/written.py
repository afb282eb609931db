"""Files that a subcommand writes beside what it prints."""

import contextlib
import os
import secrets

from tf_slipstream.file_errors import naming


def check_can_write(path):
    """Refuses before long work a path that `write_text` would refuse after it.

    Args:
        path: Path of a file to write, or None.

    Raises:
        ValueError: If its folder is not there, or it is a folder itself.
    """
    if path is None:
        return
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise ValueError(f"there is no folder {folder} to write {path} to. Make it first.")
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder. Name a file to write.")


def write_text(path, text):
    """Writes a file, in place of one that is there, whole or not at all.

    A full disk, or an interrupt, leaves what was there.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # as a terminal or a pipe
        with naming(path), open(path, "w", encoding="utf-8") as stream:
            stream.write(text)
        return
    # A name that nobody knows beforehand: no link that waits there is followed.
    part = f"{path}.{secrets.token_hex(8)}.part"
    try:
        with naming(path), open(part, "x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise
