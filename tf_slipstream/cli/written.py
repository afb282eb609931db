"""Files that a subcommand writes beside what it prints."""

import os


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
    """Writes a file, whole or not at all: a full disk leaves nothing behind."""
    # A terminal or a pipe is no file to be replaced.
    is_replaced = os.path.isfile(path) or not os.path.exists(path)
    part = _part_of(path) if is_replaced else path
    try:
        with open(part, "w", encoding="utf-8") as stream:
            stream.write(text)
        if is_replaced:
            os.replace(part, path)
    except OSError as error:
        if is_replaced and os.path.isfile(part):
            os.remove(part)
        # A write that fails names no file, a rename two.
        raise OSError(error.errno, error.strerror, path) from error


def _part_of(path):
    return f"{path}.part"
